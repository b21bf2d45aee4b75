"""A large body is written and digested in pieces, in a thread, while the next ones arrive."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from helpers_yard import BATCHES, HEADERS, QUICK, Answer, Yard, assert_answered, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers_upstream import Upstream

PIECE_BYTES = 4_096  # so that a body of some hundred requests is many pieces
PROMPTS = [f"spooled-{n}|" + "message," * (n % 60) + "message" for n in range(300)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Yard]:
    data = tmp_path_factory.mktemp("spooling") / "data"
    bounds = QUICK | {"limits:SPOOL_PIECE_BYTES": PIECE_BYTES}
    with Yard(data, upstream.url, bounds=bounds) as yard:
        yield yard


def body() -> bytes:
    return json.dumps({"requests": [request(prompt) for prompt in PROMPTS]}).encode()


def cut(data: bytes, seed: int) -> Iterator[bytes]:
    """Yield a body in chunks of any size, about pieces and far from them."""
    rng, at = random.Random(seed), 0
    while at < len(data):
        step = rng.choice([1, 7, 1_000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 20_000])
        yield data[at : at + step]
        at += step


def send(yard: Yard, data: bytes, seed: int, **headers: str) -> Answer:
    sized = HEADERS | {"content-length": str(len(data))} | headers
    return yard.request("POST", BATCHES, cut(data, seed), sized)


@pytest.mark.parametrize("seed", range(3))
def test_every_byte_arrives_wherever_the_client_cuts_the_body(small: Yard, seed: int) -> None:
    answer = send(small, body(), seed)
    assert answer.status == 200, answer.body
    batch = answer.json()
    small.wait_ended(batch["id"])
    assert_answered(small.results(batch["id"]), PROMPTS)


def test_the_digest_of_a_body_is_of_all_its_pieces_in_order(small: Yard) -> None:
    """The same content under the same key is the same batch; other content is refused."""
    key = {"idempotency-key": "spooled"}
    whole = body()
    first = send(small, whole, 4, **key)
    assert first.status == 200, first.body
    assert send(small, whole, 5, **key).json()["id"] == first.json()["id"]
    middle = whole.index(b"spooled-150|")
    early = whole.index(b"spooled-1|")
    for at in (early, middle, len(whole) - 300):
        other = whole[:at] + b"S" + whole[at + 1 :]
        assert other != whole
        refused = send(small, other, 6, **key)
        assert refused.status == 400, refused.body
        assert b"other content" in refused.body
    assert not [name for name in small.files() if name.startswith("spool")]
