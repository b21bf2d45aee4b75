"""In stores that many machines share, too, a batch whose requests are lost can be taken out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import obstore
import psycopg
import pytest

from batchyard import limits, segments
from batchyard.clock import SystemClock
from batchyard.dispatch.keeper import Keeper
from batchyard.errors import ConfigError
from batchyard.ledger import Held
from batchyard.ledger.left import LeftBatches
from batchyard.segments.objects import ObjectSegments, _path
from batchyard.testing.clock import ManualClock
from batchyard.verify import give_up_shared
from helpers_many import Member
from helpers_refusing import Refusing
from helpers_upstream import DEADLINE_S, Upstream
from helpers_yard import BATCHES, assert_answered, poll, request
from store.making import LEASE, NOW, add, make_batch, make_commit, postgres, s3
from store.working import create

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batchyard.ledger import Claim
    from batchyard.ledger.postgres import PostgresLedger
    from batchyard.model import Batch

pytestmark = pytest.mark.anyio

LATER = NOW + 1_000_000 + limits.GIVE_UP_AFTER_US
LOST = f"msgbatch_01{'L' * 22}"
OTHER = f"msgbatch_01{'o' * 22}"


@pytest.fixture
def bucket(tmp_path: Path) -> ObjectSegments:
    return ObjectSegments(s3().url(f"given-up/{tmp_path.name}"))


@pytest.fixture
async def batches(url: str, postgres_ledger: PostgresLedger) -> AsyncIterator[LeftBatches]:
    assert postgres_ledger is not None, "it makes the tables"
    opened = LeftBatches(url, SystemClock())
    yield opened
    await opened.close()


def named(name: str, requests: int) -> Batch:
    return replace(make_batch("a", requests=requests), id=name)


async def canceled(ledger: PostgresLedger, bucket: ObjectSegments, *, gone: bool = True) -> Claim:
    """Create two batches, begin the first, and lose its requests; return a claim of it."""
    await create(ledger, bucket, named(LOST, 4), 2)  # type: ignore[arg-type]
    await create(ledger, bucket, named(OTHER, 1))  # type: ignore[arg-type]
    (claim, *_) = await ledger.claim("me", "up/m", LEASE, 1)
    appender = bucket.appender(segments.result_name(LOST, 0, claim.attempt))
    appender.append([b"a result\n"])
    appender.sync()
    await ledger.cancel("w", LOST, NOW + 1_000_000)
    if gone:
        lose(bucket)
    return claim


def lose(bucket: ObjectSegments) -> None:
    obstore.delete(bucket._store, segments.requests_name(LOST))


async def test_it_goes_and_its_segments_are_kept_while_the_processes_go_on(
    postgres_ledger: PostgresLedger, batches: LeftBatches, bucket: ObjectSegments, tmp_path: Path
) -> None:
    ledger = postgres_ledger
    claim = await canceled(ledger, bucket)
    (result,) = bucket.names(segments.results_prefix(LOST, 0))
    kept = await give_up_shared(batches, bucket, tmp_path, LOST, LATER)
    assert kept == tmp_path / "given-up" / LOST
    found = {path.name: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert found == {result.rpartition("/")[2]: b"a result\n"}
    assert await ledger.get("w", LOST) is None
    assert (await ledger.commit("me", [make_commit(claim)])).accepted == frozenset()
    page = await ledger.page("w", limit=9, after=LOST, before=None)
    assert page is not None, "a list goes on from where it was"
    (other,) = await ledger.claim("me", "up/m", LEASE, 9)
    assert other.batch == OTHER
    with pytest.raises(ConfigError, match="no open batch"):
        await give_up_shared(batches, bucket, tmp_path, LOST, LATER)
    keeper = Keeper(ledger, bucket, ManualClock(NOW + 30 * limits.DAY_US * 365), owner="me")
    await keeper.clear_leftovers(limits.LEFTOVERS_AGE_US)
    assert bucket.names(f"{segments.batch_prefix(LOST)}/") == []
    assert bucket.names(f"{segments.batch_prefix(OTHER)}/") != []


async def test_damaged_ids_are_lost_too_and_damaged_params_are_not(
    postgres_ledger: PostgresLedger, batches: LeftBatches, bucket: ObjectSegments, tmp_path: Path
) -> None:
    await canceled(postgres_ledger, bucket, gone=False)
    name = segments.requests_name(LOST)
    whole = bucket.read(name, 0, bucket.size(name))
    bucket.put(name, [whole.replace(b"hi", b"ho")])
    with pytest.raises(ConfigError, match="it will end by itself"):
        await give_up_shared(batches, bucket, tmp_path, LOST, LATER)
    bucket.put(name, [re.sub(rb"(?m)^r(\d) ", rb"x\1 ", whole)])
    await give_up_shared(batches, bucket, tmp_path, LOST, LATER)


async def test_a_batch_that_may_still_end_truthfully_stays(
    postgres_ledger: PostgresLedger, batches: LeftBatches, bucket: ObjectSegments, tmp_path: Path
) -> None:
    async def refused(why: str, batch_id: str = LOST, now_us: int = LATER) -> None:
        with pytest.raises(ConfigError, match=why):
            await give_up_shared(batches, bucket, tmp_path, batch_id, now_us)
        left = await batches.find(LOST)
        assert left is not None
        assert len(left.shards) == 2

    claim = await canceled(postgres_ledger, bucket, gone=False)
    await refused("by its id", "../../etc")
    await refused("no open batch", OTHER.replace("o", "p"))
    await refused("cancel it first", OTHER)
    await refused("try again in 120 s", now_us=NOW + 1_000_000)
    await refused("try again in 1 s", now_us=LATER - 1)
    await refused("end by itself")
    name = segments.requests_name(LOST)
    whole = bucket.read(name, 0, bucket.size(name))
    bucket.put(name, [whole[: claim.length]])
    await refused("of 1 of 2 open shards")
    lose(bucket)
    held = Held(batch=LOST, index=0, attempt=1, inflight=1, counts=None)
    await postgres_ledger.renew("me", LEASE, [held])
    await refused("a worker is about to end")
    await postgres_ledger.renew("me", LEASE, [replace(held, inflight=0)])
    await give_up_shared(batches, bucket, tmp_path, LOST, LATER)


async def test_segments_of_another_yard_and_a_refused_object_are_no_loss(
    postgres_ledger: PostgresLedger,
    batches: LeftBatches,
    bucket: ObjectSegments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await canceled(postgres_ledger, bucket, gone=False)
    elsewhere = ObjectSegments(s3().url("nowhere"))
    with pytest.raises(ConfigError, match="is it their URL"):
        await give_up_shared(batches, elsewhere, tmp_path, LOST, LATER)
    with Refusing(s3().environment["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.refused = {segments.requests_name(LOST)}
        refusing = ObjectSegments(s3().url(f"given-up/{tmp_path.name}"))
        with pytest.raises(ConfigError, match="give access to it, or delete"):
            await give_up_shared(batches, refusing, tmp_path, LOST, LATER)
    assert await postgres_ledger.get("w", LOST) is not None


async def test_a_batch_that_is_done_meanwhile_is_not_taken_out(
    postgres_ledger: PostgresLedger, batches: LeftBatches
) -> None:
    batch = await add(postgres_ledger, "a", "up/m", "up/m")
    (claim, _) = await postgres_ledger.claim("me", "up/m", LEASE, 2)
    await postgres_ledger.commit("me", [make_commit(claim)])
    assert not await batches.take_out(batch.id, 2, NOW)
    assert (await postgres_ledger.progress(batch.id)).shards == 2
    assert await batches.take_out(batch.id, 1, NOW)


def test_the_command_that_a_workers_log_names_works_and_the_yard_goes_on(tmp_path: Path) -> None:
    database = postgres().create("lost")
    shared = s3().environment | {
        "BATCHYARD_LEDGER": database,
        "BATCHYARD_SEGMENTS": s3().url("lost"),
    }
    with (
        Upstream() as upstream,
        Member(tmp_path, "api", "api", upstream.url, shared) as api,
    ):
        lost = api.create([request("lost")])["id"]
        bucket = ObjectSegments(s3().url("lost"))
        obstore.delete(bucket._store, _path(segments.requests_name(lost)))
        with Member(tmp_path, "worker", "worker", upstream.url, shared) as worker:
            assert_answered(api.run(["beside"]), ["beside"])
            poll(lambda: "--give-up" in worker.read_log(), worker.read_log)
            (line,) = [line for line in worker.read_log().splitlines() if "--give-up" in line]
            assert "--give-up` with --ledger and --segments" in line
            api.post(f"{BATCHES}/{lost}/cancel", b"")
            words = ["check", str(tmp_path / "kept"), "--give-up", lost, "--ledger", database]
            words += ["--segments", shared["BATCHYARD_SEGMENTS"]]

            def run() -> subprocess.CompletedProcess[str]:
                command = [sys.executable, "-m", "batchyard", *words]
                return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)

            early = run()
            assert (early.returncode, "try again in" in early.stderr) == (2, True), early
            with psycopg.connect(database, autocommit=True) as db:
                db.execute("UPDATE batches SET cancel_us = cancel_us - 120000000")
            done = run()
            assert done.returncode == 0, (done, shlex.join(words))
            assert f"gave up {lost}" in done.stdout
            assert api.get(f"{BATCHES}/{lost}").status == 404
            assert_answered(api.run(["after"]), ["after"])
            assert worker.stop() == 0
