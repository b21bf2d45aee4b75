"""Harm to processes that share PostgreSQL and a bucket, and to the lines between, under load.

Two APIs and two workers, each with a directory of its own, share nothing but two URLs. The journal
of `load` is kept: in the end everything in it must be true.

    BATCHYARD_CRASH_STORES=100 .venv/bin/pytest -s tests/crash/test_kill_stores.py
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import pytest

from crash.checking import assert_no_defect
from crash.load import SEED, Journal, Latency, check, clients_on, figures
from helpers_line import Line
from helpers_many import SHORT, Fleet, Member
from helpers_upstream import DEADLINE_S, Upstream
from helpers_yard import HEADERS, Answer, Yard, assert_answered, poll, request
from store.making import postgres, s3, stop_servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

KINDS = ("api", "worker", "frozen", "database", "partition", "objects")
HARMS = int(os.environ.get("BATCHYARD_CRASH_STORES", len(KINDS)))
LEASE_S = 8.0  # long enough that a busy machine ends none by itself
LONGER_S = 1.2 * LEASE_S
HARMED_S = 3.0  # an object store that is slow or refuses
BOUNDS = SHORT | {"limits:LEASE_US": int(LEASE_S * 1_000_000)}


@pytest.fixture(scope="module", autouse=True)
def _servers() -> Iterator[None]:
    yield
    stop_servers()


class LinedFleet(Fleet):
    """A fleet whose first worker reaches database and bucket over lines that can be harmed."""

    def __init__(self, root: Path, upstream: str, name: str) -> None:
        super().__init__(root, upstream, postgres(), s3(), name)
        self.to_database = Line(postgres().port)
        endpoint = s3().environment["AWS_ENDPOINT_URL"]
        self.to_bucket = Line(int(endpoint.rpartition(":")[2]))
        shared = dict(self.shared)
        shared["BATCHYARD_LEDGER"] = shared["BATCHYARD_LEDGER"].replace(
            f":{postgres().port}/", f":{self.to_database.port}/"
        )
        shared["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self.to_bucket.port}"
        self.workers[0] = Member(root, "worker0", "worker", upstream, shared)
        for member in self.members:
            member._bounds = BOUNDS

    def __enter__(self) -> Self:  # type: ignore[override]
        self.to_database.__enter__()
        self.to_bucket.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *rest: object) -> None:
        super().__exit__(*rest)
        self.to_database.__exit__()
        self.to_bucket.__exit__()

    def logs(self) -> str:
        return "\n".join(member.read_log()[-3_000:] for member in self.members)

    def assert_no_defect(self) -> None:
        for member in self.members:
            assert_no_defect(member)


class AnyApi(Yard):
    """Whichever API of a fleet answers: what a client with retries behind a balancer sees."""

    def __init__(self, fleet: LinedFleet, root: Path) -> None:
        super().__init__(root / "any", "")
        self._fleet = fleet
        self.is_patient = False
        """Whether to wait for an answer instead of failing like a connection."""

    def post(self, path: str, body: object, headers: Mapping[str, str] = HEADERS) -> Answer:
        # As every retry of an official client has one: else a create that was kept, and whose
        # answer was lost with its API, would be a second batch at the next API.
        key = {"idempotency-key": random.randbytes(12).hex()}
        return super().post(path, body, {**headers, **key})

    def request(self, *args: Any, **kwargs: Any) -> Answer:
        end = time.monotonic() + DEADLINE_S
        is_repeated = False
        while True:
            for api in random.sample(self._fleet.apis, len(self._fleet.apis)):
                try:
                    answer = api.request(*args, **kwargs)
                except OSError:
                    is_repeated = True
                    continue
                if is_repeated and args[0] == "DELETE" and answer.status == 404:
                    raise ConnectionError("deleted by a call whose answer was lost")
                if answer.status != 529:
                    return answer
                is_repeated = True
            if not self.is_patient or time.monotonic() > end:
                raise ConnectionError("no API answers")
            time.sleep(0.05)

    def progress(self, batch_id: str) -> dict[str, Any]:
        return super().progress(batch_id) | {"logs": self._fleet.logs()}


def strike(kind: str, rng: random.Random, fleet: LinedFleet) -> None:
    """Do one kind of harm, and repair it."""
    match kind:
        case "api" | "worker":
            rng.choice(fleet.apis if kind == "api" else fleet.workers).kill()
            fleet.start()
        case "frozen":
            victim = rng.choice(fleet.workers)
            victim.signal(signal.SIGSTOP)
            time.sleep(LONGER_S)  # the moment itself: nothing is waited for
            victim.signal(signal.SIGCONT)
        case "database":
            fleet.postgres.kill()
            time.sleep(rng.random())
            fleet.postgres.start()
        case "partition":
            line = rng.choice([fleet.to_database, fleet.to_bucket])
            line.cut()
            time.sleep(LONGER_S)
            line.mend()
        case "objects":
            fleet.to_bucket.delay_s = 0.2
            fleet.to_bucket.refuses = rng.random() < 0.5
            time.sleep(HARMED_S)
            fleet.to_bucket.delay_s, fleet.to_bucket.refuses = 0.0, False


@pytest.mark.timeout(900 + 30 * HARMS)
def test_nothing_acknowledged_is_lost_whatever_breaks(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    journal = Journal()
    kinds: Counter[str] = Counter()
    plan = rng.sample(KINDS, len(KINDS))[:HARMS] + rng.choices(KINDS, k=max(0, HARMS - len(KINDS)))
    with Upstream(Latency(SEED)) as upstream, LinedFleet(tmp_path, upstream.url, "harm") as fleet:
        yard = AnyApi(fleet, tmp_path)
        with clients_on(yard, upstream, journal, leave_s=2 * DEADLINE_S) as assert_well:
            try:
                for kind in plan:
                    goal = len(upstream.calls) + rng.randrange(1, 200)
                    poll(lambda goal=goal: len(upstream.calls) >= goal, fleet.logs)  # type: ignore[misc]
                    kinds[kind] += 1
                    strike(kind, rng, fleet)
                    assert_well()
            finally:
                yard.is_patient = True
        check(yard, journal)
        fleet.assert_no_defect()
        report = figures(upstream, journal) | {"harms": dict(kinds)}
        print(f"\ncrash figures of shared stores: {report}")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[LinedFleet]:
    with LinedFleet(tmp_path_factory.mktemp("lined"), upstream.url, "lined") as opened:
        yield opened
        opened.assert_no_defect()


def hold(fleet: LinedFleet, upstream: Upstream, gate: str) -> tuple[str, list[str]]:
    """Create a batch that only the first worker takes up, its calls held by a gate."""
    fleet.workers[1].signal(signal.SIGSTOP)
    try:
        prompts = [f"{gate}{n}|hold:{gate}" for n in range(6)]
        batch = fleet.apis[0].create([request(prompt) for prompt in prompts])
        for prompt in prompts:
            upstream.wait_calls(prompt.partition("|")[0], 1)
    finally:
        fleet.workers[1].signal(signal.SIGCONT)
    return batch["id"], prompts


def calls(upstream: Upstream, prompts: list[str]) -> list[int]:
    return [upstream.number(prompt.partition("|")[0]) for prompt in prompts]


def test_a_worker_that_is_cut_off_from_the_database_is_fenced(
    fleet: LinedFleet, upstream: Upstream
) -> None:
    batch_id, prompts = hold(fleet, upstream, "p")
    fleet.to_database.cut()
    try:
        poll(lambda: min(calls(upstream, prompts)) >= 2, fleet.logs)  # the other has taken over
        upstream.gate("p").open()
        fleet.apis[0].wait_ended(batch_id)
        before = fleet.apis[0].results(batch_id)
        assert_answered(before, prompts)
    finally:
        fleet.to_database.mend()
    poll(lambda: "lost shard" in fleet.workers[0].read_log(), fleet.logs)
    assert fleet.apis[1].results(batch_id) == before
    assert_answered(fleet.apis[1].run(["afterwards"]), ["afterwards"])


@pytest.mark.parametrize("how", ["refuses", "is slow", "is away"])
def test_an_object_store_that_fails_for_a_while_costs_no_call(
    fleet: LinedFleet, upstream: Upstream, how: str
) -> None:
    gate = how.replace(" ", "")
    batch_id, prompts = hold(fleet, upstream, gate)
    line = fleet.to_bucket
    if how == "refuses":
        line.refuses = True
    elif how == "is slow":
        line.delay_s = 0.3
    else:
        line.cut()
    try:
        upstream.gate(gate).open()
        if how == "refuses":
            before = line.refused
            poll(lambda: line.refused >= before + 2, fleet.logs)  # it was tried again
        time.sleep(LONGER_S)  # while calls to the store wait, leases are renewed
    finally:
        line.mend()
        line.refuses, line.delay_s = False, 0.0
    fleet.apis[0].wait_ended(batch_id)
    assert_answered(fleet.apis[1].results(batch_id), prompts)
    assert calls(upstream, prompts) == [1] * len(prompts)
