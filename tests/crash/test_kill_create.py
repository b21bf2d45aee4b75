"""SIGKILL around a create call: a batch exists with all its requests, or not at all."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING

from crash.checking import kill
from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, Yard, assert_answered, poll, request

if TYPE_CHECKING:
    from helpers_upstream import Upstream


def body_of(prompts: list[str]) -> bytes:
    return json.dumps({"requests": [request(prompt) for prompt in prompts]}).encode()


def head(length: int) -> bytes:
    lines = [f"POST {BATCHES} HTTP/1.1", "host: localhost", f"content-length: {length}"]
    lines += [f"{key}: {value}" for key, value in HEADERS.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_body_that_was_half_sent_leaves_nothing(yard: Yard, upstream: Upstream) -> None:
    body = body_of([f"half-{n}" for n in range(20_000)])
    for part in (0.0, 0.3, 0.9, 1.0):
        sent = min(int(len(body) * part), len(body) - 1)
        with closing(socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S)) as connection:
            connection.sendall(head(len(body)) + body[:sent])
            # Another request is answered, so the server has had its chance to read this one.
            assert yard.get(BATCHES).status == 200
            kill(yard)
        yard.start()
        assert yard.get(BATCHES).json()["data"] == []
        assert yard.files() == []
    assert upstream.calls == []


def test_what_was_answered_with_200_is_there_after_a_kill(yard: Yard) -> None:
    """The kill follows the first byte of the answer at once."""
    made = {}
    for number in range(6):
        prompts = [f"acknowledged-{number}-{n}" for n in range(300)]
        body = body_of(prompts)
        with closing(socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S)) as connection:
            connection.sendall(head(len(body)) + body)
            # Head and body are two writes, so the kill may come between them: the head counts.
            answer = connection.recv(12)
            kill(yard)
        assert answer == b"HTTP/1.1 200"
        yard.start()
        listed = {batch["id"] for batch in yard.get(BATCHES).json()["data"]}
        (new,) = listed - set(made)
        made[new] = prompts
        assert listed == set(made)
    for batch_id, prompts in made.items():
        yard.wait_ended(batch_id)
        assert_answered(yard.results(batch_id), prompts)


def test_a_create_that_was_cut_down_is_whole_or_absent(yard: Yard) -> None:
    """Killed while the whole body is there and no answer yet, at whatever step that is."""
    prompts = [f"cut-{n}" for n in range(3_000)]
    body = body_of(prompts)
    for number in range(8):
        with closing(socket.create_connection(("127.0.0.1", yard.port), DEADLINE_S)) as connection:
            connection.sendall(head(len(body)) + body[:-1])
            steps = threading.Event()
            watcher = threading.Thread(target=_watch, args=(yard, number, steps))
            watcher.start()
            connection.sendall(body[-1:])
            watcher.join()
            assert steps.is_set()
            kill(yard)
        yard.start()
        known = [batch["id"] for batch in yard.get(BATCHES).json()["data"]]
        owned = {path.name for path in (yard.data / "segments").glob("??/*")}
        assert owned == set(known), "segments without a batch, or a batch without segments"
        for batch_id in known:
            batch = yard.wait_ended(batch_id)
            assert batch["request_counts"]["succeeded"] == len(prompts)
            assert_answered(yard.results(batch_id), prompts)
            assert yard.request("DELETE", f"{BATCHES}/{batch_id}").status == 200


def _watch(yard: Yard, number: int, seen: threading.Event) -> None:
    """Return when the create call has come to some step."""
    root = yard.data / "segments"
    steps = [
        lambda: True,
        lambda: any(root.glob("??/*")),
        lambda: any(root.glob("??/*/.requests.*")) or any(root.glob("??/*/requests")),
        lambda: any(root.glob("??/*/requests")),
    ]
    poll(steps[number % len(steps)], lambda: f"step {number % len(steps)} of a create call")
    seen.set()


def test_an_idempotency_key_holds_over_a_kill(yard: Yard) -> None:
    body = body_of(["key-over-kill"])
    headers = HEADERS | {"idempotency-key": "k"}
    first = yard.post(BATCHES, body, headers).json()["id"]
    kill(yard)
    yard.start()
    assert yard.post(BATCHES, body, headers).json()["id"] == first
    retried = HEADERS | {"x-stainless-retry-count": "1"}
    second = yard.post(BATCHES, body).json()["id"]
    kill(yard)
    yard.start()
    assert yard.post(BATCHES, body, retried).json()["id"] == second
    assert second != first
