"""The check against one sabotage at a time: each is found, named, and placed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import sqlite3
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import segments
from batchyard.errors import ConfigError
from batchyard.ledger.sqlite_file import SCHEMA_VERSION
from batchyard.segments.syncing import MARK, mark
from batchyard.server import orphans
from batchyard.verify import findings
from batchyard.verify.findings import LIKE_MAX
from store.yards import NAMES, Maker, change, checked, make_yard, path_of, row

if TYPE_CHECKING:
    from collections.abc import Callable

PART, ENDED = NAMES["part"], NAMES["ended"]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a batch in every state, made once."""
    data = tmp_path_factory.mktemp("intact") / "data"
    asyncio.run(make_yard(data))
    return data


@pytest.fixture
def data(intact: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(intact, tmp_path / "data")


def contents(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return all there is below a directory: mode, time of change, bytes."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, data)
    return found


def test_an_intact_directory_with_a_batch_in_every_state_holds(data: Path) -> None:
    found = checked(data)
    assert found.findings == []
    assert found.summary.batches == 5
    assert found.summary.shards == 4, "three of the batch that runs, one of the fresh one"
    assert found.summary.requests == 6 + 5 + 12 + 3
    assert found.summary.results == 6 + 5 + 4 + 2


def test_a_check_changes_nothing(data: Path) -> None:
    (path_of(data, "ended") / "manifest.json").unlink()
    before = contents(data)
    checked(data)
    assert contents(data) == before


# One sabotage at a time -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sabotage:
    """What is done to a directory, and the finding that must name it."""

    do: Callable[[Path], None]
    rule: str
    where: str
    """Must be part of the place, with `{part}` and `{ended}` for their prefixes."""
    text: str = ""
    """Must be part of the text."""


def sql(statement: str, *bound: object) -> Callable[[Path], None]:
    return lambda data: change(data, statement, *bound)


def result_file(data: Path, batch: str, shard: int, attempt: int) -> Path:
    (path,) = path_of(data, batch).glob(f"r/{shard}.{attempt}.*")
    return path


def rewrite(
    batch: str, shard: int, attempt: int, edit: Callable[[bytes], bytes]
) -> Callable[[Path], None]:
    """Replace the bytes of a result segment."""

    def do(data: Path) -> None:
        path = result_file(data, batch, shard, attempt)
        before = path.read_bytes()
        after = edit(before)
        assert after != before
        path.write_bytes(after)

    return do


def renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Give a request another id, with a check that is right."""

    def edit(data: bytes) -> bytes:
        found = re.search(rb"%b (\d+) [0-9a-f]{8}\n" % old, data)
        assert found is not None
        head = b"%b %b" % (new, found[1])
        return data.replace(found[0], b"%b %08x\n" % (head, zlib.crc32(head)))

    return edit


def requests(
    batch: str, edit: Callable[[bytes], bytes], *, same: bool = True
) -> Callable[[Path], None]:
    """Replace the bytes of a requests segment."""

    def do(data: Path) -> None:
        path = path_of(data, batch) / "requests"
        before = path.read_bytes()
        after = edit(before)
        assert after != before
        assert len(after) == len(before) or not same
        path.write_bytes(after)

    return do


def manifest(edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change the manifest of the batch that has ended."""

    def do(data: Path) -> None:
        path = path_of(data, "ended") / "manifest.json"
        path.write_bytes(json.dumps(edit(json.loads(path.read_bytes()))).encode())

    return do


def extents_of(data: Path, shard: int) -> list[list[Any]]:
    return json.loads(
        row(data, "SELECT manifest FROM shards WHERE batch = ? AND idx = ?", PART, shard)[0]
    )


def extents(shard: int, edit: Callable[[list[list[Any]]], object]) -> Callable[[Path], None]:
    """Change the extents of a shard of the open batch."""

    def do(data: Path) -> None:
        named = extents_of(data, shard)
        edit(named)
        statement = "UPDATE shards SET manifest = ? WHERE batch = ? AND idx = ?"
        change(data, statement, json.dumps(named), PART, shard)

    return do


def lines(edit: Callable[[list[bytes]], object]) -> Callable[[bytes], bytes]:
    """Edit the lines of a file in place, keeping its length by padding the last line inside."""

    def do(data: bytes) -> bytes:
        parts = data.splitlines(keepends=True)
        edit(parts)
        after = b"".join(parts)
        missing = len(data) - len(after)
        assert missing >= 0
        # White space between tokens: a line stays one.
        return after[:-2] + b" " * missing + after[-2:]

    return do


def again(parts: list[bytes]) -> None:
    parts[1] = parts[0]


def carriage(parts: list[bytes]) -> None:
    """Put a CR between two tokens, which JSON allows, and give up a letter of the text for it."""
    parts[0] = (
        parts[0].replace(b"answer", b"anwer", 1).replace(b'{"custom_id"', b'{\r"custom_id"', 1)
    )


def delete_shard_row(data: Path) -> None:
    change(data, "DELETE FROM shards WHERE batch = ? AND idx = 1", PART)


def unlink(batch: str, name: str) -> Callable[[Path], None]:
    return lambda data: (path_of(data, batch) / name).unlink()


def pipe(batch: str, name: str) -> Callable[[Path], None]:
    """Put a pipe in the place of a file: whoever opens it would wait for ever."""

    def do(data: Path) -> None:
        path = path_of(data, batch) / name
        path.unlink()
        os.mkfifo(path)

    return do


def link(path: Path) -> None:
    """Put a link to the file in its place: what lies elsewhere is not ours to read."""
    moved = path.rename(path.parents[4] / "elsewhere")
    path.symlink_to(moved)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]


def digit(data: bytes) -> bytes:
    """Change the first digit of a usage."""
    return data.replace(b'"input_tokens":3', b'"input_tokens":4', 1)


def of_batch(column: str, value: object, name: str) -> Callable[[Path], None]:
    return sql(f"UPDATE batches SET {column} = ? WHERE id = ?", value, NAMES[name])


def of_shard(column: str, value: object, shard: int) -> Callable[[Path], None]:
    return sql(f"UPDATE shards SET {column} = ? WHERE batch = ? AND idx = ?", value, PART, shard)


def silent(statement: str) -> Callable[[Path], None]:
    """Run a statement that changes no row."""

    def do(data: Path) -> None:
        with closing(sqlite3.connect(data / "ledger.db")) as db, db:
            db.execute(statement)

    return do


def damage_page(name: str, at: int) -> Callable[[Path], None]:
    """Overwrite a part of the first page of a table or an index."""

    def do(data: Path) -> None:
        root = row(data, "SELECT rootpage FROM sqlite_master WHERE name = ?", name)[0]
        size = row(data, "PRAGMA page_size")[0]
        with (data / "ledger.db").open("r+b") as file:
            file.seek((root - 1) * size + at)
            file.write(b"\xff" * 8)

    return do


SABOTAGES = {
    # The ledger as a file
    "no ledger": Sabotage(
        lambda data: (data / "ledger.db").unlink(), "ledger-missing", "ledger.db", "4 batches"
    ),
    "an empty ledger": Sabotage(
        lambda data: (data / "ledger.db").write_bytes(b""),
        "ledger-missing",
        "ledger.db",
        "would remove",
    ),
    "no database": Sabotage(
        lambda data: (data / "ledger.db").write_bytes(b"hello"), "ledger-damaged", "ledger.db"
    ),
    "random bytes": Sabotage(
        lambda data: (data / "ledger.db").write_bytes(random.Random(1).randbytes(20_000)),
        "ledger-damaged",
        "ledger.db",
    ),
    "a database of another program": Sabotage(
        silent("PRAGMA application_id = 7"),
        "ledger-foreign",
        "ledger.db",
        "another program",
    ),
    "a newer ledger": Sabotage(
        silent(f"PRAGMA user_version = {SCHEMA_VERSION + 1}"),
        "ledger-foreign",
        "ledger.db",
        "schema version",
    ),
    "a lost index": Sabotage(
        silent("DROP INDEX shards_ready"),
        "ledger-damaged",
        "ledger.db",
        "shards_ready",
    ),
    "a lost table": Sabotage(
        silent("DROP TABLE deleted"), "ledger-damaged", "ledger.db", "table deleted is missing"
    ),
    "a damaged table": Sabotage(damage_page("batches", 16), "ledger-damaged", "ledger.db"),
    "a table that is no table": Sabotage(
        damage_page("creates", 0), "ledger-damaged", "ledger.db", "integrity check failed"
    ),
    "a damaged index": Sabotage(
        damage_page("batches_of_workspace", 16),
        "ledger-damaged",
        "ledger.db",
    ),
    # Rows of batches
    "a result too many in the counts": Sabotage(
        sql("UPDATE batches SET succeeded = succeeded + 1 WHERE id = ?", ENDED),
        "batch-counts",
        ENDED,
        "7 results",
    ),
    "two counts exchanged": Sabotage(
        sql("UPDATE batches SET succeeded = errored, errored = succeeded WHERE id = ?", ENDED),
        "result-counts",
        ENDED,
    ),
    "counts before the end": Sabotage(of_batch("errored", 1, "fresh"), "batch-counts", "fresh"),
    "tokens of an ended batch": Sabotage(
        of_batch("tokens", "[1,2,3,4]", "ended"), "result-tokens", ENDED
    ),
    "tokens that are no numbers": Sabotage(
        of_batch("tokens", '["a",2,3,4]', "ended"), "batch-tokens", ENDED
    ),
    "an end before the creation": Sabotage(of_batch("ended_us", 5, "ended"), "batch-times", ENDED),
    "a cancel after the end": Sabotage(
        sql("UPDATE batches SET cancel_us = ended_us + 1 WHERE id = ?", NAMES["stopped"]),
        "batch-times",
        "stopped",
    ),
    "another day": Sabotage(
        sql("UPDATE batches SET expires_us = expires_us + 1 WHERE id = ?", PART),
        "batch-times",
        PART,
        "86400.000001",
    ),
    "canceled results without a cancel": Sabotage(
        of_batch("cancel_us", None, "stopped"), "batch-state", "stopped"
    ),
    "an archive before the end": Sabotage(
        of_batch("archived_us", 5, "fresh"), "batch-state", "fresh"
    ),
    "a billing that does not exist": Sabotage(
        of_batch("billing", "free", "ended"), "batch-row", ENDED, "billing"
    ),
    "an ended batch that was forgotten to end": Sabotage(
        of_batch("ended_us", None, "ended"), "shard-cover", ENDED
    ),
    "tokens without a success": Sabotage(
        of_batch("tokens", "[1,0,0,0]", "fresh"), "batch-tokens", "fresh", "nothing has succeeded"
    ),
    "results that expired too soon": Sabotage(
        sql("UPDATE batches SET expired = errored, errored = 0 WHERE id = ?", ENDED),
        "batch-state",
        ENDED,
        "expired before",
    ),
    "an archive that has shards": Sabotage(
        sql("UPDATE shards SET batch = ? WHERE idx = 2", NAMES["archived"]),
        "batch-state",
        "archived",
        "1 shards are left",
    ),
    "an archive before its end": Sabotage(
        sql("UPDATE batches SET archived_us = ended_us - 1 WHERE id = ?", NAMES["archived"]),
        "batch-times",
        "archived",
        "archived before it was ended",
    ),
    "an id that would leave the directory": Sabotage(
        of_batch("id", "../../ledger.db", "fresh"), "batch-row", "../../ledger.db", "no id of ours"
    ),
    # Rows of shards
    "a lost shard": Sabotage(delete_shard_row, "shard-cover", PART, "shard 1 is missing"),
    "a shard of no batch": Sabotage(
        sql("DELETE FROM batches WHERE id = ?", PART), "shard-orphan", PART, "3 shards"
    ),
    "a gap between shards": Sabotage(
        sql("UPDATE shards SET off = off + 1, len = len - 1 WHERE batch = ? AND idx = 2", PART),
        "shard-cover",
        PART,
        "shard 2 begins",
    ),
    "a range that ends inside a request": Sabotage(
        sql("UPDATE shards SET len = len - 1 WHERE batch = ? AND idx = 2", PART),
        "requests-damaged",
        "shard 2",
    ),
    "a shard with other requests": Sabotage(of_shard("n", 5, 2), "requests-count", "shard 2"),
    "counts of a done shard": Sabotage(
        sql("UPDATE shards SET errored = errored + 1 WHERE batch = ? AND idx = 0", PART),
        "shard-state",
        "shard 0",
    ),
    "a shard that calls itself done": Sabotage(
        sql("UPDATE shards SET state = 2, succeeded = 4 WHERE batch = ? AND idx = 1", PART),
        "result-missing",
        "shard 1",
        "part-6, part-7",
    ),
    "a fence that went back": Sabotage(
        of_shard("attempt", 1, 0), "extent-name", "shard 0", "later attempt"
    ),
    "results of an attempt that was never claimed": Sabotage(
        lambda data: result_file(data, "part", 1, 2).rename(
            path_of(data, "part") / f"r/1.3.{'f' * 16}"
        ),
        "shard-state",
        "shard 1 {part}/r/1.3.ffff",
        "later attempt",
    ),
    "a ready shard with an owner": Sabotage(of_shard("owner", "x", 2), "shard-state", "shard 2"),
    "a running shard without a lease": Sabotage(
        of_shard("lease_us", None, 1), "shard-state", "shard 1"
    ),
    "a running shard without an owner": Sabotage(
        of_shard("owner", None, 1), "shard-state", "shard 1", "without an owner"
    ),
    "more under way than there is": Sabotage(
        of_shard("inflight", 5, 1), "shard-state", "shard 1", "of 4 requests"
    ),
    "calls in flight of a done shard": Sabotage(
        of_shard("inflight", 1, 0), "shard-state", "shard 0", "not running"
    ),
    "a shard that nobody claimed and somebody runs": Sabotage(
        sql(
            "UPDATE shards SET state = 1, owner = 'x', lease_us = 1 WHERE batch = ? AND idx = 2",
            PART,
        ),
        "shard-state",
        "shard 2",
        "never claimed",
    ),
    "canceled requests in a shard without a cancel": Sabotage(
        of_shard("canceled", 1, 1), "shard-state", "shard 1", "without a cancel"
    ),
    "tokens of a shard that is not done": Sabotage(
        of_shard("tokens", "[1,1,1,1]", 1), "shard-state", "shard 1", "tokens"
    ),
    "tokens of a shard that are none": Sabotage(
        of_shard("tokens", "[1]", 1), "shard-row", "shard 1", "four numbers"
    ),
    "a state that does not exist": Sabotage(
        of_shard("state", 3, 1), "shard-row", "shard 1", "state"
    ),
    "a shard of another workspace": Sabotage(of_shard("workspace", "v", 1), "shard-row", "shard 1"),
    "extents that are none": Sabotage(of_shard("manifest", "[1]", 1), "shard-row", "shard 1"),
    "an extent without a length": Sabotage(
        of_shard("manifest", "[[1]]", 1), "shard-row", "shard 1"
    ),
    "an extent of nothing, whose results are nowhere": Sabotage(
        extents(0, lambda e: e[0].__setitem__(1, 0)), "result-missing", "shard 0", "part-0, part-1"
    ),
    "a batch that has ended with shards": Sabotage(
        sql("UPDATE shards SET batch = ? WHERE batch = ? AND idx = 2", ENDED, PART),
        "batch-state",
        ENDED,
        "1 shards",
    ),
    # Rows of creates
    "a create call of no batch": Sabotage(
        sql("UPDATE creates SET batch = 'x' WHERE key = 'key ended'"), "create-batch", "x"
    ),
    "a digest that is cut": Sabotage(
        sql("UPDATE creates SET digest = x'00' WHERE key = 'key ended'"), "create-row", ENDED
    ),
    "a create call of another workspace": Sabotage(
        sql("UPDATE creates SET workspace = 'v' WHERE key = 'key ended'"), "create-batch", ENDED
    ),
    "a create call that is kept for ever": Sabotage(
        sql("UPDATE creates SET until_us = until_us + 1 WHERE key = 'key ended'"),
        "create-row",
        ENDED,
        "another time",
    ),
    # Requests
    "no requests": Sabotage(unlink("part", "requests"), "requests-missing", "{part}/requests"),
    "no requests of an ended batch": Sabotage(
        unlink("ended", "requests"), "requests-missing", "{ended}/requests"
    ),
    "a link in the place of requests of an ended batch": Sabotage(
        lambda data: link(path_of(data, "ended") / "requests"), "unreadable", "{ended}/requests"
    ),
    "a pipe as requests": Sabotage(pipe("part", "requests"), "requests-missing", "{part}/requests"),
    "requests that end early": Sabotage(
        requests("part", lambda d: d[:-3], same=False), "requests-damaged", "{part}/requests"
    ),
    "a request twice": Sabotage(
        requests("part", renamed(b"part-9", b"part-8")),
        "requests-id",
        "shard 2",
        "part-8",
    ),
    "a request with a name that cannot be": Sabotage(
        requests("part", renamed(b"part-9", b"part\xff9")),
        "requests-id",
        "shard 2",
        "part\\\\xff9",
    ),
    "params that are no JSON": Sabotage(
        requests("part", lambda d: d.replace(b'{"model"', b'["model"', 1)),
        "requests-params",
        "{part}/requests at 0",
        "part-0",
    ),
    "params that are no UTF-8": Sabotage(
        requests("part", lambda d: d.replace(b"\xc3", b"c", 1)), "requests-params", "at 0"
    ),
    "a length that is wrong": Sabotage(
        requests("ended", lambda d: d.replace(b"ended-0 48", b"ended-0 47")),
        "requests-damaged",
        "{ended}/requests at 0",
    ),
    "a request fewer in an ended batch": Sabotage(
        requests("ended", lambda d: d[: d.index(b"ended-5")], same=False),
        "requests-count",
        "{ended}/requests",
        "5 requests",
    ),
    "a link in the place of requests": Sabotage(
        lambda data: link(path_of(data, "part") / "requests"), "unreadable", "{part}/requests"
    ),
    "a link in the place of a result": Sabotage(
        lambda data: link(result_file(data, "part", 0, 1)), "unreadable", "shard 0 {part}/r/0.1."
    ),
    "a link in the place of a manifest": Sabotage(
        lambda data: link(path_of(data, "ended") / "manifest.json"),
        "unreadable",
        "{ended}/manifest.json",
    ),
    # Manifests
    "no manifest": Sabotage(
        unlink("ended", "manifest.json"), "manifest-missing", "{ended}/manifest.json"
    ),
    "half a manifest": Sabotage(
        lambda data: os.truncate(path_of(data, "ended") / "manifest.json", 40),
        "manifest-damaged",
        "{ended}/manifest.json",
    ),
    "a manifest that is no UTF-8": Sabotage(
        lambda data: (path_of(data, "ended") / "manifest.json").write_bytes(
            flip((path_of(data, "ended") / "manifest.json").read_bytes(), 12)
        ),
        "manifest-damaged",
        "{ended}/manifest.json",
    ),
    "a manifest of 65 MiB": Sabotage(
        lambda data: os.truncate(path_of(data, "ended") / "manifest.json", 65 << 20),
        "manifest-damaged",
        "{ended}/manifest.json",
        "bytes",
    ),
    "extents that are no lengths": Sabotage(
        manifest(lambda m: m | {"extents": [[m["extents"][0][0], -1, *m["extents"][0][2:]]]}),
        "manifest-damaged",
        "{ended}/manifest.json",
    ),
    "a manifest of another batch": Sabotage(
        manifest(lambda m: m | {"batch": PART}), "manifest-damaged", "{ended}/manifest.json", PART
    ),
    "a manifest without a shard": Sabotage(
        manifest(lambda m: m | {"extents": m["extents"][:-1]}), "result-missing", ENDED, "ended-4"
    ),
    "a manifest that leaves the batch": Sabotage(
        manifest(lambda m: m | {"extents": [["../../lock", *m["extents"][0][1:]]]}),
        "extent-name",
        ENDED,
        "../../lock",
    ),
    "an extent twice": Sabotage(
        manifest(lambda m: m | {"extents": [*m["extents"], m["extents"][0]]}),
        "extent-name",
        ENDED,
        "twice",
    ),
    "a manifest before its time": Sabotage(
        lambda data: (path_of(data, "part") / "manifest.json").write_bytes(b"{}"),
        "manifest-early",
        "{part}/manifest.json",
    ),
    # Results
    "a lost result segment": Sabotage(
        lambda data: result_file(data, "ended", 0, 2).unlink(), "extent-short", "{ended}/r/0.2."
    ),
    "a result segment that was cut": Sabotage(
        rewrite("ended", 1, 1, lambda d: d[:-10]), "extent-short", "{ended}/r/1.1."
    ),
    "a frozen extent that was cut": Sabotage(
        rewrite("part", 1, 1, lambda d: d[:-10]), "extent-short", "{part}/r/1.1."
    ),
    "a line that is gone": Sabotage(
        rewrite("ended", 1, 1, lines(lambda p: p.pop(0))), "result-missing", ENDED, "ended-4"
    ),
    "a line twice": Sabotage(
        rewrite("ended", 0, 2, lines(again)), "result-twice", "{ended}/r/0.2.", "ended-2"
    ),
    "a line twice in a done shard": Sabotage(
        rewrite("part", 0, 2, lines(again)), "result-twice", "shard 0 {part}/r/0.2.", "part-2"
    ),
    "a line twice in what is frozen": Sabotage(
        rewrite("part", 1, 1, lines(again)), "result-twice", "shard 1 {part}/r/1.1.", "part-4"
    ),
    "a result of another shard": Sabotage(
        rewrite("part", 1, 1, lambda d: d.replace(b"part-4", b"part-0", 1)),
        "result-unknown",
        "shard 1 {part}/r/1.1.",
        "part-0",
    ),
    "a result of no request": Sabotage(
        rewrite("ended", 1, 1, lambda d: d.replace(b"ended-4", b"ended-9", 1)),
        "result-unknown",
        "{ended}/r/1.1.",
        "ended-9",
    ),
    "a line that is no JSON": Sabotage(
        rewrite("ended", 0, 1, lambda d: b"[" + d[1:]), "result-damaged", "{ended}/r/0.1.", "line"
    ),
    "a line that is no UTF-8": Sabotage(
        rewrite("ended", 0, 1, lambda d: d.replace(b"answer", b"answ\xffr", 1)),
        "result-damaged",
        "{ended}/r/0.1.",
    ),
    "a line with a CR": Sabotage(
        rewrite("ended", 0, 2, lines(carriage)), "result-damaged", "{ended}/r/0.2.", "CR"
    ),
    "a message that is none": Sabotage(
        rewrite("ended", 0, 1, lambda d: d.replace(b'"content"', b'"contend"', 1)),
        "result-damaged",
        "{ended}/r/0.1.",
        "content",
    ),
    "zeros": Sabotage(
        rewrite("part", 0, 2, lambda d: bytes(len(d))), "result-damaged", "shard 0 {part}/r/0.2."
    ),
    "another kind": Sabotage(
        rewrite(
            "stopped", 0, 1, lambda d: d.replace(b'"type":"canceled"', b'"type":"expired" ', 1)
        ),
        "result-counts",
        "stopped",
    ),
    "another usage": Sabotage(rewrite("ended", 0, 1, digit), "result-tokens", ENDED),
    "another usage in a done shard": Sabotage(
        rewrite("part", 0, 1, digit), "result-tokens", "shard 0"
    ),
    "an extent that ends inside a line": Sabotage(
        extents(0, lambda e: e[0].__setitem__(1, e[0][1] - 1)), "result-damaged", "{part}/r/0.1."
    ),
    "an extent of another shard": Sabotage(
        extents(0, lambda e: e.append([e[0][0].replace("/0.", "/1."), 5])),
        "extent-name",
        "shard 0",
        "another shard",
    ),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_one_sabotage_is_found_and_named(data: Path, name: str) -> None:
    sabotage = SABOTAGES[name]
    sabotage.do(data)
    found = checked(data)
    prefixes = {part: segments.batch_prefix(NAMES[part]) for part in ("part", "ended")}
    where = sabotage.where.format(**prefixes)
    wanted = [
        finding
        for finding in found.errors
        if finding.rule == sabotage.rule
        and where in (finding.where or str(finding.segment))
        and sabotage.text in finding.text
    ]
    assert wanted, [f"{f.rule} {f.where}: {f.text}" for f in found.findings]
    assert found.summary.errors


def test_the_sabotages_cover_every_rule_that_is_an_error() -> None:
    rules = {rule.value for rule in findings.Rule if rule not in findings.NOTES}
    elsewhere = {"ledger-log", "requests-checksum", "result-checksum"}
    assert {sabotage.rule for sabotage in SABOTAGES.values()} == rules - elsewhere


def test_the_documentation_has_every_rule_at_its_level() -> None:
    text = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    errors, notes = text.split("## Errors")[1].split("## Notes")
    notes = notes.split("## What it cannot see")[0]
    listed = [re.findall(r"^\| `([a-z-]+)` \|", part, re.MULTILINE) for part in (errors, notes)]
    of_notes = [rule.value for rule in findings.Rule if rule in findings.NOTES]
    assert listed[0] == [r.value for r in findings.Rule if r not in findings.NOTES]
    assert sorted(listed[1]) == sorted(of_notes)


def test_a_damaged_table_does_not_keep_the_others_from_being_checked(data: Path) -> None:
    damage_page("creates", 0)(data)
    rewrite("ended", 0, 1, digit)(data)
    found = checked(data)
    assert {"ledger-damaged", "result-checksum", "result-tokens"} == set(found.rules)
    assert found.summary.batches == 5


# Notes: what the next start deals with ---------------------------------------------------------


def copy_batch(data: Path, prefix: str) -> None:
    """Copy the segments of a batch to where they do not belong."""
    target = data / "segments" / prefix
    target.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copytree(path_of(data, "fresh"), target)


def record_worker(data: Path) -> None:
    """Write a worker process down as a server does, which keeps everything to itself."""
    orphans.record(data, os.getpid())
    (data / "workers" / str(os.getpid())).chmod(0o600)


NOTES = {
    "segments of no batch": (
        lambda data: copy_batch(data, segments.batch_prefix("msgbatch_x")),
        "leftover",
        "msgbatch_x",
    ),
    "segments of an archived batch": (
        lambda data: copy_batch(data, segments.batch_prefix(NAMES["archived"])),
        "leftover",
        "archived",
    ),
    "a result segment that no manifest names": (
        lambda data: shutil.copy(
            result_file(data, "ended", 0, 1), path_of(data, "ended") / f"r/1.2.{'f' * 16}"
        ),
        "leftover",
        f"r/1.2.{'f' * 16}",
    ),
    "a manifest that was being written": (
        lambda data: shutil.copy(
            path_of(data, "ended") / "manifest.json",
            path_of(data, "ended") / f".manifest.json.{'a' * 16}",
        ),
        "leftover",
        f".manifest.json.{'a' * 16}",
    ),
    "a look whether results can be written, cut short": (
        lambda data: (path_of(data, "ended") / "r" / f".probe.{'a' * 16}").touch(mode=0o600),
        "leftover",
        f"r/.probe.{'a' * 16}",
    ),
    "a body in the spool": (
        lambda data: (data / "spool" / "tmpabc").touch(mode=0o600),
        "leftover",
        "spool/tmpabc",
    ),
    "a worker process that its server had no time to forget": (
        record_worker,
        "leftover",
        f"workers/{os.getpid()}",
    ),
    "a file among the worker processes": (
        lambda data: ((data / "workers").mkdir(0o700), (data / "workers" / "x").touch(0o600)),
        "stranger",
        "workers/x",
    ),
    "a torn tail that will be run again": (
        rewrite("part", 1, 2, lambda d: d + d[:20]),
        "unfinished",
        "r/1.2.",
    ),
    "a segment in which nothing is whole": (
        rewrite("part", 1, 2, lambda d: bytes(len(d))),
        "unfinished",
        "r/1.2.",
    ),
    "a segment with a result that is there already": (
        lambda data: shutil.copy(
            result_file(data, "part", 1, 2), path_of(data, "part") / f"r/0.2.{'f' * 16}"
        ),
        "leftover",
        f"r/0.2.{'f' * 16}",
    ),
    "a file of somebody else": (
        lambda data: (data / "segments" / "readme.txt").touch(mode=0o600),
        "stranger",
        "segments/readme.txt",
    ),
    "a file beside the ledger": (
        lambda data: (data / "backup.db").touch(mode=0o600),
        "stranger",
        "backup.db",
    ),
    "a name in another directory": (
        lambda data: copy_batch(data, f"00/{NAMES['gone']}"),
        "stranger",
        f"00/{NAMES['gone']}",
    ),
    "a file beside the requests": (
        lambda data: (path_of(data, "ended") / "requests.bak").touch(mode=0o600),
        "stranger",
        "requests.bak",
    ),
    "a file beside the results": (
        lambda data: (path_of(data, "ended") / "r" / "0.1").touch(mode=0o600),
        "stranger",
        "r/0.1",
    ),
    "a link in the place of a directory": (
        lambda data: (data / "segments" / "aa").symlink_to(data / "spool"),
        "stranger",
        "segments/aa",
    ),
    "results that others may read": (
        lambda data: result_file(data, "ended", 0, 1).chmod(0o644),
        "mode",
        "r/0.1.",
    ),
    "a directory that others may enter": (lambda data: data.chmod(0o755), "mode", "."),
    "a ledger that others may read": (
        lambda data: (data / "ledger.db").chmod(0o640),
        "mode",
        "ledger.db",
    ),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_breaks_no_promise_is_a_note(data: Path, name: str) -> None:
    do, rule, where = NOTES[name]
    do(data)
    found = checked(data)
    assert found.errors == []
    assert [(f.rule, f.level) for f in found.findings] == [(rule, "note")]
    assert where in found.findings[0].where
    assert found.summary.notes == 1


def test_what_of_a_torn_tail_is_kept_is_told(data: Path) -> None:
    path = result_file(data, "part", 1, 2)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"half a line")
    (found,) = checked(data).findings
    assert found.offset == size
    assert found.text.startswith("11 bytes")


def test_what_a_yard_keeps_beside_its_batches_is_no_finding(data: Path) -> None:
    orphans.record(data, os.getpid())
    orphans.forget(data, os.getpid())
    assert (data / "workers").is_dir()
    mark(path_of(data, "part") / "r")
    assert (path_of(data, "part") / MARK).exists()
    assert checked(data).findings == []


# Many at once ------------------------------------------------------------------------------------


def test_thousands_of_alike_findings_are_told_once(tmp_path: Path) -> None:
    async def make() -> None:
        maker = Maker(tmp_path / "data", per_shard=500)
        await maker.create("ended", 3_000)
        await maker.finish(["succeeded"])
        await maker.ledger.close()

    asyncio.run(make())
    data = tmp_path / "data"
    assert checked(data).summary.results == 3_000
    for path in path_of(data, "ended").glob("r/*"):
        path.write_bytes(path.read_bytes().replace(b"custom_id", b"custom_ie"))
    found = checked(data)
    damaged = [f for f in found.findings if f.rule == "result-damaged"]
    assert len(damaged) == LIKE_MAX + 1
    assert damaged[-1].text == f"and {3_000 - LIKE_MAX} more of these"
    assert found.summary.errors > 3_000


DAMAGES = [
    lambda data, at, rng: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
    lambda data, at, _: data[:at],
    lambda data, at, _: data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :],
    lambda data, at, rng: data[:at] + rng.randbytes(20) + data[at:],
]


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere_is_told_and_never_raised(intact: Path, tmp_path: Path, seed: int) -> None:
    """Bits, holes and cuts at random places of random files: no byte of a file is out of reach."""
    rng = random.Random(seed)
    told = 0
    data = shutil.copytree(intact, tmp_path / "data")
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and path.stat().st_size]
    for number in range(40):
        path = rng.choice(files)
        before = path.read_bytes()
        at = rng.randrange(len(before))
        after = DAMAGES[number % len(DAMAGES)](before, at, rng)
        path.write_bytes(after)
        told += bool(checked(data).findings)
        path.write_bytes(before)
    assert told >= 20, f"seed {seed}: only {told} of 40 damages were seen"
    assert checked(data).findings == []


