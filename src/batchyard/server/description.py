"""`GET /openapi.json`: the OpenAPI 3.1 description of the yard, kept by hand in `openapi.json`.

An extension. Needs no key: it says nothing that the documents do not say.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from starlette.responses import Response

from batchyard import __version__, wire
from batchyard.server.batches import origin

if TYPE_CHECKING:
    from starlette.requests import Request

    from batchyard.server.yard import Yard


class Description:
    """The description endpoint."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._document = wire.decode(
            resources.files("batchyard.server").joinpath("openapi.json").read_bytes()
        )
        self._document["info"]["version"] = __version__

    async def respond(self, request: Request) -> Response:
        """Return the description, its server the address that the client used."""
        servers = [{"url": origin(self._yard, request)}]
        body = wire.encode({**self._document, "servers": servers})
        return Response(body, media_type="application/json")
