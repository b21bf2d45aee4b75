"""How much of a limit that moves is used: a whole yard before a loopback upstream, in real time.

    python bench/limits.py [--seconds 20] [--latency 0.2] [--retry-after] [--stray 0.03]

The upstream allows 50 calls a second, then 200, then 20, from a bucket of half a second, and
refuses the others with 429. Printed are, for each of the three, the share of what was allowed that
was used, over the second half and over the whole time, and the share of calls that were refused.

With `--stray` there is no limit, but that share of the calls is refused for no reason: then the
share of what 64 slots can do is printed. With `--retry-after` as well, each of them is told to wait
for five seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import threading
import time
from typing import TYPE_CHECKING

import yard

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

PHASES = (50.0, 200.0, 20.0)
BUCKET_S = 0.5
STRAY_WAIT_S = 5
SLOTS = 64  # of a pool, unless configured otherwise


def _reply(status: str, body: bytes, *headers: str) -> bytes:
    length = f"content-length: {len(body)}"
    head = [f"HTTP/1.1 {status}", "content-type: application/json", length, *headers, "", ""]
    return "\r\n".join(head).encode() + body


ACCEPTED = _reply(
    "200 OK",
    b'{"id":"msg_01stub","type":"message","role":"assistant","model":"stub","content":[{"type":'
    b'"text","text":"Yes."}],"stop_reason":"end_turn","stop_sequence":null,"usage":'
    b'{"input_tokens":600,"output_tokens":3}}',
)
REFUSAL = b'{"type":"error","error":{"type":"rate_limit_error","message":"too many requests"}}'


class Upstream:
    """An upstream with a limit that moves, in a thread of its own."""

    def __init__(
        self, seconds: float, latency_s: float, *, says_when: bool, stray: float = 0.0
    ) -> None:
        self.port = 0
        self.accepted: list[float] = []
        """When calls were accepted, in seconds since the first call."""
        self.refused: list[float] = []
        self._seconds = seconds
        self._latency_s = latency_s
        self._says_when = says_when
        self._stray = stray
        self._rng = random.Random(1)
        self._begin_s: float | None = None
        self._level = 1.0
        self._at_s = 0.0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def limit(self, now_s: float) -> float:
        return PHASES[min(int(now_s / self._seconds), len(PHASES) - 1)]

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                at = head.lower().index(b"content-length:")
                await reader.readexactly(int(head[at + 15 :].split(b"\r\n", 1)[0]))
                writer.write(await self._answer())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self) -> bytes:
        if self._begin_s is None:
            self._begin_s = time.monotonic()
        now_s = time.monotonic() - self._begin_s
        if self._stray:
            return await self._answer_free(now_s)
        limit = self.limit(now_s)
        self._level = min(limit * BUCKET_S, self._level + (now_s - self._at_s) * limit)
        self._at_s = now_s
        if self._level < 1.0:
            self.refused.append(now_s)
            wait_s = math.ceil((1.0 - self._level) / limit)
            headers = [f"retry-after: {wait_s}"] if self._says_when else []
            return _reply("429 Too Many Requests", REFUSAL, *headers)
        self._level -= 1.0
        self.accepted.append(now_s)
        await asyncio.sleep(self._latency_s)
        return ACCEPTED

    async def _answer_free(self, now_s: float) -> bytes:
        if self._rng.random() < self._stray:
            self.refused.append(now_s)
            headers = [f"retry-after: {STRAY_WAIT_S}"] if self._says_when else []
            return _reply("429 Too Many Requests", REFUSAL, *headers)
        self.accepted.append(now_s)
        await asyncio.sleep(self._latency_s)
        return ACCEPTED


def show_free(upstream: Upstream, seconds: float, latency_s: float) -> None:
    """Print what was done of what the slots can do."""
    done = sum(at_s < seconds for at_s in upstream.accepted)
    refused = sum(at_s < seconds for at_s in upstream.refused)
    print(f"limits    none, but {refused:,} of {refused + done:,} calls refused for no reason: "
          f"{done * latency_s / seconds / SLOTS:.0%} of what {SLOTS} slots can do")  # fmt: skip


def show(upstream: Upstream, seconds: float) -> None:
    """Print what was used of each limit."""
    shares = []
    for phase, limit in enumerate(PHASES):
        begin_s, end_s = phase * seconds, (phase + 1) * seconds
        half_s = begin_s + seconds / 2
        whole = sum(begin_s <= at_s < end_s for at_s in upstream.accepted) / (limit * seconds)
        second = sum(half_s <= at_s < end_s for at_s in upstream.accepted) / (limit * seconds / 2)
        shares.append(f"{limit:.0f}/s: {second:.0%} ({whole:.0%} from its first second on)")
    end_s = seconds * len(PHASES)
    refused = sum(at_s < end_s for at_s in upstream.refused)
    sent = refused + sum(at_s < end_s for at_s in upstream.accepted)
    print(f"limits    used of {', of '.join(shares)}; {refused} of {sent:,} calls refused, "
          f"{refused / sent:.1%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each limit")
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--retry-after", action="store_true", help="tell when to come again")
    parser.add_argument("--stray", type=float, default=0.0, help="share refused for no reason")
    options = parser.parse_args()
    requests = round(sum(PHASES) * (options.seconds + 5))
    if options.stray:
        requests = round(SLOTS / options.latency * (3 * options.seconds + 5))
    with (
        Upstream(
            options.seconds, options.latency, says_when=options.retry_after, stray=options.stray
        ) as upstream,
        yard.yard(f"stub=http://127.0.0.1:{upstream.port}") as server,
    ):
        server.request("POST", "/v1/messages/batches", yard.body(requests, 500))
        end_s = options.seconds * len(PHASES)
        while not upstream.accepted or upstream.accepted[-1] < end_s:
            time.sleep(0.1)
        if options.stray:
            show_free(upstream, end_s, options.latency)
        else:
            show(upstream, options.seconds)


if __name__ == "__main__":
    main()
