"""A world in one process: real ledger, segments and workers; time, chance and disasters by seed.

Threads are replaced by executors that run at once, so the order of everything follows from
the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchyard import ids, limits, segments, wire
from batchyard.dispatch.ending import read_manifest
from batchyard.dispatch.keeper import Keeper
from batchyard.dispatch.routes import Route, Routes, dispatch_order
from batchyard.dispatch.worker import Worker
from batchyard.errors import DamagedError
from batchyard.ledger import CreateKey
from batchyard.ledger.sqlite import SqliteLedger
from batchyard.model import Batch, Extent, ShardPlan
from batchyard.result import read_line
from batchyard.segments.directory import DirectorySegments
from batchyard.segments.requests import Records, plan_shards, sizes_of
from batchyard.testing.clock import ManualClock
from batchyard.upstream import Call, Failure, FailureKind, Outcome, Reply
from batchyard.verify import Finding, check
from helpers_inline import InlineExecutor
from sim.gated import Gated
from sim.watching import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from batchyard.model import Billing
    from batchyard.segments import Appender

WORKSPACES = ("wrkspc_a", "wrkspc_b", "wrkspc_c")
# A canceled shard is noticed at the next renewal; frozen workers are judged apart.
NOTICE_US = 2 * limits.SECOND_US


class PowerCutSegments:
    """Real segments that know which bytes were synced, so that a power cut can take the others."""

    sync_interval_s = DirectorySegments.sync_interval_s
    syncs_at_once = DirectorySegments.syncs_at_once
    repairs_itself = DirectorySegments.repairs_itself
    comes_back = DirectorySegments.comes_back

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = DirectorySegments(root)
        self._synced: dict[str, int] = {}

    def put(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        self._real.put(name, chunks)

    def appender(self, name: str) -> Appender:
        self._synced[name] = -1  # not even its name is durable
        return _WatchedAppender(self._real.appender(name), self._synced)

    def check_writable(self, batch_id: str, *, is_again: bool = False) -> None:
        self._real.check_writable(batch_id, is_again=is_again)

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._real.read(name, offset, length)

    def size(self, name: str) -> int:
        return self._real.size(name)

    def names(self, prefix: str) -> list[str]:
        return self._real.names(prefix)

    def sync(self, name: str) -> None:
        self._real.sync(name)
        self._synced[name] = self._real.size(name)

    def delete_batch(self, batch_id: str) -> None:
        self._real.delete_batch(batch_id)
        prefix = segments.batch_prefix(batch_id)
        self._forget(lambda name: name.startswith(prefix))

    def spreads(self) -> list[str]:
        return self._real.spreads()

    def batches(self, spread: str | None = None) -> list[str]:
        return self._real.batches(spread)

    def written_us(self, batch_id: str) -> int | None:
        return self._real.written_us(batch_id)

    def synced(self, name: str) -> int:
        """Return how many bytes of a result segment survive a power cut."""
        return self._synced.get(name, 0)

    def cut_power(self, rng: random.Random) -> None:
        """Lose some of what was not synced: a tail, torn anywhere, or filled with zeros."""
        # By shard and attempt: the order of writing within a round, and the ends of the names,
        # do not follow from the seed.
        for name, synced in sorted(self._synced.items(), key=lambda item: item[0].rpartition(".")):
            path = self._root / name
            if synced < 0 and rng.random() < 0.5:
                path.unlink()
                self._synced[name] = 0
                continue
            data = path.read_bytes()
            kept = rng.randint(max(synced, 0), len(data))
            zeros = b"\0" * (rng.randint(0, 50) if rng.random() < 0.2 and kept > synced else 0)
            path.write_bytes(data[:kept] + zeros)
            self._synced[name] = kept + len(zeros)
        self._forget(lambda name: not (self._root / name).exists())

    def _forget(self, gone: Callable[[str], bool]) -> None:
        for name in [name for name in self._synced if gone(name)]:
            del self._synced[name]  # in place: open appenders write to the same dict


class _WatchedAppender:
    def __init__(self, real: Appender, synced: dict[str, int]) -> None:
        self._real = real
        self._synced = synced
        self._length = 0
        self._closed = False
        self.name = real.name

    def append(self, chunks: Sequence[bytes]) -> None:
        assert not self._closed, "appended to a closed segment"
        self._real.append(chunks)
        self._length = sum(extent.length for extent in self._real.extents())

    def extents(self) -> tuple[Extent, ...]:
        return self._real.extents()

    def sync(self) -> None:
        assert not self._closed, "synced a closed segment"
        self._real.sync()
        self._synced[self.name] = self._length

    def close(self) -> None:
        assert not self._closed, "closed a segment twice"
        self._closed = True
        self._real.close()

    def remove(self) -> None:
        assert not self._closed, "removed a closed segment"
        self._real.remove()


@dataclass
class Sent:
    """What was accepted as one batch, and what may happen to it."""

    batch: Batch
    custom_ids: list[str]
    invalid: set[str]
    cancel_us: int | None = None


@dataclass
class Chances:
    """How often an upstream does what."""

    error_500: float = 0.0
    busy_429: float = 0.0
    garbage: float = 0.0
    broken: float = 0.0
    refused_400: float = 0.0
    denied_401: float = 0.0
    stuck: float = 0.0
    slowest_s: float = 5.0
    exactly_s: float | None = None
    next_s: list[float] = field(default_factory=list)
    """How long the next calls take, before chance has its way again."""


@dataclass
class ScriptedUpstream:
    """Answers by chance, and watches that nobody asks it for what is done already."""

    name: str
    world: World
    chances: Chances
    billing: Billing = "simulated"
    fetches_urls: bool = True
    unset_key: str | None = None

    async def send(self, call: Call) -> Outcome:
        world, rng, chances = self.world, self.world.rng, self.chances
        name = json.loads(call.params)["messages"][0]["content"]
        world.on_call(name)
        stuck = rng.random() < chances.stuck
        delay_s = rng.uniform(60, 200) if stuck else rng.random() * chances.slowest_s
        if chances.next_s:
            delay_s = chances.next_s.pop(0)
        elif chances.exactly_s is not None:
            delay_s = chances.exactly_s
        await world.clock.sleep(delay_s)
        outcome = self._outcome(name, rng)
        world.trace.append(f"{world.clock.now_us()} {name} {str(outcome)[:60]}")
        final = isinstance(outcome, Reply) and (
            outcome.status == 400 or (outcome.status == 200 and outcome.body != b"{}")
        )
        if final:
            world.answered.add(name)
        return outcome

    def _outcome(self, name: str, rng: random.Random) -> Outcome:
        chances = self.chances
        if rng.random() < chances.error_500:
            return Reply(500, b"<html>oops</html>")
        if rng.random() < chances.busy_429:
            return Reply(429, b"{}", rng.choice([None, "1", "7", "nonsense"]))
        if rng.random() < chances.garbage:
            return Reply(200, b"{}")
        if rng.random() < chances.broken:
            return Failure(rng.choice([FailureKind.CONNECT, FailureKind.BROKEN]), "gone")
        if rng.random() < chances.denied_401:
            return Reply(401, b'{"error":{"type":"authentication_error","message":"no"}}')
        if rng.random() < chances.refused_400:
            return Reply(400, b'{"error":{"type":"invalid_request_error","message":"bad"}}')
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": name}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "output_tokens": 2, "service_tier": "standard"},
        }
        return Reply(200, json.dumps(message, indent=rng.choice([None, 1])).encode())

    def forward(self, request: object) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        pass


@dataclass
class Process:
    """One worker with its keeper, running."""

    worker: Worker
    gate: asyncio.Event
    tasks: list[asyncio.Task[None]]
    ledger: Gated


@dataclass
class World:
    """Everything, for one seed."""

    rng: random.Random
    root: Path
    slots: int
    chances: Chances
    exact_calls: bool
    """Whether one process at a time runs, so that every repeated call must have a reason."""
    clock: ManualClock = field(default_factory=ManualClock)
    sent: dict[str, Sent] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    """Requests with a final answer that no crash has taken away."""
    calls_of: dict[str, int] = field(default_factory=dict)
    windows_s: Sequence[int] = (20, 300, 86_400, 86_400)
    """How long batches have, by chance."""
    sizes: Sequence[int] = (1, 2, 5, 20, 60)
    """How many requests."""
    finds_full: Callable[[str], bool] = lambda _: False
    """Whether a write of the ledger, by its method, finds the disk full."""
    frozen_until_us: int = 0
    processes: list[Process] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    broken: list[AssertionError] = field(default_factory=list)
    """What calls were made that must not be."""

    def __post_init__(self) -> None:
        asyncio.get_running_loop().set_default_executor(InlineExecutor())
        self.root.mkdir(mode=0o700, exist_ok=True)
        self.store = self._make_store()
        self.ledger = self._open()
        self.upstreams = {
            "one": ScriptedUpstream("one", self, self.chances),
            "two": ScriptedUpstream("two", self, self.chances),
        }
        self.routes = Routes([Route("one", ("alpha*",)), Route("two", ("beta*",))])
        self.watch = self._make_watch()

    # What stores it has; `shared.py` has others.

    def _make_store(self) -> Any:
        return PowerCutSegments(self.root / "segments")

    def _open(self) -> Any:
        return SqliteLedger(self.root / "ledger.db", threads=InlineExecutor)

    def _make_watch(self) -> Watch:
        return Watch(
            self.root / "ledger.db",
            lambda name, length: self.store.read(name, 0, length),
            self.store.synced,
        )

    def _of_process(self) -> dict[str, Any]:
        """Return what a worker has for itself."""
        return {"store": self.store}

    # What happens --------------------------------------------------------------------------------

    def start(self, *, freeze_before: str | None = None) -> Process:
        """Start a worker and a keeper; freeze them before the first use of a ledger method."""
        gate = asyncio.Event()
        gate.set()
        ledger: Any = Gated(self.ledger, gate, freeze_before, self.finds_full)
        own = self._of_process()
        worker = Worker(
            ledger=ledger,
            upstreams=self.upstreams,
            routes=self.routes,
            slots=dict.fromkeys(self.upstreams, self.slots),
            clock=self.clock,
            rng=random.Random(self.rng.random()),
            **own,
        )
        keeper = Keeper(ledger, own["store"], self.clock, owner=worker.owner)
        tasks = [asyncio.create_task(worker.run()), asyncio.create_task(keeper.run())]
        process = Process(worker, gate, tasks, ledger)
        self.processes.append(process)
        return process

    async def kill(self, process: Process) -> None:
        """End a process in the middle of whatever it does."""
        self.check_alive()
        self.processes.remove(process)
        process.ledger.is_dead = True
        for task in process.tasks:
            task.cancel()
        for task in process.tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.sleep(0)

    async def leave(self, process: Process) -> None:
        """Ask a process to go and wait until it has gone."""
        worker, keeper = process.tasks
        process.worker.leave()
        while not worker.done():
            await self.clock.advance(1)
        await worker
        self.processes.remove(process)
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper

    async def restart(self, *, power_cut: bool) -> None:
        """Kill everything, lose what was not synced if the power was cut, and open it again."""
        for process in list(self.processes):
            await self.kill(process)
        await self.ledger.close()
        if power_cut:
            self.store.cut_power(self.rng)
        # Only lines on disk count from now on; every other answer is lost and may be asked again.
        self.answered = self._on_disk()
        self.ledger = self._open()
        await Keeper(self.ledger, self.store, self.clock, owner="").clear_leftovers()
        self.trace.append(f"{self.clock.now_us()} restart power_cut={power_cut}")

    def check_alive(self) -> None:
        """Check that every process works, and what must be true after every step."""
        self.look()
        for process in self.processes:
            for task in process.tasks:
                if task.done():
                    task.result()
                    raise AssertionError("a worker ended by itself")

    async def create(
        self,
        *,
        requests: int | None = None,
        shard: int | None = None,
        workspace: str | None = None,
        window_s: int = 86_400,
    ) -> Sent:
        """Accept a batch, as `server/uploads.py` and `server/batches.py` do."""
        rng = self.rng
        chosen = requests is not None  # then nothing of it is left to chance
        batch_id = ids.from_number("msgbatch", rng.getrandbits(128))
        custom_ids = [f"r{n}" for n in range(requests or rng.choice(self.sizes))]
        invalid = {c for c in custom_ids if not chosen and rng.random() < 0.03}
        models = rng.choices(
            ["alpha", "beta", "beta-2", "gamma"], [8, 4, 2, 0.3], k=rng.randint(1, 3)
        )
        models = ["alpha"] if chosen else models
        body = wire.encode(
            {
                "requests": [
                    {
                        "custom_id": custom_id,
                        "params": {
                            "model": rng.choice(models),
                            "max_tokens": 0 if custom_id in invalid else 5,
                            "messages": [{"role": "user", "content": f"{batch_id}/{custom_id}"}],
                        },
                    }
                    for custom_id in custom_ids
                ]
            }
        )
        entries = wire.split(body)
        sizes, pools = sizes_of(entries), self.routes.pools(entries)
        order = dispatch_order(pools)
        size = shard or rng.choice([1, 3, 10, 500])
        shards: list[ShardPlan] = []
        for start in range(0, len(order), size):  # smaller shards than real ones
            offset = shards[-1].offset + shards[-1].length if shards else 0
            index = len(shards)
            shards += (
                ShardPlan(
                    index=index + part.index,
                    pool=part.pool,
                    offset=offset + part.offset,
                    length=part.length,
                    requests=part.requests,
                )
                for part in plan_shards(entries, sizes, pools, order[start : start + size])
            )
        records = Records(entries, sizes, order, shards)
        self.store.put(segments.requests_name(batch_id), records.chunks())
        shards = records.shards()
        now = self.clock.now_us()
        window = window_s if chosen else rng.choice(self.windows_s)
        batch = Batch(
            id=batch_id,
            workspace=workspace or rng.choice(WORKSPACES),
            requests=len(custom_ids),
            # As long ago as leaves so much of its 24 hours.
            created_us=now + window * limits.SECOND_US - limits.PROCESSING_WINDOW_US,
            expires_us=now + window * limits.SECOND_US,
            version="2023-06-01",
            billing="simulated",
        )
        digest = hashlib.sha256(body).digest()
        key = CreateKey(key=batch_id, digest=digest, until_us=now + 1, replaces=False)
        assert await self.ledger.create(batch, shards, key) is None
        sent = Sent(batch, custom_ids, invalid)
        self.sent[batch_id] = sent
        for process in self.processes:
            process.worker.wake()
        return sent

    async def cancel(self, sent: Sent) -> None:
        """Cancel a batch; an ended one stays as it is."""
        batch = await self.ledger.cancel(sent.batch.workspace, sent.batch.id, self.clock.now_us())
        assert batch is not None
        sent.cancel_us = batch.cancel_us
        for process in self.processes:
            process.worker.cancel(sent.batch.id)

    async def delete(self, sent: Sent) -> None:
        """Delete a batch that has ended, as `server/batches.py` does."""
        batch = sent.batch
        assert await self.ledger.delete(batch.workspace, batch.id, self.clock.now_us())
        self.watch.deleted.add(batch.id)
        del self.sent[batch.id]
        self.store.delete_batch(batch.id)

    async def close(self, *, but: frozenset[str] = frozenset()) -> None:
        """Let everybody leave, and prove of what is on disk all that `batchyard check` knows.

        Args:
            but: rules that do not hold, because bytes were damaged.
        """
        for process in list(self.processes):
            await self.leave(process)
        self.look()
        await self.ledger.close()
        self.check_disk(but)

    def look(self) -> None:
        """Check what calls have broken until now, and the rows of the ledger."""
        if self.broken:
            raise self.broken[0]
        self.watch.look()

    def check_disk(self, but: frozenset[str] = frozenset()) -> None:
        """Check the data directory, on which nobody works."""
        findings: list[Finding] = []
        summary = check(self.root, findings.append)
        errors = {f.rule: f"{f.rule} {f.where}: {f.text}" for f in findings if f.level == "error"}
        assert errors.keys() == but, errors
        assert summary.batches == len(self.sent)

    @property
    def calls(self) -> int:
        """How many calls the upstreams have got."""
        return sum(self.calls_of.values())

    async def pools_of(self, sent: Sent) -> Sequence[str]:
        """Return the pools of what is left of a batch."""
        return (await self.ledger.progress(sent.batch.id)).pools

    async def batch_of(self, sent: Sent) -> Batch:
        """Return a batch as the ledger has it."""
        batch = await self.ledger.get(sent.batch.workspace, sent.batch.id)
        assert batch is not None, "an accepted batch is gone"
        return batch

    async def open_batches(self) -> list[Sent]:
        return [s for s in self.sent.values() if (await self.batch_of(s)).ended_us is None]

    # What must hold ------------------------------------------------------------------------------

    def on_call(self, name: str) -> None:
        """Check that this call may start now.

        What is raised here the worker takes for a defect of one request: it is kept.
        """
        try:
            self._check_call(name)
        except AssertionError as error:
            self.broken.append(error)
            raise

    def _check_call(self, name: str) -> None:
        batch_id, _, custom_id = name.partition("/")
        sent = self.sent[batch_id]
        now = self.clock.now_us()
        self.trace.append(f"{now} {name} call")
        self.calls_of[name] = self.calls_of.get(name, 0) + 1
        assert custom_id not in sent.invalid, f"{name} is invalid and was sent"
        if self.exact_calls:
            assert name not in self.answered, f"{name} was sent again after its answer"
        assert now < sent.batch.expires_us, f"{name} was sent after its expiry"
        if now > self.frozen_until_us + NOTICE_US:
            canceled = sent.cancel_us
            assert canceled is None or now <= canceled + NOTICE_US, f"{name} was sent when canceled"

    def _on_disk(self) -> set[str]:
        found = set()
        for batch_id, sent in self.sent.items():
            for name in self.store.names(f"{segments.batch_prefix(batch_id)}/r/"):
                for line in self.store.read(name, 0, self.store.size(name)).split(b"\n")[:-1]:
                    with contextlib.suppress(ValueError):
                        found.add(f"{batch_id}/{read_line(line)[0]}")
            assert sent.batch.id == batch_id
        return found

    async def check_ended(self, sent: Sent) -> None:
        """Check all that is promised of an ended batch."""
        batch = await self.batch_of(sent)
        assert batch.ended_us is not None, f"{batch.id} did not end"
        assert batch.created_us <= batch.ended_us
        assert batch.cancel_us == sent.cancel_us
        extents = read_manifest(self.store, batch.id)  # type: ignore[arg-type]
        try:
            data = b"".join(self.store.read(each.segment, 0, each.length) for each in extents)
        except DamagedError as error:
            raise AssertionError(
                f"what was committed did not survive a power cut: {error}"
            ) from error
        assert data.endswith(b"\n")
        lines = [json.loads(line) for line in data[:-1].split(b"\n")]
        assert sorted(line["custom_id"] for line in lines) == sorted(sent.custom_ids)
        kinds = [line["result"]["type"] for line in lines]
        counts = batch.counts
        assert counts.total == batch.requests == len(lines)
        assert counts.succeeded == kinds.count("succeeded")
        assert counts.errored == kinds.count("errored")
        assert counts.canceled == kinds.count("canceled")
        assert counts.expired == kinds.count("expired")
        if counts.canceled:
            assert batch.cancel_us is not None, "canceled without a cancel"
        if counts.expired:
            assert batch.ended_us >= batch.expires_us, "expired before its time"
        for line in lines:
            name = f"{batch.id}/{line['custom_id']}"
            result = line["result"]
            if result["type"] == "succeeded":
                assert result["message"]["content"][0]["text"] == name, "an answer was mixed up"
                assert result["message"]["usage"]["service_tier"] == "batch"
                assert line["custom_id"] not in sent.invalid
            elif result["type"] == "errored":
                assert result["error"]["error"]["type"] != "", line
                assert result["error"]["error"]["message"] != "Internal server error", "a defect"
        assert await self.ledger.progress(batch.id)
        assert not await self.ledger.results(batch.id), (
            "the shards of an ended batch are still there"
        )
