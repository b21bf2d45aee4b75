"""A loopback upstream that behaves as real ones do: it varies, refuses, fails and hangs.

What it does with a call depends on the mark in its body and on how often that came, not on when or
from whom: so each system meets the same. It prints its port; `GET /told` says what happened, in
seconds since the first call.

    python bench/upstream.py [--median SECONDS [--p99 SECONDS]] [--limits SECONDS] [--retry-after]
                             [--stray SHARE] [--faults]
"""

from __future__ import annotations

import argparse
import math
import random

import uvloop
from stub import Stub, reply, serve

SEED = 5
PHASES = (50.0, 200.0, 20.0)  # calls a second
BUCKET_S = 0.5  # how much of a limit may be used at once
STRAY_WAIT_S = 5
P99_DEVIATIONS = 2.326
FAULTS = {"failed": 0.05, "reset": 0.02, "hung": 0.005}  # of the calls
INVALID = 0.01  # of the requests
ERRORS = {
    "failed": (b"500 Internal Server Error", "api_error", "an internal error"),
    "invalid": (b"400 Bad Request", "invalid_request_error", "this request is invalid"),
    "refused": (b"429 Too Many Requests", "rate_limit_error", "too many requests"),
}


def latency_s(mark: bytes, median_s: float, p99_s: float) -> float:
    """Return how long an answer takes, of a log-normal distribution."""
    if p99_s <= median_s:
        return median_s
    width = math.log(p99_s / median_s) / P99_DEVIATIONS
    return random.Random(f"{SEED} {mark!r}").lognormvariate(math.log(median_s), width)


def is_invalid(mark: bytes) -> bool:
    """Tell whether a request is one that the upstream will never take."""
    return random.Random(f"{SEED} invalid {mark!r}").random() < INVALID


def fault(mark: bytes, attempt: int) -> str | None:
    """Return what goes wrong with a call."""
    drawn = random.Random(f"{SEED} {attempt} {mark!r}").random()
    for name, share in FAULTS.items():
        if drawn < share:
            return name
        drawn -= share
    return None


class Bucket:
    """A limit that changes after so many seconds, and again after as many."""

    def __init__(self, phase_s: float) -> None:
        self._phase_s = phase_s
        self._level = PHASES[0] * BUCKET_S
        self._at_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Take one call; return 0, or how long until there is room for it."""
        limit = PHASES[min(int(now_s / self._phase_s), len(PHASES) - 1)]
        self._level = min(limit * BUCKET_S, self._level + (now_s - self._at_s) * limit)
        self._at_s = now_s
        if self._level < 1.0:
            return (1.0 - self._level) / limit
        self._level -= 1.0
        return 0.0


class Upstream(Stub):
    """One connection."""

    options: argparse.Namespace
    bucket: Bucket | None = None
    begin_s: float | None = None
    told: dict[str, list[float]] = {}  # noqa: RUF012 - shared, as all of the stub is

    def _answer(self) -> None:
        if self.path.startswith(b"GET"):
            super()._answer()
            return
        if Upstream.begin_s is None:
            Upstream.begin_s = self.loop.time()
        now_s = self.loop.time() - Upstream.begin_s
        verdict, wait_s = self._judge(now_s)
        Upstream.told.setdefault(verdict, []).append(round(now_s, 4))
        if verdict == "accepted":
            took_s = latency_s(self.mark, self.options.median, self.options.p99)
            self._answer_after(took_s, self._accepted())
        elif verdict == "reset":
            self.transport.abort()
        elif verdict != "hung":
            self.transport.write(self._error(verdict, wait_s))

    def _judge(self, now_s: float) -> tuple[str, float]:
        """Return what becomes of the call, and when one that is refused may come again."""
        assert Stub.counts is not None
        attempt = Stub.counts[self.mark]
        if self.options.faults:
            invalid = "invalid" if is_invalid(self.mark) else None
            return fault(self.mark, attempt) or invalid or "accepted", 0.0
        stray = random.Random(f"{SEED} {attempt} {self.mark!r}").random() < self.options.stray
        if stray:
            return "refused", STRAY_WAIT_S
        wait_s = Upstream.bucket.wait_s(now_s) if Upstream.bucket else 0.0
        return "refused" if wait_s else "accepted", wait_s

    def _error(self, verdict: str, wait_s: float) -> bytes:
        status, kind, text = ERRORS[verdict]
        headers = []
        if verdict == "refused" and self.options.retry_after:
            headers = [b"retry-after: %d" % math.ceil(wait_s)]
        error = {"type": "error", "error": {"type": kind, "message": text}}
        return reply(error, status, *headers)

    def _told(self) -> bytes:
        return reply(Upstream.told) if self.path == b"GET /told" else super()._told()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--median", type=float, default=0.2)
    parser.add_argument("--p99", type=float, default=0.0, help="0: all take as long")
    parser.add_argument("--limits", type=float, default=0.0, help="seconds of each limit")
    parser.add_argument("--retry-after", action="store_true")
    parser.add_argument("--stray", type=float, default=0.0, help="share refused for no reason")
    parser.add_argument("--faults", action="store_true")
    Upstream.options = parser.parse_args()
    if Upstream.options.limits:
        Upstream.bucket = Bucket(Upstream.options.limits)
    Stub.counts = {}
    await serve(Upstream)


if __name__ == "__main__":
    uvloop.run(main())
