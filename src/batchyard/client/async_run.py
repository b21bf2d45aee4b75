"""The library for asynchronous programs: the same run, with its work in a thread of its own.

    run = AsyncRun("reports", docs=files("readmes/"), prompt="report.md.j2",
                   model="claude-opus-4-6", max_tokens=8_000)
    await run.submit(await run.plan(sample=0))
    async for doc in run:
        print(doc.key, doc.status)

A wait that is cancelled leaves the run as Ctrl-C does: nothing is lost, and it can be opened again.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from batchyard.client.problems import Detached
from batchyard.client.run import Run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from batchyard.client.planning.plan import Plan
    from batchyard.client.report import Report
    from batchyard.client.results.receipt import Receipt
    from batchyard.client.running.pilot import Findings

T = TypeVar("T")


class AsyncRun:
    """A `Run` whose methods are coroutines; takes the same arguments, raises the same errors.

    Use it in an `async with` block, or await `close`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.run = Run(*args, **options)
        # One thread, because one process at a time works on a run, and one call at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batchyard-run")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def plan(self, **options: Any) -> Plan:
        """See `Run.plan`."""
        return await self._call(partial(self.run.plan, **options))

    async def submit(self, approved: Plan, **options: Any) -> None:
        """See `Run.submit`."""
        await self._call(partial(self.run.submit, approved, **options))

    async def pilot(self, count: int, approved: Plan | None = None, **options: Any) -> Findings:
        """See `Run.pilot`."""
        return await self._call(partial(self.run.pilot, count, approved, **options))

    async def retry(
        self, *, canceled: bool = False, with_change: bool = False, now: bool = False
    ) -> int:
        """See `Run.retry`."""
        again = partial(self.run.retry, canceled=canceled, with_change=with_change, now=now)
        return await self._call(again)

    async def cancel(self) -> None:
        """See `Run.cancel`."""
        await self._call(self.run.cancel)

    async def report(self) -> Receipt:
        """See `Run.report`."""
        return await self._call(self.run.report)

    async def close(self) -> None:
        """See `Run.close`."""
        try:
            await self._call(self.run.close)
        finally:
            self._thread.shutdown(wait=False)

    async def __aiter__(self) -> AsyncIterator[Report]:
        reports = iter(self.run)
        try:
            while True:
                report = await self._call(lambda: next(reports, None))
                if report is None:
                    return
                yield report
        finally:
            await self._call(reports.close)

    async def _call(self, work: Callable[[], T]) -> T:
        """Do something in the thread; when nobody waits any more, the run is left."""
        future = self._thread.submit(work)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if not future.done():
                self.run.leave()
                future.add_done_callback(_seen)
            raise


def _seen(future: Any) -> None:
    """Take the error of work that nobody waits for: that the run was left is no news."""
    error = future.exception()
    if error is not None and not isinstance(error, Detached):
        raise error
