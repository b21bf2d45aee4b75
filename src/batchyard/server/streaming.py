"""Send a long answer only as long as somebody reads it, and without copies of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.types import Message, Receive, Send
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


async def while_connected(receive: Receive, sending: Coroutine[None, None, None]) -> None:
    """Run `sending` to its end, or cancel it when the client has gone.

    What was begun and not completed makes the server abort the connection, so that a cut answer is
    noticed.
    """
    work = asyncio.ensure_future(sending)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (work, gone):
            if not task.done():
                task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
    if not work.cancelled():
        work.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def uncopied(cycle: RequestResponseCycle) -> Send:
    """Return the `send` of an answer that also takes a memoryview as a part of the body.

    It is framed without being copied, and when `send` returns, its memory may be used again: all of
    it has been given to the kernel, or the client has gone.
    """
    send: Send = cycle.send  # type: ignore[assignment]

    async def direct(message: Message) -> None:
        body = message.get("body")
        if not isinstance(body, memoryview):
            await send(message)
            return
        if cycle.flow.write_paused:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        transport = cycle.transport
        transport.set_write_buffer_limits(high=0)  # so that drained means empty
        if cycle.chunked_encoding:
            transport.writelines((b"%x\r\n" % len(body), body, b"\r\n"))
        else:
            assert cycle.expected_content_length >= len(body)
            cycle.expected_content_length -= len(body)
            transport.write(body)
        if cycle.flow.write_paused:
            await cycle.flow.drain()
        if not transport.is_closing():
            transport.set_write_buffer_limits()

    return direct
