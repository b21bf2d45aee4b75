"""Parts of a results stream, and compressed ones."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from helpers_yard import BATCHES, HEADERS, Answer, request

if TYPE_CHECKING:
    from helpers_yard import Yard


@pytest.fixture(scope="module")
def ended(shared_yard: Yard) -> tuple[str, bytes]:
    """A batch of three shards that has ended: the path of its results, and all of them."""
    requests = [request(f"part-{n:04}|message,{'x' * 900}", f"part-{n:04}") for n in range(1_100)]
    batch_id = shared_yard.create(requests)["id"]
    shared_yard.wait_ended(batch_id)
    path = f"{BATCHES}/{batch_id}/results"
    return path, shared_yard.get(path).body


def ask(yard: Yard, path: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return yard.request("GET", path, headers=HEADERS | named)


def test_a_cut_transfer_can_be_continued(yard: Yard, ended: tuple[str, bytes]) -> None:
    path, body = ended
    whole = yard.get(path)
    assert whole.headers["accept-ranges"] == "bytes"
    for cut in (1, 1_000, len(body) // 2, len(body) - 1):
        rest = ask(yard, path, range=f"bytes={cut}-", if_range=whole.headers["etag"])
        assert rest.status == 206
        assert rest.headers["content-range"] == f"bytes {cut}-{len(body) - 1}/{len(body)}"
        assert int(rest.headers["content-length"]) == len(body) - cut
        assert body[:cut] + rest.body == body


def test_pieces_of_any_size_make_the_whole(yard: Yard, ended: tuple[str, bytes]) -> None:
    path, body = ended
    step = len(body) // 7 + 1
    pieces = [ask(yard, path, range=f"bytes={n}-{n + step - 1}") for n in range(0, len(body), step)]
    assert {piece.status for piece in pieces} == {206}
    assert b"".join(piece.body for piece in pieces) == body


def test_the_last_bytes_can_be_asked_for(yard: Yard, ended: tuple[str, bytes]) -> None:
    path, body = ended
    assert ask(yard, path, range="bytes=-500").body == body[-500:]


def test_a_range_of_another_version_gets_the_whole(yard: Yard, ended: tuple[str, bytes]) -> None:
    path, body = ended
    answer = ask(yard, path, range="bytes=10-", if_range='"another"')
    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize("header", ["bytes=0-9,20-29", "lines=1-2", "bytes=nonsense"])
def test_other_ranges_get_the_whole(yard: Yard, ended: tuple[str, bytes], header: str) -> None:
    path, body = ended
    answer = ask(yard, path, range=header)
    assert (answer.status, answer.body) == (200, body)


def test_a_range_behind_the_end_is_416(yard: Yard, ended: tuple[str, bytes]) -> None:
    path, body = ended
    answer = ask(yard, path, range=f"bytes={len(body)}-")
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{len(body)}"
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("accepted", ["gzip", "gzip, deflate", "br, GZIP;q=0.5"])
def test_who_accepts_gzip_gets_it(yard: Yard, ended: tuple[str, bytes], accepted: str) -> None:
    path, body = ended
    answer = ask(yard, path, accept_encoding=accepted)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "accept-encoding" in answer.headers["vary"]
    assert len(answer.body) < len(body) // 3
    assert gzip.decompress(answer.body) == body
    assert answer.headers["etag"] != yard.get(path).headers["etag"]


@pytest.mark.parametrize("accepted", ["identity", "deflate", "gzip;q=0", "gzip;q=0.0, br", "xgzip"])
def test_who_does_not_accept_gzip_gets_none(
    yard: Yard, ended: tuple[str, bytes], accepted: str
) -> None:
    path, body = ended
    answer = ask(yard, path, accept_encoding=accepted)
    assert answer.headers["content-encoding"] is None
    assert answer.body == body


def test_a_range_is_never_compressed(yard: Yard, ended: tuple[str, bytes]) -> None:
    path, body = ended
    answer = ask(yard, path, accept_encoding="gzip", range="bytes=5-")
    assert answer.status == 206
    assert answer.headers["content-encoding"] is None
    assert answer.body == body[5:]
