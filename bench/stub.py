"""A loopback upstream that answers every POST with one message: the limit of what can be measured.

A bare protocol on uvloop, so that the stub is never the bottleneck of a benchmark. Prints its port.

    python bench/stub.py [--latency SECONDS]
"""

from __future__ import annotations

import argparse
import asyncio

import uvloop

TEXT = "The project is a library. " * 20
BODY = (
    '{"id":"msg_01stub","type":"message","role":"assistant","model":"stub","content":'
    '[{"type":"text","text":"' + TEXT + '"}],"stop_reason":"end_turn","stop_sequence":null,'
    '"usage":{"input_tokens":600,"output_tokens":120,"service_tier":"standard"}}'
).encode()
REPLY = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nrequest-id: req_01stub\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY)
) + BODY


class Stub(asyncio.Protocol):
    latency = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.buffer = b""
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            if self.latency:
                self.loop.call_later(self.latency, self.transport.write, REPLY)
            else:
                self.transport.write(REPLY)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    Stub.latency = parser.parse_args().latency
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
