"""The six endpoints of the Message Batches API, results apart (see `results.py`).

Source of shapes and texts: the API reference and recordings of the hosted service.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from starlette.responses import Response

from batchyard import crash, ids, limits, wire
from batchyard.errors import DiskFull, InvalidRequest, NotFound, RateLimited, shown
from batchyard.fairness import read_priority
from batchyard.ledger import CreateKey
from batchyard.model import Batch
from batchyard.server import uploads

if TYPE_CHECKING:
    from starlette.requests import Request

    from batchyard.ledger import Known
    from batchyard.model import Priority
    from batchyard.server.auth import Caller
    from batchyard.server.uploads import Upload
    from batchyard.server.yard import Yard


class Batches:
    """The handlers."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._creating: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create(self, request: Request) -> Response:
        """Accept a batch; 200 means that it is on stable storage."""
        caller = request.state.caller
        named = request.headers.get("idempotency-key")
        if named is not None and not 0 < len(named) <= limits.IDEMPOTENCY_KEY_CHARS_MAX:
            raise InvalidRequest(
                f"idempotency-key: 1 to {limits.IDEMPOTENCY_KEY_CHARS_MAX} characters are allowed",
                should_retry=False,
            )
        priority = read_priority(request.headers.get("batchyard-priority"))
        is_new = not await self._may_be_repeat(request, caller, named)
        room = self._yard.disk.room(announced_bytes(request), is_new=is_new)
        batch_id = ids.mint("msgbatch")
        arrival = uploads.Arrival(batch_id, self._yard.store, self._yard.spool)
        async with uploads.spooled(request, self._yard.spool, room, arrival) as upload:
            key = self._create_key(request, caller, upload, named)
            # A repeat that arrives while the first call is being written waits for its batch.
            # Equal calls that are no repeats of each other become batches of their own.
            lock = self._creating.setdefault((caller.workspace, key.key), asyncio.Lock())
            async with lock:
                batch = await self._repeated(caller, key)
                if batch is None:
                    room.admit()
                    batch = await self._create(batch_id, caller, upload, key, priority)
        return _json(self._object(request, batch))

    def _create_key(
        self, request: Request, caller: Caller, upload: Upload, named: str | None
    ) -> CreateKey:
        """Return by what a repeat of this call will be recognised."""
        asked = hashlib.sha256(upload.digest)
        asked.update(f"{caller.version}\n{','.join(caller.betas)}\n{caller.user_profile}".encode())
        now = self._yard.clock.now_us()
        if named is not None:
            return CreateKey(
                key=f"named:{named}",
                digest=asked.digest(),
                until_us=now + limits.IDEMPOTENCY_WINDOW_US,
                replaces=False,
            )
        # The official clients repeat a create by themselves and name no key: the same credential
        # and the same content within the hour, with a retry count, is a repeat. One without is
        # meant, so it is a batch of its own.
        return CreateKey(
            key=f"sdk:{caller.credential}:{asked.hexdigest()}",
            digest=asked.digest(),
            until_us=now + limits.SDK_RETRY_WINDOW_US,
            replaces=not _is_retry(request),
        )

    async def _may_be_repeat(self, request: Request, caller: Caller, named: str | None) -> bool:
        """Return whether the batch of a call may be there, as far as it shows without the body."""
        if named is None:
            return _is_retry(request)
        now = self._yard.clock.now_us()
        return await self._yard.ledger.known(caller.workspace, f"named:{named}", now) is not None

    async def _repeated(self, caller: Caller, key: CreateKey) -> Batch | None:
        """Return the batch of the first call when this one repeats it."""
        if key.replaces:
            return None
        now = self._yard.clock.now_us()
        known = await self._yard.ledger.known(caller.workspace, key.key, now)
        return None if known is None else _same(known, key)

    async def _create(
        self, batch_id: str, caller: Caller, upload: Upload, key: CreateKey, priority: Priority
    ) -> Batch:
        yard = self._yard
        try:
            accepted = await asyncio.to_thread(
                uploads.accept, upload, batch_id, yard.routes, yard.store
            )
            now = yard.clock.now_us()
            batch = Batch(
                id=batch_id,
                workspace=caller.workspace,
                requests=accepted.requests,
                created_us=now,
                expires_us=now + limits.PROCESSING_WINDOW_US,
                version=caller.version,
                betas=caller.betas,
                user_profile=caller.user_profile,
                billing=yard.billing_of({shard.pool for shard in accepted.shards}),
                priority=priority,
            )
            known = await yard.ledger.create(
                batch, accepted.shards, key, queued_max=yard.queued_max
            )
        except (DiskFull, RateLimited):
            # Certain not to exist. After other errors of the store, the next start decides.
            await asyncio.to_thread(yard.store.delete_batch, batch_id)
            raise
        if known is not None:
            await asyncio.to_thread(yard.store.delete_batch, batch_id)
            return _same(known, key)
        yard.worker.wake()
        return batch

    async def retrieve(self, request: Request) -> Response:
        """Return one batch."""
        batch = await self._find(request)
        headers = {}
        if batch.status != "ended":
            headers["retry-after"] = str(limits.RETRIEVE_RETRY_AFTER_S)
        return _json(self._object(request, batch), headers)

    async def list(self, request: Request) -> Response:
        """Return one page of the batches of the workspace, newest first."""
        caller = request.state.caller
        query = request.query_params
        after, before = (_sought(query.get(name, "")) or None for name in ("after_id", "before_id"))
        page = await self._yard.ledger.page(
            caller.workspace,
            limit=wire.list_limit(query.get("limit")),
            after=after,
            before=None if after else before,
        )
        if page is None:
            raise InvalidRequest(f"{'after_id' if after else 'before_id'}: no such batch")
        data = [self._object(request, batch) for batch in page.batches]
        return _json(
            {
                "data": data,
                "has_more": page.has_more,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
            }
        )

    async def cancel(self, request: Request) -> Response:
        """Cancel a batch; an ended one stays as it is."""
        caller = request.state.caller
        batch_id = request.path_params["batch_id"]
        now = self._yard.clock.now_us()
        batch = await self._yard.ledger.cancel(caller.workspace, _sought(batch_id), now)
        if batch is None:
            raise _not_found(batch_id)
        if batch.status == "canceling":
            self._yard.worker.cancel(batch.id)
            await self._yard.clock.sleep(self._yard.worker.cancel_takes_s)
        return _json(self._object(request, batch))

    async def delete(self, request: Request) -> Response:
        """Delete an ended batch with its results."""
        batch = await self._find(request)
        if batch.status != "ended":
            raise InvalidRequest(
                "In progress batches cannot be deleted. Consider canceling the batch instead."
            )
        now = self._yard.clock.now_us()
        if not await self._yard.ledger.delete(batch.workspace, batch.id, now):
            raise _not_found(batch.id)
        crash.point("deleted")
        await self._yard.keeper.delete(batch.id)  # what refuses that is tried again
        return _json({"id": batch.id, "type": "message_batch_deleted"})

    async def _find(self, request: Request) -> Batch:
        return await find(self._yard, request)

    def _object(self, request: Request, batch: Batch) -> dict[str, object]:
        """Return the MessageBatch of the wire. Counts move only when the whole batch has ended."""
        ended = batch.ended_us is not None
        counts = batch.counts
        url = f"{origin(self._yard, request)}/v1/messages/batches/{batch.id}/results"
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": batch.status,
            "request_counts": {
                "processing": 0 if ended else batch.requests,
                "succeeded": counts.succeeded,
                "errored": counts.errored,
                "canceled": counts.canceled,
                "expired": counts.expired,
            },
            "ended_at": _time(batch.ended_us),
            "created_at": _time(batch.created_us),
            "expires_at": _time(batch.expires_us),
            "archived_at": _time(batch.archived_us),
            "cancel_initiated_at": _time(batch.cancel_us),
            "results_url": url if ended and batch.archived_us is None else None,
        }


