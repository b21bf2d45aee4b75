"""Fixture mode: the few things that the test suites of the official SDKs take for granted.

The suites ask for a batch that nobody has created, delete it time and again, and page with cursors
that name nothing. Here that batch exists, has ended and cannot be deleted; everything else takes
the usual path.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from starlette.responses import Response

from batchyard import limits, wire
from batchyard.ledger import CreateKey
from batchyard.model import Batch
from batchyard.server import uploads
from batchyard.server.auth import DEFAULT_WORKSPACE
from batchyard.server.uploads import Upload

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from batchyard.server.yard import Yard

BATCH_ID = "message_batch_id"
_MODEL_ID = "model_id"
_KNOWN_MODEL = "claude-opus-5-5"
_BATCH_PATH = f"/v1/messages/batches/{BATCH_ID}"
_CURSORS = frozenset({("after_id", "after_id"), ("before_id", "before_id")})


class OneWorkspace:
    """Any key and any workspace header lead to the default workspace, where the batch is."""

    def workspace_of(self, digest: str, asked: str | None) -> str | None:
        """Return the default workspace."""
        return DEFAULT_WORKSPACE


class Fixtures:
    """ASGI layer in front of the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        if (scope["method"], path) == ("DELETE", _BATCH_PATH):
            body = {"id": BATCH_ID, "type": "message_batch_deleted"}
            response = Response(wire.encode(body), media_type="application/json")
            await response(scope, receive, send)
            return
        if path in {"/v1/messages/batches", "/v1/models"}:
            scope = {**scope, "query_string": _without_cursors(scope["query_string"])}
        elif path == f"/v1/models/{_MODEL_ID}":
            known = f"/v1/models/{_KNOWN_MODEL}"
            scope = {**scope, "path": known, "raw_path": known.encode()}
        await self._app(scope, receive, send)


def _without_cursors(query: bytes) -> bytes:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return urlencode([pair for pair in pairs if pair not in _CURSORS]).encode()


async def make_batch(yard: Yard) -> None:
    """Create the batch of the suites, as any other but for its id, and wait until it has ended."""
    if await yard.ledger.get(DEFAULT_WORKSPACE, BATCH_ID) is None:
        await _create(yard)
    while True:
        batch = await yard.ledger.get(DEFAULT_WORKSPACE, BATCH_ID)
        if batch is not None and batch.status == "ended":
            return
        await yard.clock.sleep(0.005)


async def _create(yard: Yard) -> None:
    params = {
        "model": _KNOWN_MODEL,
        "max_tokens": 1_024,
        "messages": [{"role": "user", "content": "Hello, world"}],
    }
    body = wire.encode({"requests": [{"custom_id": "my-custom-id-1", "params": params}]})
    digest = hashlib.sha256(body).digest()
    with tempfile.TemporaryFile(dir=yard.spool) as file:
        file.write(body)
        file.flush()
        upload = Upload(file, digest)
        accepted = await asyncio.to_thread(
            uploads.accept, upload, BATCH_ID, yard.routes, yard.store
        )
    now = yard.clock.now_us()
    batch = Batch(
        id=BATCH_ID,
        workspace=DEFAULT_WORKSPACE,
        requests=accepted.requests,
        created_us=now,
        expires_us=now + limits.PROCESSING_WINDOW_US,
        version="2026-10-21",
        billing=yard.billing_of({shard.pool for shard in accepted.shards}),
    )
    key = CreateKey(key="fixture", digest=digest, until_us=now, replaces=True)
    await yard.ledger.create(batch, accepted.shards, key)
    yard.worker.wake()
