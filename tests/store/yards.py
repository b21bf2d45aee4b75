"""Data directories for the check: real ledger, real segments, a batch in every state."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from batchyard import limits, result, segments, wire
from batchyard.clock import steady_us
from batchyard.dispatch.adopt import adopt
from batchyard.dispatch.ending import end_batch
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.shard import Request, ShardRun
from batchyard.ledger import Commit, CreateKey
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Batch
from batchyard.result import read_message
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.requests import Records, plan_shards, read_records, sizes_of
from batchyard.testing import ManualClock
from batchyard.verify import Finding, Summary, check

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batchyard.ledger import Claim
    from batchyard.model import ShardPlan

PER_SHARD = 4
NAMES = {
    name: f"msgbatch_01{name.ljust(22, '1')}"
    for name in ("fresh", "part", "done", "ended", "stopped", "archived", "gone")
}


@dataclass
class Checked:
    """What a check has found."""

    summary: Summary
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def rules(self) -> list[str]:
        return [str(finding.rule) for finding in self.findings]


def checked(data: Path) -> Checked:
    """Check a data directory."""
    findings: list[Finding] = []
    summary = check(data, findings.append)
    assert summary.errors >= sum(finding.level == "error" for finding in findings)
    return Checked(summary, findings)


def message(custom_id: str) -> bytes:
    return wire.encode(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": f"answer to {custom_id}"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "output_tokens": 2},
        }
    )


@dataclass
class Maker:
    """Makes batches as the server and a worker do, one step at a time."""

    data: Path
    clock: ManualClock = field(default_factory=ManualClock)
    per_shard: int = PER_SHARD

    def __post_init__(self) -> None:
        for directory in (self.data, self.data / "spool"):
            directory.mkdir(mode=0o700)
        (self.data / "ledger.db").touch(mode=0o600)  # as the umask of `serve` has it
        self.store = DirectorySegments(self.data / "segments")
        self.ledger = SqliteLedger(self.data / "ledger.db")

    async def create(self, name: str, requests: int) -> Batch:
        """Accept a batch."""
        batch_id = NAMES[name]
        body = wire.encode(
            {
                "requests": [
                    {
                        "custom_id": f"{name}-{n}",
                        "params": {"model": "m", "max_tokens": 5, "messages": [f"é {n}"]},
                    }
                    for n in range(requests)
                ]
            }
        )
        entries = wire.split(body)
        sizes = sizes_of(entries)
        shards: list[ShardPlan] = []
        for start in range(0, requests, self.per_shard):
            offset = shards[-1].offset + shards[-1].length if shards else 0
            order = range(start, min(start + self.per_shard, requests))
            (plan,) = plan_shards(entries, sizes, ["up/m"] * requests, order)
            shards.append(replace(plan, index=len(shards), offset=offset))
        records = Records(entries, sizes, range(requests), shards)
        self.store.put(segments.requests_name(batch_id), records.chunks())
        shards = records.shards()
        now = self.clock.now_us()
        batch = Batch(
            id=batch_id,
            workspace="w",
            requests=requests,
            created_us=now,
            expires_us=now + limits.PROCESSING_WINDOW_US,
            version="2023-06-01",
            billing="standard",
        )
        key = CreateKey(
            key=f"key {name}",
            digest=hashlib.sha256(body).digest(),
            until_us=now + limits.IDEMPOTENCY_WINDOW_US,
            replaces=False,
        )
        assert await self.ledger.create(batch, shards, key) is None
        return batch

    async def claim(self) -> Claim:
        lease_us = steady_us(self.clock) + limits.LEASE_US
        (claim,) = await self.ledger.claim("me", "up/m", lease_us, 1)
        return claim

    async def take_up(self, claim: Claim) -> ShardRun:
        """Adopt what earlier attempts have left."""
        data = self.store.read(segments.requests_name(claim.batch), claim.offset, claim.length)
        requests = [Request(*record) for record in read_records(data)]
        adopted = adopt(self.store, claim, {request.custom_id for request in requests})
        run = ShardRun(claim, requests, adopted)
        if claim.attempt > 1:
            assert await self.ledger.adopt("me", claim, run.extents)
        return run

    def answer(self, run: ShardRun, kinds: Sequence[str]) -> None:
        """Record results of the next requests of a shard, each of a kind, and sync them."""
        for kind in kinds:
            request = run.take(object())  # type: ignore[arg-type]
            assert request is not None
            custom_id = request.custom_id
            if kind == "succeeded":
                read = read_message(message(custom_id))
                line = result.succeeded(custom_id, read.body)
                run.settle(custom_id, "succeeded", line, read.usage)
            elif kind == "errored":
                run.fail(custom_id, "api_error", "it failed", None)
            else:
                assert kind in {"canceled", "expired"}
                run.settle(custom_id, kind, result.unsent(custom_id, kind))  # type: ignore[arg-type]
        if run.appender is None:
            run.appender = self.store.appender(run.segment_name())
        run.appender.append(run.take_lines())
        run.appender.sync()

    async def commit(self, run: ShardRun) -> None:
        if run.appender is not None:
            run.appender.close()
        claim = run.claim
        commit = Commit(
            batch=claim.batch,
            index=claim.index,
            attempt=claim.attempt,
            extents=run.extents,
            counts=run.counts,
            tokens=run.tokens,
        )
        assert (await self.ledger.commit("me", [commit])).accepted

    async def give_back(self, run: ShardRun) -> None:
        """Lose a shard as a crash does."""
        assert run.appender is not None
        run.appender.close()
        await self.ledger.release("me")

    async def finish(self, kinds: Sequence[str]) -> None:
        """Do everything that is left."""
        while await self.ledger.pools_ready():
            run = await self.take_up(await self.claim())
            self.answer(run, [kinds[n % len(kinds)] for n in range(len(run.unsent))])
            await self.commit(run)
        for batch in await self.ledger.finished():
            await end_batch(self.ledger, self.store, self.clock, batch)

    async def interrupted(self) -> None:
        """Run the first shard in two attempts, so that its result has two extents."""
        run = await self.take_up(await self.claim())
        self.answer(run, ["succeeded", "errored"])
        await self.give_back(run)
        run = await self.take_up(await self.claim())
        self.answer(run, ["succeeded"] * len(run.unsent))
        await self.commit(run)


async def make_yard(data: Path) -> None:
    """Make a directory with a batch in every state, as a killed yard leaves it but for its log."""
    maker = Maker(data)
    ledger, clock = maker.ledger, maker.clock
    await maker.create("archived", 2)
    await maker.finish(["succeeded"])
    await clock.advance(30 * 86_400)
    await Keeper(ledger, maker.store, clock, owner="me").sweep()
    await maker.create("gone", 2)
    await maker.finish(["succeeded"])
    assert await ledger.delete("w", NAMES["gone"], clock.now_us())
    maker.store.delete_batch(NAMES["gone"])
    await maker.create("ended", 6)
    await maker.interrupted()
    await maker.finish(["succeeded", "errored"])
    await maker.create("stopped", 5)
    await clock.advance(1)
    assert await ledger.cancel("w", NAMES["stopped"], clock.now_us())
    await maker.finish(["succeeded", "canceled"])
    await maker.create("part", 3 * PER_SHARD)
    await maker.interrupted()  # shard 0 is done
    run = await maker.take_up(await maker.claim())
    maker.answer(run, ["succeeded", "succeeded"])
    await maker.give_back(run)
    run = await maker.take_up(await maker.claim())  # two requests are frozen
    maker.answer(run, ["errored"])  # and a third stands in a segment that no row names
    assert run.appender is not None
    run.appender.close()
    await maker.create("fresh", 3)
    await ledger.close()


def change(data: Path, statement: str, *bound: object) -> None:
    """Change the ledger behind its back."""
    with closing(sqlite3.connect(data / "ledger.db")) as db, db:
        changed = db.execute(statement, bound).rowcount
        assert changed >= 1, f"{changed} rows changed"


def row(data: Path, statement: str, *bound: object) -> Any:
    with closing(sqlite3.connect(data / "ledger.db")) as db:
        return db.execute(statement, bound).fetchone()


def path_of(data: Path, name: str) -> Path:
    """Return where the segments of a batch lie."""
    return data / "segments" / segments.batch_prefix(NAMES[name])
