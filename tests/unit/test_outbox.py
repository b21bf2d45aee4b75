"""What goes out at the end of a turn of the event loop, and what no longer does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from batchyard.upstream.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio


class Wire:
    """A transport that tells the others what is written over which."""

    def __init__(self, written: list[tuple[Wire, bytes]]) -> None:
        self._written = written
        self.is_closed = False

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self._written.append((self, data))


def add(outbox: Outbox, wires: Sequence[Wire], data: bytes) -> None:
    for wire in wires:
        outbox.add(cast("asyncio.Transport", wire), data)


async def test_what_one_turn_asks_for_goes_out_at_its_end_in_order() -> None:
    written: list[tuple[Wire, bytes]] = []
    first, second = Wire(written), Wire(written)
    outbox = Outbox()
    asyncio.get_running_loop().call_soon(add, outbox, [second], b"2")
    add(outbox, [first], b"1")
    add(outbox, [second], b"1")
    assert not written
    await asyncio.sleep(0)
    assert written == [(first, b"1"), (second, b"1"), (second, b"2")]

    add(outbox, [first], b"3")
    await asyncio.sleep(0)
    assert written[3:] == [(first, b"3")]


async def test_nothing_goes_out_over_what_was_closed_meanwhile() -> None:
    written: list[tuple[Wire, bytes]] = []
    given_up, other = Wire(written), Wire(written)
    outbox = Outbox()
    add(outbox, [given_up, other], b"x")
    given_up.is_closed = True
    await asyncio.sleep(0)
    assert written == [(other, b"x")]
