"""A worker before a simulated model with a prompt cache, in virtual time."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchyard import ids, limits, result, segments, wire
from batchyard.dispatch.ending import read_manifest
from batchyard.dispatch.prefix import order_keys
from batchyard.dispatch.routes import Route, Routes, dispatch_order
from batchyard.dispatch.worker import Worker
from batchyard.fairness import EQUAL
from batchyard.ledger import CreateKey
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Batch
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.requests import Records, plan_shards, sizes_of
from batchyard.testing.clock import ManualClock
from batchyard.upstream.simulated import Settings, Simulated
from helpers_inline import InlineExecutor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.fairness import Shares
    from batchyard.price import Usage
    from batchyard.upstream import Call, Outcome

MODEL = "claude-opus-5-5"
WORDS = "The yard keeps what it was given and answers when it is asked to do so. "


def block(text: str, *, ttl: str | None = "5m") -> dict[str, Any]:
    """Return a block of text, marked unless `ttl` is None."""
    made: dict[str, Any] = {"type": "text", "text": text}
    if ttl is not None:
        made["cache_control"] = {"type": "ephemeral", "ttl": ttl}
    return made


def shared(number: int, *, repeats: int = 60) -> str:
    """Return a long text that all requests of a group have in common."""
    return f"Group {number}. " + WORDS * repeats


def grouped(groups: int, each: int, *, ttl: str = "5m", model: str = MODEL) -> list[dict[str, Any]]:
    """Return the params of groups with a marked system prompt, in turns: the worst order."""
    return [
        {
            "model": model,
            "max_tokens": 20,
            "system": [block(shared(group), ttl=ttl)],
            "messages": [{"role": "user", "content": f"Question {number} to {group}?"}],
        }
        for number in range(each)
        for group in range(groups)
    ]


@dataclass
class Watched:
    """An upstream that notes when each call came, and may answer otherwise."""

    real: Simulated
    clock: ManualClock
    calls: list[tuple[float, str]] = field(default_factory=list)
    instead: Callable[[Call, int], Outcome | float | None] = lambda call, number: None
    """Another outcome for the nth call of all, or seconds that it takes longer."""
    at_once: int = 0
    """The most calls that were here at a time."""
    name: str = "sim"
    billing: str = "simulated"
    fetches_urls: bool = True
    unset_key: str | None = None
    _here: int = 0

    async def send(self, call: Call) -> Outcome:
        self.calls.append((self.clock.monotonic_s(), call.custom_id))
        self._here += 1
        self.at_once = max(self.at_once, self._here)
        try:
            return await self._answer(call)
        finally:
            self._here -= 1

    async def _answer(self, call: Call) -> Outcome:
        other = self.instead(call, len(self.calls) - 1)
        if isinstance(other, float):
            await self.clock.sleep(other)
        elif other is not None:
            await self.clock.sleep(0.5)
            return other
        return await self.real.send(call)


class CacheWorld:
    """One model, and one worker before it, or several that divide the slots."""

    def __init__(
        self,
        root: Path,
        *,
        latency: float = 2.0,
        slots: int = 64,
        workers: int = 1,
        shares: Shares = EQUAL,
        calls_max: int = limits.CALLS_MAX,
    ) -> None:
        asyncio.get_running_loop().set_default_executor(InlineExecutor())
        self.clock = ManualClock()
        self.store = DirectorySegments(root / "segments")
        self.ledger = SqliteLedger(root / "ledger.db", threads=InlineExecutor)
        settings = Settings(latency=latency, jitter=0.5 if latency else 0.0, words=5)
        self.model = Watched(Simulated("sim", settings, self.clock), self.clock)
        self.routes = Routes([Route("sim")])
        upstreams: Any = {"sim": self.model}
        self._workers = [
            Worker(
                ledger=self.ledger,
                store=self.store,
                upstreams=upstreams,
                routes=self.routes,
                slots={"sim": slots},
                calls_max=calls_max,
                clock=self.clock,
                rng=random.Random(number),
                owner=None if workers == 1 else f"worker-{number}",
                shares=shares,
            )
            for number in range(1, workers + 1)
        ]
        self.worker = self._workers[0]
        self._running = [asyncio.create_task(worker.run()) for worker in self._workers]

    async def create(
        self,
        requests: list[dict[str, Any]],
        *,
        in_order: bool = True,
        workspace: str = "w",
        window_s: int = 86_400,
    ) -> Batch:
        """Accept a batch of these params, as the server does; r0, r1 and so on are their ids."""
        batch_id = ids.mint("msgbatch")
        made = [{"custom_id": f"r{n}", "params": each} for n, each in enumerate(requests)]
        entries = wire.split(wire.encode({"requests": made}))
        sizes, pools = sizes_of(entries), self.routes.pools(entries)
        keys = order_keys(entries) if in_order else None
        order = dispatch_order(pools, keys)
        shards = plan_shards(entries, sizes, pools, order, keys)
        records = Records(entries, sizes, order, shards)
        self.store.put(segments.requests_name(batch_id), records.chunks())
        now = self.clock.now_us()
        batch = Batch(
            id=batch_id,
            workspace=workspace,
            requests=len(requests),
            created_us=now,
            expires_us=now + window_s * limits.SECOND_US,
            version="2023-06-01",
            billing="simulated",
        )
        key = CreateKey(key=batch_id, digest=b"", until_us=now + 1, replaces=False)
        assert await self.ledger.create(batch, records.shards(), key) is None
        self.worker.wake()
        return batch

    async def cancel(self, batch: Batch) -> None:
        await self.ledger.cancel(batch.workspace, batch.id, self.clock.now_us())
        self.worker.cancel(batch.id)

    async def end(self, *batches: Batch, within_s: float = 600.0) -> float:
        """Let all end; return the seconds until the last call was answered, to a tenth."""
        began = self.clock.monotonic_s()
        for batch in batches:
            while True:
                found = await self.ledger.get(batch.workspace, batch.id)
                assert found is not None
                if found.ended_us is not None:
                    break
                assert self.clock.monotonic_s() - began < within_s, "the batch does not end"
                assert not any(task.done() for task in self._running), self._running
                await self.clock.advance(0.1)
        return self.clock.monotonic_s() - began

    def lines(self, batch: Batch) -> list[tuple[str, str, Usage]]:
        """Return id, kind and usage of each result."""
        data = b"".join(
            self.store.read(extent.segment, 0, extent.length)
            for extent in read_manifest(self.store, batch.id)
        )
        return [result.read_line(line) for line in data.splitlines()]

    def share_read(self, batch: Batch) -> float:
        """Return the share of the cacheable tokens of a batch that were read, not written."""
        usages = [usage for _, _, usage in self.lines(batch)]
        read = sum(usage.cache_read_tokens for usage in usages)
        return read / (read + sum(usage.cache_write_tokens for usage in usages))

    def kinds(self, batch: Batch) -> dict[str, int]:
        kinds = [kind for _, kind, _ in self.lines(batch)]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}  # type: ignore[call-overload]

    async def close(self) -> None:
        for worker in self._workers:
            worker.leave()
        while not all(task.done() for task in self._running):
            await self.clock.advance(1)
        await asyncio.gather(*self._running)
        await self.ledger.close()


def error_body(kind: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": "no"}}).encode()
