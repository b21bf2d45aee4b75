"""A loopback upstream that answers every POST with one message: the limit of what can be measured.

A bare protocol on uvloop, so that the stub is never the bottleneck of a benchmark. It prints its
port. For the peers it also speaks the other dialect: the path decides. A body is not kept, only its
bytes are counted, but for `--count`: then each call must hold a mark `doc-` with six digits, and
`GET /calls` tells how many calls came and for how many different marks. With a latency, `GET /most`
tells how many calls there were at once, and when the first came, by the monotonic clock.

    python bench/stub.py [--latency SECONDS] [--answer BYTES] [--count]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import uvloop

SENTENCE = "The project is a library. "
BATCH = {
    "id": "msgbatch_01stub",
    "type": "message_batch",
    "processing_status": "in_progress",
    "request_counts": dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0)
    | {"processing": 1},
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": "2026-01-02T00:00:00Z",
    "ended_at": None,
    "cancel_initiated_at": None,
    "archived_at": None,
    "results_url": None,
}
MODELS = {
    "object": "list",
    "data": [{"id": "bench", "object": "model", "created": 0, "owned_by": "bench"}],
}


def message(text: str) -> dict[str, object]:
    return {
        "id": "msg_01stub",
        "type": "message",
        "role": "assistant",
        "model": "stub",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 600, "output_tokens": 120, "service_tier": "standard"},
    }


def completion(text: str) -> dict[str, object]:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    return {
        "id": "chatcmpl-01stub",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [choice],
        "usage": {"prompt_tokens": 600, "completion_tokens": 120, "total_tokens": 720},
    }


def reply(value: object, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    kind = b"content-type: application/json"
    head = [b"HTTP/1.1 " + status, kind, b"request-id: req_01stub", *headers]
    return b"\r\n".join([*head, b"content-length: %d" % len(body), b"", body])


class Stub(asyncio.Protocol):
    """One connection. What all share is set before the server listens."""

    latency = 0.0
    counts: dict[bytes, int] | None = None
    answers: dict[bytes, bytes] = {}  # noqa: RUF012
    open = most = 0  # calls at this moment, and the most there were at once
    first_s: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.buffer = b""
        self.loop = asyncio.get_running_loop()
        self.path = b""
        self.missing = 0  # bytes of the body that is being read and not kept
        self.mark = b""  # of the call that is being answered, where calls are counted

    def data_received(self, data: bytes) -> None:
        if self.missing:
            taken = min(self.missing, len(data))
            self.missing -= taken
            if self.missing:
                return
            data = data[taken:]
            self._answer()
        self.buffer = self.buffer + data if self.buffer else data
        while self.buffer and self._take():
            pass

    def _take(self) -> bool:
        """Take one call from the buffer; false when its end has not come."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self.buffer[:end]
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        whole = end + 4 + length
        short = whole - len(self.buffer)
        if short > 0 and Stub.counts is not None:
            return False
        self.path = head[: head.find(b" HTTP/")]
        if Stub.counts is not None and length:
            body = self.buffer[end + 4 : whole]
            self.mark = body[body.index(b"doc-") :][:10]
            Stub.counts[self.mark] = Stub.counts.get(self.mark, 0) + 1
        self.buffer = self.buffer[whole:]
        if short > 0:
            self.missing = short
            return False
        self._answer()
        return True

    def _answer(self) -> None:
        if self.path.startswith(b"GET"):
            self.transport.write(self._told())
            return
        if Stub.latency:
            self._answer_after(Stub.latency, self._accepted())
        else:
            self.transport.write(self._accepted())

    def _accepted(self) -> bytes:
        path = self.path.partition(b"?")[0].rpartition(b"/")[2]
        return Stub.answers.get(path, Stub.answers[b"messages"])

    def _answer_after(self, latency_s: float, answer: bytes) -> None:
        if Stub.first_s is None:
            Stub.first_s = time.monotonic()
        Stub.open += 1
        Stub.most = max(Stub.most, Stub.open)
        self.loop.call_later(latency_s, self._late, answer)

    def _late(self, answer: bytes) -> None:
        Stub.open -= 1
        if not self.transport.is_closing():  # who called may have been killed meanwhile
            self.transport.write(answer)

    def _told(self) -> bytes:
        if self.path == b"GET /calls" and Stub.counts is not None:
            return reply({"calls": sum(Stub.counts.values()), "marks": len(Stub.counts)})
        if self.path == b"GET /most":
            return reply({"most": Stub.most, "first_s": Stub.first_s})
        if self.path.endswith(b"/models"):
            return reply(MODELS)
        if self.path.endswith(b"/health"):
            return reply({})
        return reply({}, b"404 Not Found")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--answer", type=int, default=len(SENTENCE) * 20)
    parser.add_argument("--count", action="store_true")
    options = parser.parse_args()
    Stub.latency = options.latency
    Stub.counts = {} if options.count else None
    await serve(Stub, options.answer)


async def serve(connection: type[Stub], size: int = len(SENTENCE) * 20) -> None:
    """Answer with texts of about so many bytes, for ever."""
    text = SENTENCE * (size // len(SENTENCE))
    Stub.answers = {
        b"messages": reply(message(text)),
        b"completions": reply(completion(text)),
        b"batches": reply(BATCH),
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
