"""The list of batches against a plain Python list."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.making import DAY, LEDGERS, NOW, add, finish

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


async def _check(
    ledger: Ledger, workspace: str, newest_first: list[str], gone: set[str], limit: int
) -> None:
    """Check the list from every cursor, of `gone` batches too, which are in no page."""

    def there(ids: list[str]) -> list[str]:
        return [batch_id for batch_id in ids if batch_id not in gone]

    assert await _forward(ledger, workspace, limit, None) == there(newest_first)
    for position, batch_id in enumerate(newest_first):
        older, newer = there(newest_first[position + 1 :]), there(newest_first[:position])
        assert await _forward(ledger, workspace, limit, batch_id) == older
        assert await _backward(ledger, workspace, limit, batch_id) == newer


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
            gone: set[str] = set()
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
                        doomed = model[workspace][int(value) % len(model[workspace])]
                        there = doomed not in gone
                        assert await ledger.delete(workspace, doomed, NOW + number) is there
                        gone.add(doomed)
                else:
                    for workspace, newest_first in model.items():
                        await _check(ledger, workspace, newest_first, gone, int(value))
        finally:
            await ledger.close()

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(run(Path(root)))


async def _ended(ledger: Ledger, count: int) -> list[str]:
    """Make batches that have ended; newest first."""
    ids = []
    for number in range(count):
        batch = await add(ledger, f"{number}")
        await finish(ledger, batch)
        ids.insert(0, batch.id)
    return ids


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_a_client_that_deletes_each_page_forward_meets_every_batch(
    ledger: Ledger, limit: int
) -> None:
    ids = await _ended(ledger, 7)
    found: list[str] = []
    page = await ledger.page("w", limit=limit, after=None, before=None)
    while part := _ids(page):
        found += part
        for batch_id in part:
            assert await ledger.delete("w", batch_id, NOW + 2)
        page = await ledger.page("w", limit=limit, after=part[-1], before=None)
    assert found == ids


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_a_client_that_deletes_each_page_backward_meets_every_batch(
    ledger: Ledger, limit: int
) -> None:
    *ids, oldest = await _ended(ledger, 8)
    assert await ledger.delete("w", oldest, NOW + 2)
    found: list[str] = []
    page = await ledger.page("w", limit=limit, after=None, before=oldest)
    while part := _ids(page):
        found = part + found
        for batch_id in part:
            assert await ledger.delete("w", batch_id, NOW + 2)
        page = await ledger.page("w", limit=limit, after=None, before=part[0])
    assert found == ids


@pytest.mark.anyio
async def test_a_deleted_batch_of_another_workspace_is_no_cursor(ledger: Ledger) -> None:
    (mine,) = await _ended(ledger, 1)
    await add(ledger, "theirs", workspace="other")
    assert await ledger.delete("w", mine, NOW + 2)
    assert await ledger.page("other", limit=1, after=mine, before=None) is None
    assert await ledger.page("other", limit=1, after=None, before=mine) is None
    assert await ledger.page("w", limit=1, after=mine, before=None) is not None


@pytest.mark.anyio
async def test_a_deleted_batch_is_a_cursor_for_24_hours(ledger: Ledger) -> None:
    newer, older = await _ended(ledger, 2)
    assert await ledger.delete("w", older, NOW + 5)
    assert await ledger.delete("w", newer, NOW + 6)
    await ledger.forget_creates(NOW + DAY + 4)
    for batch_id in (newer, older):
        assert await ledger.page("w", limit=1, after=batch_id, before=None) is not None
    await ledger.forget_creates(NOW + DAY + 5)
    assert await ledger.page("w", limit=1, after=older, before=None) is None
    assert await ledger.page("w", limit=1, after=None, before=older) is None
    assert await ledger.page("w", limit=1, after=newer, before=None) is not None
    await ledger.forget_creates(NOW + DAY + 6)
    assert await ledger.page("w", limit=1, after=newer, before=None) is None
