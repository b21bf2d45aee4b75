"""The error family: what went wrong, and how the wire names it.

The docstring of a class is its default text. `status` and `type` are data for the server;
nothing below the server interprets them.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class BatchyardError(Exception):
    """Something failed."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after_s: int | None = None,
        should_retry: bool | None = None,
        allow: str | None = None,
        error_code: str | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.allow = allow
        self.error_code = error_code
        super().__init__(self.message)


class InvalidRequest(BatchyardError):
    """The request is not valid."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(BatchyardError):
    """API key is invalid."""

    status = 401
    type = "authentication_error"


class PaymentRequired(BatchyardError):
    """The account has no credit left."""

    status = 402
    type = "billing_error"


class Forbidden(BatchyardError):
    """This key may not use this resource."""

    status = 403
    type = "permission_error"


class NotFound(BatchyardError):
    """Not found."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(BatchyardError):
    """Method not allowed."""

    status = 405
    type = "invalid_request_error"


class TooLarge(BatchyardError):
    """Request exceeds the maximum size."""

    status = 413
    type = "request_too_large"


class RangeNotSatisfiable(BatchyardError):
    """The range lies outside the results."""

    status = 416
    type = "invalid_request_error"


class HeadTooLarge(BatchyardError):
    """The request head is too large."""

    status = 431
    type = "invalid_request_error"


class RateLimited(BatchyardError):
    """Too many requests."""

    status = 429
    type = "rate_limit_error"


class Overloaded(BatchyardError):
    """Overloaded."""

    status = 529
    type = "overloaded_error"


class Internal(BatchyardError):
    """Internal server error."""

    status = 500
    type = "api_error"


class BadGateway(BatchyardError):
    """The upstream did not answer."""

    status = 502
    type = "api_error"


class ConfigError(BatchyardError):
    """The configuration is not usable."""


class StoreError(BatchyardError):
    """The ledger or a segment could not be read or written."""


class DiskFull(StoreError):
    """The disk is full: nothing was changed, and it may be tried again when there is room."""


def is_disk_full(error: OSError) -> bool:
    """Whether a system call failed for want of room, so that it may be tried again later.

    A quota counts as that, and a file that may not grow.
    """
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class SegmentsGone(StoreError):
    """The segments of a batch were deleted while one was written: its shards are another's now."""


class DeadSegment(StoreError):
    """A sync has failed: nobody can know whether the segment is on the disk. It may be copied."""


class SegmentRefused(StoreError):
    """The store does not give one segment, though it answers: its batch is affected, not the store.

    Its bytes may be sound: nothing is made again for it.
    """


class DamagedError(StoreError):
    """Stored bytes are not what was written: one batch is affected, not the store."""


class DataDirectoryInUse(ConfigError):
    """Another process uses this data directory."""


def shown(value: object, limit: int = 80) -> str:
    """Return `value` for use in a message: one line, escaped, at most `limit` characters."""
    text = value if isinstance(value, str) else repr(value)
    escaped = text.encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"
