"""`POST /v1/messages/batches/validate`: what would become of a create call; nothing is kept.

An extension. The body is that of create; the checks are those of create and of the worker.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from batchyard import limits, wire
from batchyard.dispatch import checking
from batchyard.server import uploads
from batchyard.server.batches import announced_bytes

if TYPE_CHECKING:
    from starlette.requests import Request

    from batchyard.server.auth import Caller
    from batchyard.server.uploads import Upload
    from batchyard.server.yard import Yard


class DryRun:
    """The validate endpoint."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    async def respond(self, request: Request) -> Response:
        """Check a create body; report the first requests that would be `errored` unsent."""
        caller = request.state.caller
        room = self._yard.disk.room(announced_bytes(request), copies=1, is_new=False)
        async with uploads.spooled(request, self._yard.spool, room) as upload:
            report = await asyncio.to_thread(self._check, upload, caller)
        return Response(wire.encode(report), media_type="application/json")

    def _check(self, upload: Upload, caller: Caller) -> dict[str, object]:
        entries = uploads.entries_of(upload)
        pools = self._yard.routes.pools(entries)
        problems: list[dict[str, object]] = []
        invalid = 0
        for index, (entry, pool) in enumerate(zip(entries, pools, strict=True)):
            problem = checking.check(
                bytes(entry.params),
                self._yard.upstream_of_pool(pool),
                version=caller.version,
                betas=caller.betas,
                user_profile=caller.user_profile,
            )
            if problem is None:
                continue
            invalid += 1
            if len(problems) < limits.DRY_RUN_PROBLEMS_MAX:
                problems.append(
                    {
                        "index": index,
                        "custom_id": entry.custom_id,
                        "error": {"type": problem.type, "message": problem.message},
                    }
                )
        return {
            "type": "message_batch_validation",
            "requests": len(entries),
            "valid": len(entries) - invalid,
            "invalid": invalid,
            "billing": self._yard.billing_of(set(pools)),
            "problems": problems,
            "has_more": invalid > len(problems),
        }
