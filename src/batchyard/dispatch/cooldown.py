"""The time that an upstream asked us to wait, and whether it holds for all calls. Pure.

A `retry-after` may be of the whole account, or of one request (one that is larger than what is left
of a limit, say). So it holds all calls back, but while it lasts a single one probes: some seconds
after it began, and then less and less often. If a call that was sent after the refused one is
accepted, it was not for all. The request that was told to wait waits in any case.
"""

from __future__ import annotations

_NEVER = float("-inf")
_ANSWER = float("inf")  # wait for an answer, not for time

_PROBE_S = 5.0  # after the beginning; doubles while probes are refused
_PROBE_MAX_S = 60.0
_PROBE_MIN_S = 0.1  # where such times were for single requests again and again


class CoolDown:
    """A time without calls, but for probes."""

    def __init__(self) -> None:
        self.until_s: float | None = None
        """The end; None when there is none, or it is over."""
        self.reason = ""
        self._from_s = _NEVER
        self._number = -1
        """Of the last call that was told to wait."""
        self._probe: int | None = None
        """The number of the probe that is out."""
        self._probe_s = _NEVER
        self._rest_s = _PROBE_S
        self._first_s = _PROBE_S

    def ask(self, number: int, now_s: float, seconds: float, reason: str) -> None:
        """Take in that the upstream asked to wait.

        Args:
            number: of the call that was answered so, or of the last one sent.
            now_s: the time.
            seconds: to wait, capped.
            reason: in a word or two, for people.
        """
        until_s = now_s + seconds
        if self.until_s is None:
            self._from_s = now_s
            self._rest_s = self._first_s
            self._probe_s = now_s + self._rest_s
            self._probe = None
            self._number = number
        elif until_s <= self.until_s:
            return
        self.until_s = until_s
        self.reason = reason
        self._number = max(self._number, number)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until a call may start, inf for an answer; only while it lasts."""
        assert self.until_s is not None
        left_s = self.until_s - now_s
        if self._probe is not None:
            return left_s
        return max(0.0, min(left_s, self._probe_s - now_s))

    def sent(self, number: int) -> None:
        """Count a call that starts while it lasts: a probe."""
        self._probe = number

    def failed(self, number: int, now_s: float) -> None:
        """Note a call that was not accepted; a probe makes the next one wait longer."""
        if number == self._probe:
            self._probe = None
            self._first_s = _PROBE_S
            self._rest_s = min(self._rest_s * 2.0, _PROBE_MAX_S)
            self._probe_s = now_s + self._rest_s

    def is_refuted(self, number: int) -> bool:
        """Whether an accepted call shows that it does not hold for all."""
        return self.until_s is not None and number > self._number

    def is_probe(self, number: int) -> bool:
        """Whether a call was sent to find that out."""
        return number == self._probe

    def end_by_probe(self, now_s: float) -> None:
        """Let calls go on, since a probe was accepted; the next time it comes sooner."""
        self._first_s = max(_PROBE_MIN_S, self._first_s / 2.0)
        self.end(now_s)

    def end(self, now_s: float) -> float:
        """Let calls go on; return the seconds for which they were held back."""
        assert self.until_s is not None
        pause_s = min(now_s, self.until_s) - self._from_s
        self.until_s = self._probe = None
        return pause_s
