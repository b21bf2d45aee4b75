"""The log of the ledger is cut at any byte, or a bit of it flips: what is left is a prefix.

Not of bytes: of transactions. Each is whole or absent, and none is there without those before it.
`BATCHYARD_TORN_STEP=1`, as in `make power`, tries every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.errors import ConfigError
from batchyard.ledger import Commit, CreateKey
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Batch, Counts, Extent, ShardPlan, Tokens
from helpers_inline import InlineExecutor

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

STEP = int(os.environ.get("BATCHYARD_TORN_STEP", "211"))
HEADER, FRAME = 32, 24 + 4_096  # of a log, by SQLite's file format
NOW = 1_790_000_000_000_000

Dump = list[Any]


@dataclass(frozen=True)
class Written:
    """A ledger as a kill leaves it: its file, its log, and what it held after each transaction."""

    file: bytes
    log: bytes
    dumps: list[Dump]


def dump(path: Path) -> Dump:
    """Return all that a ledger holds."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        identity = [
            db.execute(f"PRAGMA {p}").fetchone() for p in ("application_id", "user_version")
        ]
        return [identity, *(db.execute(f"SELECT * FROM {t}").fetchall() for t in tables)]


async def write(root: Path) -> Written:
    """Live through the transactions of two batches."""
    path = root / "ledger.db"
    dumps = [dump(root / "empty.db")]
    ledger = SqliteLedger(path, threads=InlineExecutor)
    dumps.append(dump(path))

    async def then(step: Coroutine[Any, Any, Any]) -> Any:
        answer = await step
        dumps.append(dump(path))
        return answer

    for number in range(2):
        await then(ledger.create(*batch(number)))
    claims = await then(ledger.claim("one", "up/m", NOW + 30, 10))
    for claim in claims:
        await then(ledger.commit("one", [commit(claim.batch, claim.index)]))
    await then(ledger.end("msgbatch_0", NOW + 50, Tokens(1, 2, 3, 4)))
    await then(ledger.cancel("w", "msgbatch_1", NOW + 60))
    (claim, *_) = await then(ledger.claim_void("one", NOW, NOW + 90, 1))
    await then(ledger.adopt("one", claim, [Extent("a/b/r/0.1.x", 100)]))
    await then(ledger.delete("w", "msgbatch_0", NOW + 70))
    await then(ledger.release("one"))
    written = Written(path.read_bytes(), path.with_name("ledger.db-wal").read_bytes(), dumps)
    await ledger.close()
    return written


def batch(number: int) -> tuple[Batch, list[ShardPlan], CreateKey]:
    batch_id = f"msgbatch_{number}"
    return (
        Batch(
            id=batch_id,
            workspace="w",
            requests=20,
            created_us=NOW + number,
            expires_us=NOW + 100,
            version="2023-06-01",
            billing="standard",
        ),
        [
            ShardPlan(index=n, pool="up/m", offset=n * 100, length=100, requests=10)
            for n in range(2)
        ],
        CreateKey(key=f"named:{number}", digest=b"d" * 32, until_us=NOW + 100, replaces=False),
    )


def commit(batch_id: str, index: int) -> Commit:
    return Commit(
        batch=batch_id,
        index=index,
        attempt=1,
        extents=(Extent(f"a/{batch_id}/r/{index}.1.x", 1_000),),
        counts=Counts(succeeded=10),
        tokens=Tokens(1, 2, 3, 4),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return asyncio.run(write(tmp_path_factory.mktemp("ledger")))


def reopened(room: Path, file: bytes, log: bytes) -> Path:
    """Put a ledger where another process can open it."""
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    (room / "ledger.db").write_bytes(file)
    (room / "ledger.db-wal").write_bytes(log)
    return room / "ledger.db"


def lengths(log: bytes) -> Iterator[int]:
    """Yield lengths to cut a log to: its seams, what is beside them, and every STEP-th byte."""
    seams = {HEADER + n * FRAME + d for n in range(len(log) // FRAME + 1) for d in (-1, 0, 1, 24)}
    yield from sorted(n for n in {*seams, *range(0, len(log), STEP)} if 0 <= n <= len(log))


@pytest.mark.timeout(3_600 if STEP == 1 else 900)
def test_a_log_that_was_cut_holds_a_prefix_of_the_transactions(
    written: Written, memory: Path
) -> None:
    newest = 0
    for length in lengths(written.log):
        found = dump(reopened(memory / "l", written.file, written.log[:length]))
        if found != written.dumps[newest]:
            # An empty file, and one with the schema alone, may look the same for a while.
            later = [n for n, d in enumerate(written.dumps) if d == found and n > newest]
            assert later, f"cut to {length} bytes it holds what it never held"
            assert later[0] == newest + 1, f"cut to {length} bytes a transaction is passed over"
            newest += 1
    assert newest == len(written.dumps) - 1, "the whole log holds everything"


@pytest.mark.timeout(3_600 if STEP == 1 else 900)
def test_a_flipped_bit_in_the_log_hides_it_and_what_follows(written: Written, memory: Path) -> None:
    for position in range(0, len(written.log), STEP):
        log = bytearray(written.log)
        log[position] ^= 1 << position % 8
        found = dump(reopened(memory / "l", written.file, bytes(log)))
        assert found in written.dumps, f"byte {position} changed and the ledger holds it"


def test_the_ledger_opens_at_every_seam_of_its_log(written: Written, memory: Path) -> None:
    """With all that an opening does: identity, schema, and taking back what was under way."""
    for frame in range(len(written.log) // FRAME + 1):
        for more in (-1, 0, 1, 2_000):
            log = written.log[: max(0, HEADER + frame * FRAME + more)]
            path = reopened(memory / "l", written.file, log)
            asyncio.run(open_and_close(path))


async def open_and_close(path: Path) -> None:
    ledger = SqliteLedger(path, threads=InlineExecutor)
    found = await ledger.live([f"msgbatch_{n}" for n in range(9)])
    assert found <= {f"msgbatch_{n}" for n in range(2)}
    await ledger.close()


@pytest.mark.parametrize("length", [1, 16, 100, 512, 4_095])
def test_a_ledger_file_without_its_first_page_is_refused(memory: Path, length: int) -> None:
    """It can only come from a damaged disk: a ledger that was begun has a whole page."""
    path = reopened(memory / "l", b"SQLite format 3\0" * 256, b"")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ConfigError, match="not a ledger"):
        SqliteLedger(path, threads=InlineExecutor)
