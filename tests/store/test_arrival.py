"""A batch that was written while it arrived is the one that is written from the whole body."""

from __future__ import annotations

import io
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import limits, segments, wire
from batchyard.dispatch.routes import Route, Routes
from batchyard.errors import InvalidRequest
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.requests import read_records
from batchyard.server import uploads
from batchyard.server.uploads import Arrival, Upload

if TYPE_CHECKING:
    from pathlib import Path

ROUTES = Routes([Route("up", ("a*",)), Route("down")])
BATCH = "msgbatch_01"
FIVE = {"type": "ephemeral"}


def entry(number: int, model: str = "a", **fields: Any) -> dict[str, Any]:
    size = random.Random(number).randrange(2_000)
    messages = [{"role": "user", "content": f"{number} " + "文x" * size}]
    params = {"model": model, "max_tokens": 1, "messages": messages, **fields}
    return {"custom_id": f"id-{number}", "params": params}


def system(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "cache_control": FIVE}]


BATCHES = {
    "one model": [entry(n) for n in range(1_700)],
    "two models in turn": [entry(n, "ab"[n % 2]) for n in range(1_700)],
    "two models one after the other": [entry(n, "ab"[n > 800]) for n in range(1_700)],
    "one cache": [entry(n, system=system("all")) for n in range(1_700)],
    "many caches": [entry(n, system=system(f"group {n % 9}")) for n in range(1_700)],
    "some caches": [entry(n, **({"system": system("s")} if n % 3 else {})) for n in range(1_700)],
    "a cache for each": [entry(n, system=system(f"own {n}")) for n in range(1_700)],
    "one request": [entry(0)],
}


def made(
    root: Path, body: bytes, piece: int | None
) -> tuple[list[Any], bytes, DirectorySegments, Arrival | None]:
    """Accept a body, in pieces as it arrives or, without `piece`, whole."""
    store = DirectorySegments(root / "segments")
    arrival = None
    if piece is not None:
        arrival = Arrival(BATCH, store, root)
        pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
        for part in pieces[:-1]:
            arrival.add([part[: len(part) // 2], part[len(part) // 2 :]])
        arrival.last = pieces[-1:]
    file = (root / "body").open("w+b")
    with file:
        file.write(body)
        file.flush()
        accepted = uploads.accept(Upload(file, b"", arrival), BATCH, ROUTES, store)
    name = segments.requests_name(BATCH)
    return list(accepted.shards), store.read(name, 0, store.size(name)), store, arrival


@pytest.mark.parametrize("piece", [100, 1_000_000, 1 << 30])
@pytest.mark.parametrize("kind", BATCHES)
def test_it_has_the_same_requests_in_the_same_pools(
    tmp_path: Path, kind: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SETTLE_BYTES", 500_000)
    body = wire.encode({"requests": BATCHES[kind][: 40 if piece == 100 else None]})
    (tmp_path / "whole").mkdir()
    (tmp_path / "pieces").mkdir()
    shards, data, _, _ = made(tmp_path / "whole", body, None)
    found, arrived, store, arrival = made(tmp_path / "pieces", body, piece)
    assert arrival is not None
    assert not arrival.has_begun, "it was written in pieces, and nothing is left to abandon"
    if kind == "a cache for each":
        # No two share anything: their order is no matter.
        assert sorted(read_records(arrived)) == sorted(read_records(data))
        assert [shard.requests for shard in found][:3] != []
    else:
        assert arrived == data
        assert found == shards
    assert sum(shard.length for shard in found) == len(arrived)
    names = store.names(f"{segments.batch_prefix(BATCH)}/")
    assert names == [segments.requests_name(BATCH)], "no draft is left"


def test_requests_that_share_nothing_stay_as_they_arrived(tmp_path: Path) -> None:
    requests = BATCHES["a cache for each"]
    _, data, _, _ = made(tmp_path, wire.encode({"requests": requests}), 1_000_000)
    assert [custom_id for custom_id, _ in read_records(data)] == [r["custom_id"] for r in requests]


@pytest.mark.parametrize("at", [0, 0.5, 1])
@pytest.mark.parametrize(
    "last", ['{"custom_id":"x","params":{"a":1,"a":2}}', '{"custom_id":"x"}', "{"]
)
def test_a_body_that_is_wrong_anywhere_leaves_nothing(tmp_path: Path, last: str, at: float) -> None:
    texts = [json.dumps(each) for each in BATCHES["one model"]]
    texts.insert(int(at * len(texts)), last)
    body = f'{{"requests": [{", ".join(texts)}]}}'.encode()
    errors = []
    for piece in (None, 300_000):
        root = tmp_path / str(piece)
        root.mkdir()
        with pytest.raises(InvalidRequest) as error:
            made(root, body, piece)
        errors.append(str(error.value))
        assert not [path for path in (root / "segments").rglob("*") if path.is_file()]
        assert DirectorySegments(root / "segments").batches() == []
    assert errors[0] == errors[1], "it is told in the same words"


def test_a_batch_that_is_abandoned_leaves_nothing_and_is_not_accepted(tmp_path: Path) -> None:
    store = DirectorySegments(tmp_path / "segments")
    arrival = Arrival(BATCH, store, tmp_path)
    body = wire.encode({"requests": BATCHES["one model"]})
    arrival.add([body[: len(body) // 2]])
    assert arrival.has_begun
    assert store.batches() == [BATCH]
    arrival.abandon()
    arrival.abandon()
    assert store.batches() == []
    arrival.add([body[len(body) // 2 :]])
    assert arrival.accept(ROUTES) is None
    assert store.batches() == []


def test_an_empty_body_is_told(tmp_path: Path) -> None:
    store = DirectorySegments(tmp_path / "segments")
    upload = Upload(io.BytesIO(), b"", Arrival(BATCH, store, tmp_path))
    with pytest.raises(InvalidRequest, match="it is empty"):
        uploads.accept(upload, BATCH, ROUTES, store)
