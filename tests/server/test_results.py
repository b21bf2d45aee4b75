"""The stream of results and the progress of a batch."""

from __future__ import annotations

import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, Yard, answer_text, poll, request

if TYPE_CHECKING:
    import http.client

    from helpers_upstream import Upstream

READERS = 12


@pytest.fixture(scope="module")
def ended(shared_yard: Yard) -> tuple[Yard, str, set[str]]:
    """A batch of some shards that has ended, of 12 MB."""
    names = {f"result-{n:04}" for n in range(1_300)}
    padding = "x" * 9_000
    requests = [request(f"{name}|message,{padding}", name) for name in sorted(names)]
    batch_id = shared_yard.create(requests)["id"]
    shared_yard.wait_ended(batch_id)
    return shared_yard, f"{BATCHES}/{batch_id}/results", names


def test_before_the_end_there_are_no_results(yard: Yard, upstream: Upstream) -> None:
    batch_id = yard.create([request("early|hold:early")])["id"]
    for _ in ("in progress", "canceling"):
        answer = yard.get(f"{BATCHES}/{batch_id}/results")
        assert answer.status == 404
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"] == {
            "type": "not_found_error",
            "message": f"Message Batch {batch_id} has no available results.",
        }
        yard.post(f"{BATCHES}/{batch_id}/cancel", b"")
    upstream.gate("early").open()
    yard.wait_ended(batch_id)
    assert yard.get(f"{BATCHES}/{batch_id}/results").status == 200


