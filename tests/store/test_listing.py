"""The list of batches against a plain Python list."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.making import LEDGERS, NOW, add, finish

if TYPE_CHECKING:
    from batchyard.ledger import Ledger, Page

# What is done to the list: batches come in two workspaces, ended ones go.
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from("ab")),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("read"), st.integers(1, 4)),
    ),
    max_size=14,
)


async def _forward(ledger: Ledger, workspace: str, limit: int, start: str | None) -> list[str]:
    """Read on as the official clients do."""
    found: list[str] = []
    after = start
    while True:
        page = await ledger.page(workspace, limit=limit, after=after, before=None)
        ids = _ids(page)
        assert ids or not found, "there was said to be more"
        found += ids
        assert page is not None
        if not page.has_more:
            return found
        assert len(ids) == limit, "a page that is not full says that there is more"
        after = ids[-1]


async def _backward(ledger: Ledger, workspace: str, limit: int, start: str) -> list[str]:
    found: list[str] = []
    before = start
    while True:
        page = await ledger.page(workspace, limit=limit, after=None, before=before)
        ids = _ids(page)
        assert ids or not found, "there was said to be more"
        found = ids + found
        assert page is not None
        if not page.has_more:
            return found
        assert len(ids) == limit
        before = ids[0]


def _ids(page: Page | None) -> list[str]:
    assert page is not None
    return [batch.id for batch in page.batches]


async def _check(ledger: Ledger, workspace: str, newest_first: list[str], limit: int) -> None:
    assert await _forward(ledger, workspace, limit, None) == newest_first
    for position, batch_id in enumerate(newest_first):
        assert await _forward(ledger, workspace, limit, batch_id) == newest_first[position + 1 :]
        assert await _backward(ledger, workspace, limit, batch_id) == newest_first[:position]


@pytest.mark.parametrize("kind", sorted(LEDGERS))
@settings(max_examples=25)
@given(steps=_steps)
def test_pages_in_both_directions_are_the_list_without_gap_or_repeat(
    kind: str, steps: list[tuple[str, str | int]]
) -> None:
    async def run(root: Path) -> None:
        ledger = LEDGERS[kind](root)
        model: dict[str, list[str]] = {"a": [], "b": []}
        try:
            for number, (what, value) in enumerate([*steps, ("read", 2)]):
                if what == "create":
                    workspace = str(value)
                    # All at the same time: the order is that of creation, not of the clock.
                    batch = await add(ledger, f"{number}", workspace=workspace, at=NOW)
                    await finish(ledger, batch)
                    model[workspace].insert(0, batch.id)
                elif what == "delete":
                    workspace = "ab"[int(value) % 2]
                    if model[workspace]:
                        gone = model[workspace].pop(int(value) % len(model[workspace]))
                        assert await ledger.delete(workspace, gone)
                        cursor = await ledger.page(workspace, limit=1, after=gone, before=None)
                        assert cursor is None
                else:
                    for workspace, newest_first in model.items():
                        await _check(ledger, workspace, newest_first, int(value))
        finally:
            await ledger.close()

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(run(Path(root)))
