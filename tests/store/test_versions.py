"""Processes of two versions side by side on one database, and each replaced while work goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from batchyard.ledger.postgres_schema import SCHEMA_VERSION
from helpers_many import Fleet, Member
from helpers_upstream import Upstream
from helpers_yard import BATCHES, assert_answered, request
from store.making import postgres, s3

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NEXT, AFTER_NEXT = SCHEMA_VERSION + 1, SCHEMA_VERSION + 2


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as opened:
        yield opened


class Newer(Member):
    """A process of a later version."""

    version = SCHEMA_VERSION

    def command(self) -> list[str]:
        program, script, *rest = super().command()
        return [
            program,
            str(Path(script).parent / "store" / "newer_serve.py"),
            str(self.version),
            *rest,
        ]


def newer(root: Path, fleet: Fleet, upstream: Upstream, version: int) -> list[Member]:
    """Return an API and a worker of a later version, not started."""
    made = []
    for role in ("api", "worker"):
        member = Newer(root, f"{role}-of-{version}", role, upstream.url, fleet.shared)
        member.version = version
        made.append(member)
    return made


def versions(fleet: Fleet) -> tuple[int, int]:
    """Return the version of the tables, and the oldest that may work on them."""
    with psycopg.connect(fleet.shared["BATCHYARD_LEDGER"]) as db:
        found = db.execute("SELECT version, compatible FROM batchyard_ledger").fetchone()
    assert found is not None
    return found


def hold(fleet: Fleet, upstream: Upstream, gate: str) -> tuple[str, list[str]]:
    """Create a batch all of whose calls have begun and wait for the gate of its name."""
    prompts = [f"{gate}{number}|hold:{gate}" for number in range(8)]
    batch = fleet.apis[0].create([request(prompt) for prompt in prompts])["id"]
    for number in range(len(prompts)):
        upstream.wait_calls(f"{gate}{number}", 1)
    return batch, prompts


def assert_called_once(upstream: Upstream, gate: str, prompts: Sequence[str]) -> None:
    assert [upstream.number(f"{gate}{number}") for number in range(len(prompts))] == [1] * 8


def ids(api: Member) -> list[str]:
    return [batch["id"] for batch in api.get(BATCHES).json()["data"]]


def assert_works(api: Member, prompt: str, *, without: Sequence[Member]) -> None:
    """Run a prompt through an API while these workers are frozen."""
    for worker in without:
        worker.signal(signal.SIGSTOP)
    try:
        assert_answered(api.run([prompt]), [prompt])
    finally:
        for worker in without:
            worker.signal(signal.SIGCONT)


def test_versions_that_follow_each_other_replace_each_other_under_work(
    tmp_path: Path, upstream: Upstream
) -> None:
    with Fleet(tmp_path, upstream.url, postgres(), s3(), "versions") as fleet:
        assert versions(fleet) == (SCHEMA_VERSION, SCHEMA_VERSION)
        old, old_workers = fleet.apis[0], fleet.workers
        api, worker = newer(tmp_path, fleet, upstream, NEXT)
        latest, latest_worker = newer(tmp_path, fleet, upstream, AFTER_NEXT)
        first, held = hold(fleet, upstream, "u")
        # The next version comes while the one before has calls in flight.
        with api, worker:
            assert versions(fleet) == (NEXT, SCHEMA_VERSION)
            assert api.batch(first) == old.batch(first)
            upstream.gate("u").open()
            api.wait_ended(first)
            assert api.results(first) == old.results(first)
            assert_called_once(upstream, "u", held)

            # What either takes, the other does; and the old one may be started still.
            assert_works(old, "old-to-new", without=old_workers)
            assert_works(api, "new-to-old", without=[worker])
            assert old.stop() == 0
            old.start()
            assert ids(old) == ids(api)

            # The old ones drain and go, and what they were calling is called once.
            second, held = hold(fleet, upstream, "v")
            for each in fleet.members:
                each.signal(signal.SIGTERM)
            upstream.gate("v").open()
            assert [each.wait() for each in fleet.members] == [0, 0, 0, 0]
            api.wait_ended(second)
            assert_answered(api.results(second), held)
            assert_called_once(upstream, "v", held)

            # The version after takes away what only the first needed: that one may not come back.
            with latest, latest_worker:
                assert versions(fleet) == (AFTER_NEXT, NEXT)
                assert_works(latest, "new-to-latest", without=[worker])
                assert_works(api, "latest-to-new", without=[latest_worker])
                with pytest.raises(AssertionError, match=f"has schema version {AFTER_NEXT}"):
                    old.start()
