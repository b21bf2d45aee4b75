"""What an outcome means: a table from outcomes to actions, without I/O and without a clock.

Source of the classes: the API's errors page and the recommended mapping of upstream outcomes; the
faults are those of a loopback server that answers wrongly in every way (tests/server).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from batchyard import limits, result, wire
from batchyard.dispatch.limiter import Signal
from batchyard.upstream import Failure, FailureKind, Outcome, Reply, Verdict

if TYPE_CHECKING:
    import random

    from batchyard.upstream import Upstream


class Done(msgspec.Struct, frozen=True, gc=False):
    """A finished message."""

    message: result.Message


class Fail(msgspec.Struct, frozen=True, gc=False):
    """An error that would come again: the request is `errored`."""

    type: str
    message: str
    request_id: str | None


class Again(msgspec.Struct, frozen=True, gc=False):
    """Try later. If time runs out first, the request is `errored` with `type`."""

    type: str
    message: str
    retry_after_s: float | None
    counted: bool
    """Whether the try counts against `ATTEMPTS_MAX`: being told to wait does not."""
    reached: bool = True
    """Whether the upstream may have seen the request."""
    at_once: bool = False
    """Whether to try again now, in another way."""
    is_sent: bool = True
    """Whether there was a call at all: if not, nobody wants an answer any more."""
    is_refused: bool = False
    """Whether the upstream would not have taken any call like it: see `own`."""


class Pause(msgspec.Struct, frozen=True, gc=False):
    """The upstream refuses us, not the request: stop calling it and tell the operator."""

    type: str
    message: str
    counted: ClassVar[bool] = False
    reached: ClassVar[bool] = True
    is_sent: ClassVar[bool] = True


class Unsent(msgspec.Struct, frozen=True, gc=False):
    """The request counts as never sent."""

    why: Literal["canceled", "expired"]


Action = Done | Fail | Again | Pause | Unsent

_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "api_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_PAUSE = frozenset({401, 402, 403})
_OF_KEY = frozenset({"authentication_error", "permission_error"})  # what a missing key may meet
_WAIT = frozenset({429, 529})
_UNAVAILABLE = 503  # to wait as well, if it says how long
_BAD_REQUEST = 400
# Source: the API answers 400, not 402, to an account whose prepaid credit is used up.
_NO_CREDIT = "credit balance is too low"
_AGAIN = frozenset({408, 409})
_NO_ENDPOINT = frozenset({404, 405})
_SHOWN_CHARS = 1_000

# What calls that are repeated tell of the upstream; 5xx and answers that are none are failures.
_SIGNAL_OF_STATUS = {
    408: Signal.TIMEOUT,
    409: Signal.TAKEN,
    429: Signal.LIMITED,
    504: Signal.TIMEOUT,
    529: Signal.OVERLOADED,
}
_SIGNAL_OF_FAILURE = {
    FailureKind.CONNECT: Signal.UNREACHABLE,
    FailureKind.TIMEOUT: Signal.TIMEOUT,
    FailureKind.BROKEN: Signal.FAILED,
    FailureKind.STALE: Signal.NOTHING,
    FailureKind.TOO_LARGE: Signal.TAKEN,
    FailureKind.UNWANTED: Signal.UNSENT,
    FailureKind.NO_STREAM: Signal.TAKEN,
}


class _Error(msgspec.Struct):
    message: str
    type: str = ""


class _Envelope(msgspec.Struct):
    error: _Error


def decide(outcome: Outcome, now_us: int) -> Action:
    """Return what to do about an outcome.

    Args:
        outcome: of one call.
        now_us: the wall time, for a `retry-after` that is a date.
    """
    if isinstance(outcome, Failure):
        return _failure(outcome)
    if isinstance(outcome, Verdict):
        if outcome.kind == "errored":
            return Fail(outcome.type, outcome.message, None)
        return Unsent(outcome.kind)
    if outcome.status == 200:
        try:
            return Done(result.read_message(outcome.body))
        except ValueError as error:
            text = f"The upstream's reply is not a message: {error}"
            return Again("api_error", text, None, counted=True)
    return _refusal(outcome, now_us)


def signal(outcome: Outcome, action: Action) -> Signal:
    """Return what an outcome tells of the upstream.

    Args:
        outcome: of one call.
        action: what `decide` said of it.
    """
    if isinstance(outcome, Failure):
        return _SIGNAL_OF_FAILURE[outcome.kind]
    if isinstance(action, Pause):
        return Signal.BARRED
    if isinstance(outcome, Reply) and isinstance(action, Again):
        return _SIGNAL_OF_STATUS.get(outcome.status, Signal.FAILED)
    return Signal.TAKEN


def is_refusal(outcome: Outcome) -> bool:
    """Whether the upstream has said that it would not do what was asked, and why."""
    return isinstance(outcome, Reply) and 400 <= outcome.status < 500


def own(action: Pause) -> Again:
    """Return what a refusal means that meets one request, while others are taken.

    It comes again, most likely; but the upstream may have several doors, of which one is wrong.
    """
    after = limits.UPSTREAM_PAUSE_S
    return Again(action.type, action.message, after, counted=True, is_refused=True)


def told(outcome: Outcome, action: Pause | Again) -> str:
    """Return why a pool waits, for the log and for all who have requests in it.

    Never the words of a reply: they may repeat the request, or the key, of somebody else.
    """
    if isinstance(outcome, Reply) and _read_error(outcome) is not None:
        return f"HTTP {outcome.status} {action.type}"
    return action.message


def why_paused(outcome: Outcome, action: Pause, upstream: Upstream) -> str:
    """Return why a pool pauses, as `told`; where the call had no key, how to set one.

    That comes first: what shows it may cut the end.
    """
    variable = upstream.unset_key
    if variable is None or action.type not in _OF_KEY or not isinstance(outcome, Reply):
        return told(outcome, action)
    refused = f"HTTP {outcome.status} {action.type}"
    return f"no key for upstream {upstream.name}: set {variable} ({refused})"


def reason(outcome: Outcome) -> str:
    """Return the class of a failed call in a word or two, for counting."""
    if isinstance(outcome, Failure):
        return outcome.kind.value
    if isinstance(outcome, Reply):
        return "not a message" if outcome.status == 200 else str(outcome.status)
    return outcome.kind


def _refusal(reply: Reply, now_us: int) -> Action:
    status = reply.status
    error = _read_error(reply)
    error_type, message = error or (
        _TYPE_OF_STATUS.get(status, "api_error"),
        f"The upstream answered with HTTP status {status}.",
    )
    if status in _PAUSE:
        return Pause(error_type, message)
    if status == _BAD_REQUEST and _NO_CREDIT in message:
        return Pause("billing_error", message)  # an account without credit must not burn a batch
    if status in _NO_ENDPOINT and error is None:
        # Not a word of the API: the base URL is wrong, which must not burn a batch.
        return Pause("api_error", f"There is no /v1/messages at the upstream (HTTP {status}).")
    # Success that is not 200 brings no message: like a reply that is none, it may do better later.
    if status in _WAIT or status in _AGAIN or status >= 500 or status < 300:
        after = wire.parse_retry_after(reply.retry_after, now_us, cap_s=limits.RETRY_AFTER_CAP_S)
        is_told = status in _WAIT or (status == _UNAVAILABLE and after is not None)
        return Again(error_type, message, after, counted=not is_told)
    return Fail(error_type, message, reply.request_id)


def _failure(failure: Failure) -> Action:
    match failure.kind:
        case FailureKind.CONNECT:
            text = f"The upstream cannot be reached: {failure.text}"
            return Again("api_error", text, None, counted=False, reached=False)
        case FailureKind.TIMEOUT:
            text = f"The upstream did not answer in time: {failure.text}"
            return Again("timeout_error", text, None, counted=True)
        case FailureKind.BROKEN:
            text = f"The connection to the upstream broke: {failure.text}"
            return Again("api_error", text, None, counted=True)
        case FailureKind.STALE:
            # As HTTP clients do; it is told as a repeated call, since it may have been paid. Not a
            # second time: a new connection is never stale.
            text = f"The connection to the upstream had been closed: {failure.text}"
            return Again("api_error", text, None, counted=False, at_once=True)
        case FailureKind.NO_STREAM:
            text = f"The upstream's answer cannot be had as a stream: {failure.text}"
            return Again("api_error", text, None, counted=False, at_once=True)
        case FailureKind.UNWANTED:
            return Again(
                "api_error", failure.text, None, counted=False, reached=False, is_sent=False
            )
        case FailureKind.TOO_LARGE:
            return Fail("api_error", f"The upstream's reply is too large: {failure.text}", None)


def _read_error(reply: Reply) -> tuple[str, str] | None:
    """Return type and message of an error reply; None when it does not speak the API."""
    try:
        error = msgspec.json.decode(reply.body, type=_Envelope).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    known = _TYPE_OF_STATUS.get(reply.status, "api_error")
    named = error.type if error.type in result.ERROR_TYPES else known
    return named, error.message[:_SHOWN_CHARS]


def backoff_s(tries: int, retry_after_s: float | None, rng: random.Random) -> float:
    """Return how long to wait before the next try: full jitter, never before `retry-after`.

    Args:
        tries: calls made so far, at least 1.
        retry_after_s: what the upstream asked for.
        rng: the source of the jitter.
    """
    ceiling = min(limits.BACKOFF_CAP_S, limits.BACKOFF_BASE_S * 2.0 ** min(tries - 1, 20))
    jitter = rng.random() * ceiling
    # On top of retry-after, or all who were told the same time would come back at once.
    return jitter if retry_after_s is None else retry_after_s + min(jitter, 1.0)


def delay_s(
    tries: int,
    retry_after_s: float | None,
    rng: random.Random,
    *,
    left_s: float,
    is_gated: bool = False,
) -> float | None:
    """Return how long to wait before the next try; None when it would pass the expiry.

    Args:
        tries: calls made so far, at least 1.
        retry_after_s: what the upstream asked for.
        rng: the source of the jitter.
        left_s: until the batch expires.
        is_gated: whether the pool lets only single calls try, so that jitter would add nothing.
    """
    delay = (retry_after_s or 0.0) if is_gated else backoff_s(tries, retry_after_s, rng)
    return delay if delay < left_s else None
