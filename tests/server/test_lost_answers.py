"""A network that loses answers, between an unmodified client and the yard."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import anthropic
import pytest

from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, Yard, request

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Proxy:
    """Passes whole requests on, one per connection; swallows the first answers."""

    def __init__(self, port: int, *, swallow: int) -> None:
        self._target = port
        self._swallow = swallow
        self.answers = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with closing(client):
                self._pass(client)

    def _pass(self, client: socket.socket) -> None:
        client.settimeout(DEADLINE_S)
        data = b""
        while b"\r\n\r\n" not in data:
            data += client.recv(65_536)
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        while len(body) < length:
            body += client.recv(65_536)
        head = head.replace(b"onnection: keep-alive", b"onnection: close")
        with closing(socket.create_connection(("127.0.0.1", self._target), DEADLINE_S)) as target:
            target.sendall(head + b"\r\n\r\n" + body)
            answer = b""
            while part := target.recv(65_536):
                answer += part
        self.answers += 1
        if self.answers > self._swallow:
            client.sendall(answer)


@pytest.mark.parametrize("generation", ["2023-06-01", "2026-10-21"])
def test_a_create_whose_answers_were_lost_leaves_one_batch(yard: Yard, generation: str) -> None:
    """The client repeats the call by itself, twice, and names no key."""
    name = f"lost-{generation}"
    before = {batch["id"] for batch in yard.get(f"{BATCHES}?limit=1000").json()["data"]}
    with (
        Proxy(yard.port, swallow=2) as proxy,
        anthropic.Anthropic(
            api_key="sk-proxy",
            base_url=f"http://127.0.0.1:{proxy.port}",
            default_headers={"anthropic-version": generation},
        ) as client,
    ):
        batch = client.messages.batches.create(requests=[request(name)])  # type: ignore[list-item]
        assert proxy.answers == 3
    after = {batch["id"] for batch in yard.get(f"{BATCHES}?limit=1000").json()["data"]}
    assert after - before == {batch.id}
    yard.wait_ended(batch.id)


def test_calls_that_change_nothing_twice_survive_lost_answers(yard: Yard) -> None:
    batch_id = yard.create([request("lost-cancel")])["id"]
    yard.wait_ended(batch_id)
    with (
        Proxy(yard.port, swallow=2) as proxy,
        anthropic.Anthropic(
            api_key="sk-proxy", base_url=f"http://127.0.0.1:{proxy.port}"
        ) as client,
    ):
        assert client.messages.batches.cancel(batch_id).processing_status == "ended"
        assert proxy.answers == 3