async def find(yard: Yard, request: Request) -> Batch:
    """Return the batch that a path names.

    Raises:
        NotFound: there is none in the caller's workspace.
    """
    caller = request.state.caller
    batch_id = request.path_params["batch_id"]
    batch = await yard.ledger.get(caller.workspace, _sought(batch_id))
    if batch is None:
        raise _not_found(batch_id)
    return batch


def _sought(batch_id: str) -> str:
    """Return an id of a client as a ledger can look for it: PostgreSQL has no text with U+0000."""
    return batch_id.replace("\0", " ")


def announced_bytes(request: Request) -> int:
    """Return the length of the body where it is told beforehand and not refused, else 0."""
    length = request.headers.get("content-length", "")
    known = int(length) if length.isascii() and length.isdigit() and len(length) < 16 else 0
    return known if known <= limits.BATCH_BODY_BYTES_MAX else 0


def _is_retry(request: Request) -> bool:
    return request.headers.get("x-stainless-retry-count", "0") not in {"", "0"}


def _same(known: Known, key: CreateKey) -> Batch:
    if known.digest != key.digest:
        raise InvalidRequest(
            "idempotency-key: this key was used for a batch with other content",
            should_retry=False,
        )
    return known.batch


def _not_found(batch_id: str) -> NotFound:
    return NotFound(f"Message Batch {shown(batch_id)} not found.")


def origin(yard: Yard, request: Request) -> str:
    """Return the address that clients use, without a `/` at its end."""
    # Without public_url, the Host is one that the guard has found on the allow-list.
    return yard.public_url or f"{request.url.scheme}://{request.headers['host']}"


def _time(us: int | None) -> str | None:
    return None if us is None else wire.rfc3339(us)


def _json(body: object, headers: dict[str, str] | None = None) -> Response:
    return Response(wire.encode(body), headers=headers, media_type="application/json")