# Checksums ----------------------------------------------------------------------------------------


def add_checksums(data: Path) -> None:
    """Give every shard the CRC-32 of its range, as newer files have it."""
    names = {name[1] for name in pragma_rows(data, "PRAGMA table_info(shards)")}
    if "crc" not in names:
        silent("ALTER TABLE shards ADD COLUMN crc INTEGER")(data)
    for batch, index, offset, length in pragma_rows(
        data, "SELECT batch, idx, off, len FROM shards"
    ):
        path = data / "segments" / segments.batch_prefix(batch) / "requests"
        crc = zlib.crc32(path.read_bytes()[offset : offset + length])
        change(data, "UPDATE shards SET crc = ? WHERE batch = ? AND idx = ?", crc, batch, index)


def pragma_rows(data: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(data / "ledger.db")) as db:
        return db.execute(statement).fetchall()


def test_a_changed_byte_inside_params_is_found_by_its_checksum(data: Path) -> None:
    add_checksums(data)
    assert checked(data).findings == []
    requests("part", lambda d: d.replace(b'"m"', b'"n"', 1))(data)
    (found,) = checked(data).findings
    assert (found.rule, found.shard, found.offset) == ("requests-checksum", 0, 0)


# What is no data directory ------------------------------------------------------------------------


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the data directory of a yard"):
        checked(tmp_path)
    with pytest.raises(ConfigError, match="is not a directory"):
        checked(tmp_path / "nothing")


def test_a_lock_that_cannot_be_opened_is_told(data: Path) -> None:
    (data / "lock").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="cannot read"):
        checked(data)


def test_an_older_ledger_is_read_without_being_migrated(data: Path) -> None:
    silent("ALTER TABLE batches DROP COLUMN user_profile")(data)
    silent("PRAGMA user_version = 1")(data)
    before = (data / "ledger.db").read_bytes()
    assert checked(data).findings == []
    assert (data / "ledger.db").read_bytes() == before