def test_the_stream_is_framed(ended: tuple[Yard, str, set[str]]) -> None:
    yard, path, names = ended
    answer = yard.request("GET", path, headers=HEADERS | {"accept": "application/binary"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/x-jsonl"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.headers["content-length"] is None
    assert answer.headers["request-id"]
    lines = answer.body.split(b"\n")
    assert lines.pop() == b""
    assert b"" not in lines
    assert b"\r" not in answer.body
    found = {}
    for line in lines:
        parsed = json.loads(line)
        assert list(parsed) == ["custom_id", "result"]
        found[parsed["custom_id"]] = parsed["result"]
    assert len(lines) == len(found)
    assert set(found) == names
    for name, result in found.items():
        assert answer_text(result).startswith(f"echo of {name}|")
        assert result["message"]["usage"]["service_tier"] == "batch"


def test_many_readers_get_the_same_bytes(ended: tuple[Yard, str, set[str]]) -> None:
    yard, path, _ = ended
    with ThreadPoolExecutor(READERS) as threads:
        bodies = list(threads.map(lambda _: yard.get(path).body, range(READERS)))
    assert len(set(bodies)) == 1


def test_the_results_url_is_the_address_of_the_results(
    ended: tuple[Yard, str, set[str]],
) -> None:
    yard, path, _ = ended
    batch = yard.get(path.removesuffix("/results")).json()
    assert batch["results_url"] == yard.url + path


def test_readers_that_vanish_do_no_harm(ended: tuple[Yard, str, set[str]]) -> None:
    """They take a little, then go: half of them without a word, half with a reset."""
    yard, path, names = ended
    for number in range(10):
        connection = socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S)
        with closing(connection):
            lines = [f"GET {path} HTTP/1.1", "host: localhost"]
            lines += [f"{key}: {value}" for key, value in HEADERS.items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            assert connection.recv(1_000)
            if number % 2:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert len(yard.get(path).lines()) == len(names)
    # Every one of their connections is let go.
    poll(lambda: open_sockets(yard) <= 2, lambda: f"{open_sockets(yard)} sockets are open")


def open_sockets(yard: Yard) -> int:
    """Return how many clients are connected to the yard."""
    assert yard.process is not None
    here = f"0100007F:{yard.port:04X}"
    with open(f"/proc/{yard.process.pid}/net/tcp") as table:  # noqa: PTH123 - not a file
        rows = [line.split() for line in table.readlines()[1:]]
    established = "01"
    return sum(row[1] == here and row[3] == established for row in rows)


def test_results_stay_after_the_answer_of_a_head_or_a_wrong_method(
    ended: tuple[Yard, str, set[str]],
) -> None:
    yard, path, _ = ended
    assert yard.request("HEAD", path).status == 405
    assert yard.get(path).status == 200


# Progress -------------------------------------------------------------------------------------

PROGRESS_KEYS = [
    "id",
    "type",
    "processing_status",
    "requests",
    "results",
    "counts",
    "in_flight",
    "shards",
    "shards_done",
    "priority",
    "billing",
    "tokens",
    "paused",
    "waiting",
    "calls",
    "repeated_calls",
    "unknown_calls",
    "failed_calls",
    "failing",
    "damaged",
    "as_of",
    "estimate",
]


def test_progress_moves_while_the_compatible_object_does_not(
    yard: Yard, upstream: Upstream
) -> None:
    held = [f"progress-{n}|hold:progress" for n in range(3)]
    free = [f"progress-free-{n}" for n in range(4)]
    bad = request("progress-bad", stream=True)
    batch = yard.create([*map(request, held + free), bad])
    yard.wait_progress(batch["id"], lambda p: p["results"] == 5 and p["in_flight"] == 3)

    progress = yard.progress(batch["id"])
    assert list(progress) == PROGRESS_KEYS
    assert progress["id"] == batch["id"]
    assert progress["type"] == "message_batch_progress"
    assert progress["processing_status"] == "in_progress"
    assert progress["requests"] == 8
    assert progress["counts"] == {"succeeded": 4, "errored": 1, "canceled": 0, "expired": 0}
    assert (progress["shards"], progress["shards_done"]) == (1, 0)
    assert progress["billing"] == "standard"
    assert yard.batch(batch["id"])["request_counts"]["processing"] == 8

    upstream.gate("progress").open()
    yard.wait_ended(batch["id"])
    final = yard.progress(batch["id"])
    assert final["processing_status"] == "ended"
    assert final["results"] == 8
    assert final["counts"] == {"succeeded": 7, "errored": 1, "canceled": 0, "expired": 0}
    assert final["in_flight"] == 0


def events(response: http.client.HTTPResponse) -> list[dict[str, Any]]:
    """Read server-sent events to the end of the stream."""
    found = []
    for block in response.read().decode().split("\n\n")[:-1]:
        kind, data = block.split("\n")
        assert kind == "event: progress"
        found.append(json.loads(data.removeprefix("data: ")))
    return found


def test_progress_as_events_until_the_end(yard: Yard, upstream: Upstream) -> None:
    batch = yard.create([request("events-1|hold:events"), request("events-2")])
    with closing(yard.connect()) as connection:
        headers = HEADERS | {"accept": "text/event-stream"}
        connection.request("GET", f"{BATCHES}/{batch['id']}/progress", headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        first = response.readline()
        upstream.gate("events").open()
        seen = response.readline()
        assert first == b"event: progress\n"
        assert json.loads(seen.removeprefix(b"data: "))["requests"] == 2
        assert response.readline() == b"\n"
        rest = events(response)
    assert [list(event) for event in rest] == [PROGRESS_KEYS] * len(rest)
    assert rest[-1]["processing_status"] == "ended"
    assert rest[-1]["results"] == 2
    results = [event["results"] for event in rest]
    assert results == sorted(results)


def test_a_watcher_that_vanishes_is_let_go(yard: Yard, upstream: Upstream) -> None:
    batch = yard.create([request("watched|hold:watched")])
    before = open_sockets(yard)
    with closing(yard.connect()) as connection:
        headers = HEADERS | {"accept": "text/event-stream"}
        connection.request("GET", f"{BATCHES}/{batch['id']}/progress", headers=headers)
        with closing(connection.getresponse()) as response:
            assert response.readline()
    poll(lambda: open_sockets(yard) <= before, lambda: "the watcher's connection stays")
    upstream.gate("watched").open()
    yard.wait_ended(batch["id"])


def test_progress_never_goes_back(yard: Yard) -> None:
    """Read as fast as possible, over the end of the batch: no glance shows less than before."""
    for round_number in range(20):
        batch = yard.create([request(f"mono-{round_number}-{n}") for n in range(3)])
        last = 0
        while True:
            progress = yard.progress(batch["id"])
            assert progress["results"] >= last, progress
            last = progress["results"]
            if progress["processing_status"] == "ended":
                assert last == 3
                break
            assert progress["shards"] == 1, progress
