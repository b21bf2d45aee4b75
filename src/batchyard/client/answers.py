"""What a server answers, as far as we read it, and what its failures mean. No I/O.

Lenient: fields that we do not know are passed over. An answer that is not the API's is an error of
the server, never a crash of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from batchyard import wire
from batchyard.errors import BatchyardError, shown

T = TypeVar("T")

RETRY_AFTER_CAP_S = 3_600.0  # who wants us to wait for longer is asked once an hour


class Counts(msgspec.Struct, frozen=True):
    """The five counts of a batch."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0

    @property
    def total(self) -> int:
        """Return how many requests the batch has."""
        return self.processing + self.done

    @property
    def done(self) -> int:
        """Return how many requests are decided."""
        return self.succeeded + self.errored + self.canceled + self.expired


class Batch(msgspec.Struct, frozen=True):
    """What we read of a MessageBatch object."""

    id: str
    processing_status: str
    request_counts: Counts
    created_at: str
    results_url: Any = None  # only looked at, never followed

    @property
    def has_ended(self) -> bool:
        """Whether all results are there."""
        return self.processing_status == "ended"

    @property
    def created_us(self) -> int:
        """Return `created_at` in microseconds since 1970."""
        return wire.parse_rfc3339(self.created_at)


class Page(msgspec.Struct, frozen=True):
    """One page of a list, newest first; every `created_at` can be read."""

    data: list[Batch]
    has_more: bool = False

    def __post_init__(self) -> None:
        for batch in self.data:
            wire.parse_rfc3339(batch.created_at)


class TokenCount(msgspec.Struct, frozen=True):
    """How many input tokens a request has."""

    input_tokens: int


class Validation(msgspec.Struct, frozen=True):
    """What a yard says of requests before they are sent; `billing` as in `Progress`."""

    invalid: int
    billing: str | None = None


class Waiting(msgspec.Struct, frozen=True):
    """Why requests of a batch wait, in one pool."""

    pool: str
    reason: str
    detail: str = ""
    until: str | None = None


class Estimate(msgspec.Struct, frozen=True):
    """When a batch will have ended, None where there is no basis for that."""

    ends_at: str | None = None
    basis: str = ""


class Damaged(msgspec.Struct, frozen=True):
    """A shard of which the disk of a yard has damaged something, and what comes of it."""

    shard: int
    detail: str


class Failing(msgspec.Struct, frozen=True):
    """A request of which a call failed."""

    custom_id: str
    tries: int = 1
    reason: str = ""
    message: str = ""
    is_over: bool = False
    reasons: dict[str, int] = {}
    """How often each; a server of an earlier version does not tell."""


class Progress(msgspec.Struct, frozen=True):
    """What a yard tells of a batch under way.

    `billing` is how its upstream charges, None when it does not say. `paused` are the reasons why
    it does not call an upstream at the moment.
    """

    results: int = 0
    billing: str | None = None
    paused: dict[str, str] = {}
    processing_status: str = ""
    requests: int = 0
    in_flight: int = 0
    waiting: list[Waiting] = []
    calls: int | None = None
    repeated_calls: int | None = None
    unknown_calls: int | None = None
    failed_calls: dict[str, int] = {}
    failing: list[Failing] = []
    damaged: list[Damaged] = []
    as_of: str | None = None
    estimate: Estimate | None = None


class _ErrorDetail(msgspec.Struct, frozen=True):
    type: str
    message: str


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorDetail


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the server: status, body, and the headers that we use."""

    status: int
    body: bytes
    retry_after_s: float | None
    may_retry: bool | None
    request_id: str | None


class ApiError(BatchyardError):
    """The server refused a call."""

    def __init__(self, answer: Answer) -> None:
        self.http_status = answer.status
        self.retry_in_s = answer.retry_after_s
        self.may_retry = answer.may_retry
        self.kind, text = error_of(answer)
        by_id = f" (request {shown(answer.request_id)})" if answer.request_id else ""
        super().__init__(f"{_named(answer.status, self.kind)}: {text}{by_id}")


class Unreachable(BatchyardError):
    """The server did not answer."""


class NotCreated(BatchyardError):
    """No batch was created, for certain.

    `may_retry` tells whether the same bytes can succeed later; `retry_in_s` is the server's wish;
    `http_status` is None when the call did not get through.
    """

    def __init__(
        self,
        message: str,
        *,
        may_retry: bool,
        retry_in_s: float | None = None,
        http_status: int | None = None,
    ) -> None:
        self.may_retry = may_retry
        self.retry_in_s = retry_in_s
        self.http_status = http_status
        super().__init__(message)


class CreateUnknown(BatchyardError):
    """The create call was sent whole and not answered: a batch may or may not exist."""

    def __init__(self, message: str, *, retry_in_s: float | None = None) -> None:
        self.retry_in_s = retry_in_s
        super().__init__(message)


def decode(body: bytes, kind: type[T]) -> T:
    """Return the value of a JSON body.

    Raises:
        Unreachable: it is not what the API answers, so somebody else did.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Unreachable(f"something that is not the API: {shown(body[:200])}") from None


def retry_after(milliseconds: str | None, seconds: str | None, now_us: int) -> float | None:
    """Return the seconds to wait that two headers ask for, capped; None when they do not."""
    precise = wire.parse_retry_after(milliseconds, now_us, cap_s=RETRY_AFTER_CAP_S * 1_000)
    if precise is not None:
        return precise / 1_000
    return wire.parse_retry_after(seconds, now_us, cap_s=RETRY_AFTER_CAP_S)


def error_of(answer: Answer) -> tuple[str, str]:
    """Return type and message of an error; the type is empty when the body is not the API's."""
    try:
        detail = msgspec.json.decode(answer.body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        if 300 <= answer.status < 400:
            return "", "redirects elsewhere, and the key does not follow: use the final address"
        return "", shown(answer.body[:200].decode("utf-8", "replace"), 200) or "no text"
    return detail.type, detail.message[:500]


def created(answer: Answer) -> Batch:
    """Return the batch of a create answer, or raise what its status means."""
    if answer.status == 200:
        try:
            return decode(answer.body, Batch)
        except Unreachable as error:
            raise CreateUnknown(f"the create call was answered with {error.message}") from None
    kind, text = error_of(answer)
    message = f"{_named(answer.status, kind)}: {text}"
    # A proxy may time out, or be overloaded, after it has passed the request on.
    is_certain = 300 <= answer.status < 500 and answer.status != 408
    if is_certain or (answer.status == 529 and kind):
        may_retry = answer.may_retry
        if may_retry is None:
            may_retry = answer.status in {409, 429, 529}
        raise NotCreated(
            message,
            may_retry=may_retry,
            retry_in_s=answer.retry_after_s,
            http_status=answer.status,
        )
    raise CreateUnknown(message, retry_in_s=answer.retry_after_s)


def _named(status: int, kind: str) -> str:
    return f"{status} {kind}".rstrip()
