"""A network that loses answers, between the unmodified clients and the yard."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import anthropic
import pytest

from helpers_clients import CLIENTS, run
from helpers_upstream import DEADLINE_S, Upstream
from helpers_yard import BATCHES, QUICK, Yard, request

if TYPE_CHECKING:
    from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    data = tmp_path_factory.mktemp("lost") / "data"
    with Upstream() as upstream, Yard(data, upstream.url, bounds=QUICK) as running:
        yield running
        log = running.read_log()
        assert "Traceback" not in log, log


@pytest.mark.parametrize("name", CLIENTS)
def test_a_create_whose_answers_were_lost_leaves_one_batch(yard: Yard, name: str) -> None:
    """The client repeats the call by itself, twice, and names no key."""
    client = CLIENTS[name]
    custom_id = f"lost-{name.replace('.', '-')}"
    before = {batch["id"] for batch in yard.get(f"{BATCHES}?limit=1000").json()["data"]}
    with Proxy(yard.port, swallow=2) as proxy:
        made = run(client.driver("create", f"http://127.0.0.1:{proxy.port}", custom_id))
        assert proxy.answers == 3
    assert made["version"].startswith(client.version)
    after = {batch["id"] for batch in yard.get(f"{BATCHES}?limit=1000").json()["data"]}
    assert after - before == {made["id"]}
    yard.wait_ended(made["id"])
    assert set(yard.results(made["id"])) == {custom_id}


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
