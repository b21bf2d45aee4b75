"""A run that goes on at another server: what the first one said and keeps is not the second's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from batchyard.client.problems import InputsChanged
from batchyard.client.running import billing, folding, journal
from batchyard.client.running.folder import Files
from batchyard.client.running.session import Session
from client.commands import batchyard, run_documents
from client.fake_api import FakeApi, succeeded

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from client.conftest import Bench

A, B = "http://127.0.0.1:1", "http://127.0.0.1:2"


@pytest.fixture
def simulated() -> Iterator[FakeApi]:
    api = FakeApi(is_yard=True, billing="simulated", follows_time=True)
    yield api
    api.close()


def run(server: FakeApi, *more: str) -> subprocess.CompletedProcess[str]:
    return run_documents(server, "--shard-size", "1", *more)


def test_a_budget_holds_at_a_server_that_charges_after_one_that_did_not(
    documents: Path, simulated: FakeApi, paid: FakeApi
):
    simulated.outcomes = {"a_Dmd": succeeded("", stop="refusal")}  # a bad pilot, so that it stops
    run(simulated, "--pilot", "1")

    moved = batchyard(
        "attach", "reports", "--approve", "--base-url", paid.url, "--budget", "0.001"
    )  # fmt: skip

    assert len(simulated.batches) == 1
    assert moved.returncode == 4, moved.stderr
    assert len(paid.batches) == 1, "one of the other two fits in the budget"


def test_a_finished_run_that_is_extended_at_another_server_keeps_its_budget_there(
    documents: Path, simulated: FakeApi, paid: FakeApi
):
    assert run(simulated).returncode == 0
    for name in ("x.md", "y.md", "z.md"):
        (documents / "docs" / name).write_text(f"the new {name}")

    none = run(paid, "--allow-server-change", "--budget", "0.0001")
    before = len(Files(documents / "reports").read_state().shards)
    some = run(paid, "--allow-server-change", "--budget", "0.001")

    assert none.returncode == 4
    assert "nothing was sent: the first 1 requests may cost" in none.stderr
    assert before == 3, "what was refused is not on disk"
    assert some.returncode == 4, some.stderr
    assert len(paid.batches) == 1


def test_what_an_earlier_server_keeps_is_not_deleted_at_the_next_and_named(
    documents: Path, simulated: FakeApi, paid: FakeApi
):
    simulated.outcomes = {"a_Dmd": succeeded("", stop="refusal")}
    run(simulated, "--pilot", "1", "--delete-after-download")

    moved = batchyard("attach", "reports", "--approve", "--base-url", paid.url)

    assert f"batch msgbatch_01 is kept at {simulated.url}" in moved.stdout + moved.stderr
    assert list(simulated.batches) == ["msgbatch_01"]
    assert paid.batches == {}, "its own were deleted"
    assert sum(call.method == "DELETE" for call in paid.calls) == 2
    state = Files(documents / "reports").read_state()
    assert [shard.deleted for shard in state.shards] == [(), ("msgbatch_01",), ("msgbatch_02",)]
    assert state.finished_us is not None


CONFIG = journal.Config(
    model="m", max_tokens=1, prompt="p", prompt_sha256="0", shard_requests=1, base_url=A
)
PLANNED = journal.PlannedShard(requests=1, bytes=1, sha256="0")
STARTED = journal.Started(run="r", config=CONFIG, shards=(PLANNED, PLANNED))


def created(shard: int) -> list[journal.Event]:
    return [
        journal.Intent(shard=shard, generation=0, key="k"),
        journal.Created(shard=shard, batch=f"b{shard}"),
    ]


def collected(shard: int, said: str | None, *, assumed: bool = False) -> list[journal.Event]:
    return [
        journal.Ended(shard=shard, counts={}, billing=said, assumed=assumed),
        journal.Downloaded(shard=shard, bytes=1),
        journal.Collected(shard=shard),
    ]


def test_how_a_server_charges_is_known_again_when_the_run_comes_back_to_it():
    at_a: list[journal.Event] = [STARTED, *created(0), *collected(0, "simulated")]
    away = [*at_a, journal.Moved(base_url=B)]
    back = [*away, *created(1), *collected(1, "standard"), journal.Moved(base_url=A)]

    assert billing.known(folding.fold(at_a)) == "simulated"
    assert billing.known(folding.fold(away)) is None
    assert billing.known(folding.fold(back[:-1])) == "standard"
    assert billing.known(folding.fold(back)) == "simulated"


def test_a_batch_whose_results_came_from_the_new_address_counts_as_there():
    moved: list[journal.Event] = [STARTED, *created(0), journal.Moved(base_url=B)]

    state = folding.fold([*moved, *collected(0, "batch")])

    assert state.shards[0].server == B
    assert billing.known(state) == "batch"


@pytest.mark.parametrize(
    ("said", "is_assumed", "presumed"),
    [("batch", True, "batch"), (None, False, "standard"), ("standard", False, "standard")],
)
def test_a_server_that_did_not_say_how_it_charges_is_taken_as_its_receipt_takes_it(
    said: str | None, is_assumed: bool, presumed: str
):
    before = [STARTED, *created(0)]
    after = [*before, *collected(0, said, assumed=is_assumed)]

    assert billing.presumed(folding.fold(before)) == "batch"
    assert billing.known(folding.fold(after)) == (None if said is None or is_assumed else said)
    assert billing.presumed(folding.fold(after)) == presumed


def doubtful(bench: Bench) -> Session:
    """Return a run whose create call was only guessed to have made no batch."""
    writer = bench.writer()
    writer.record(journal.Intent(shard=0, generation=0, key="k"))
    writer.record(journal.NotCreated(shard=0, reason="not in the list", guessed=True))
    writer.close()
    return Session(bench.out)


def test_a_run_that_may_have_a_batch_at_its_server_moves_only_by_consent(bench: Bench):
    with doubtful(bench) as session:
        with pytest.raises(InputsChanged, match=r"1 batch of the run .*--allow-server-change"):
            session.move(B, is_allowed=False)
        before = session.state.config
        session.move(B, is_allowed=True)
        after = session.state.config

    assert before is not None
    assert after is not None
    assert (before.base_url, after.base_url) == (bench.server.url, B)


def test_a_command_for_another_server_does_not_set_such_a_run_aside(bench: Bench):
    with doubtful(bench) as session:
        assert session.state.config is not None
        config = structs.replace(session.state.config, base_url=B)
        with pytest.raises(InputsChanged, match="--allow-server-change"):
            session.compare(bench.plan(), config)
        assert session.compare(bench.plan(), config, allow={"server"}).kind == "same"
