"""Who may come in: every endpoint that needs a key starts here.

Finds the caller before the body is read, counts the call, and leaves the headers that every answer
to a known caller carries.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from batchyard import limits
from batchyard.errors import RateLimited
from batchyard.server.auth import identify

if TYPE_CHECKING:
    from starlette.requests import Request

    from batchyard.server.auth import Caller, KeyRing
    from batchyard.server.rates import Rates, Standing

# A yard has one organization. Source of the form: recordings of the hosted service.
ORGANIZATION_ID = "00000000-0000-4000-8000-000000000001"


class Door:
    """Admits requests."""

    def __init__(self, keys: KeyRing, rates: Rates) -> None:
        self._keys = keys
        self._rates = rates

    def admit(self, request: Request, *, counted: bool) -> Caller:
        """Return who sent a request.

        Args:
            request: its head; the body is not read.
            counted: whether it counts against the calls per minute of the batch endpoints.

        Raises:
            Unauthenticated, InvalidRequest, NotFound: see `identify`.
            RateLimited: too many calls.
        """
        caller = identify(request, self._keys)
        headers = [
            (b"anthropic-organization-id", ORGANIZATION_ID.encode()),
            (b"anthropic-workspace-id", caller.workspace.encode()),
        ]
        request.scope["state"]["headers"] = headers
        if counted:
            standing = self._rates.take(caller.workspace)
            headers += _headers(standing)
            if standing.retry_after_s is not None:
                raise RateLimited(
                    f"This request would exceed the rate limit of {standing.limit} requests per "
                    "minute to the Message Batches API",
                    retry_after_s=standing.retry_after_s,
                )
        return caller


def _headers(standing: Standing) -> list[tuple[bytes, bytes]]:
    reset = datetime.fromtimestamp(standing.full_again_us // limits.SECOND_US, UTC)
    return [
        (b"anthropic-ratelimit-requests-limit", b"%d" % standing.limit),
        (b"anthropic-ratelimit-requests-remaining", b"%d" % standing.remaining),
        (b"anthropic-ratelimit-requests-reset", f"{reset:%Y-%m-%dT%H:%M:%SZ}".encode()),
    ]
