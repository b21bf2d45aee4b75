"""What a yard says of a batch: what it waits for, when it ends, and the calls that were made."""

from __future__ import annotations

import re
import signal
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from helpers_upstream import Upstream
from helpers_workers import workers_yard
from helpers_yard import BATCHES, QUICK, Yard, request


def reasons(progress: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {wait["reason"]: wait for wait in progress["waiting"]}


def test_a_request_that_was_told_to_wait_is_explained_and_the_end_is_not_before_it(
    yard: Yard, upstream: Upstream
) -> None:
    prompts = ["own-x|429:600", *(f"own-{n}" for n in range(60))]
    batch = yard.create([request(prompt, model="own") for prompt in prompts])
    upstream.wait_calls("own-x", 1)
    told = yard.wait_progress(
        batch["id"], lambda p: p["results"] == 60 and p["estimate"]["ends_at"] is not None
    )
    assert list(reasons(told)) == ["retrying"]
    (wait,) = told["waiting"]
    assert wait["pool"] == "up/own"
    assert wait["detail"] == "1 request waits to be sent again (429)"
    until = datetime.fromisoformat(wait["until"])
    created = datetime.fromisoformat(batch["created_at"])
    assert timedelta(seconds=600) <= until - created <= timedelta(seconds=700)
    ends = datetime.fromisoformat(told["estimate"]["ends_at"])
    assert abs(ends - until) < timedelta(milliseconds=50)
    later = yard.progress(batch["id"])
    assert abs(datetime.fromisoformat(later["waiting"][0]["until"]) - until) < timedelta(seconds=1)
    yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
    yard.wait_ended(batch["id"])


def test_there_is_no_estimate_while_one_of_two_pools_stands_still(
    yard: Yard, upstream: Upstream
) -> None:
    moving = [request(f"both-{n}", model="moves") for n in range(9)]
    refused = [request(f"both-x{n}|401", model="refused") for n in range(9)]
    batch = yard.create([*moving, *refused])
    told = yard.wait_progress(
        batch["id"],
        lambda p: p["results"] == 9 and "paused" in reasons(p),
    )
    assert told["estimate"] == {
        "ends_at": None,
        "basis": "not while it stands still: up/refused: no key for upstream up: "
        "set BATCHYARD_UPSTREAM_UP_KEY (HTTP 401 authentication_error)",
    }
    yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
    yard.wait_ended(batch["id"])


class _Limited(Yard):
    """A yard that may make one call a second of the model `slow`."""

    def command(self) -> list[str]:
        command = super().command()
        with Path(command[command.index("--config") + 1]).open("a") as config:
            config.write('[[upstream.limit]]\nmodels = ["slow"]\nrequests_per_minute = 60\n')
        return command


def test_the_end_of_a_batch_of_several_models_is_that_of_the_slowest(tmp_path: Path) -> None:
    requests = [request(f"quick-{n}", model="quick") for n in range(60)]
    requests += [request(f"slow-{n}", model="slow") for n in range(60)]
    with (
        Upstream() as upstream,
        _Limited(tmp_path / "data", upstream.url, bounds=QUICK, slots=4) as yard,
    ):
        batch = yard.create(requests)
        told = yard.wait_progress(batch["id"], lambda p: p["estimate"]["ends_at"] is not None)
        ends = datetime.fromisoformat(told["estimate"]["ends_at"])
        assert ends - datetime.fromisoformat(batch["created_at"]) > timedelta(seconds=55)
        # Its ceiling until a rate was measured, which may have been when this was asked.
        assert re.search(
            r" of them in up/slow, (at most )?\d\.\d a second", told["estimate"]["basis"]
        )
        yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
        yard.wait_ended(batch["id"])


def test_what_was_counted_of_calls_is_told_after_an_orderly_restart(tmp_path: Path) -> None:
    never = QUICK | {"limits:RENEW_INTERVAL_S": 600.0}  # so that only leaving can tell
    with (
        Upstream() as upstream,
        Yard(tmp_path / "data", upstream.url, bounds=never, slots=4) as yard,
    ):
        ended = yard.create([request("kept-1|500,429:0,message"), request("kept-2")])
        yard.wait_ended(ended["id"])
        open_ = yard.create([request("open-1|500,429:600"), request("open-2")])
        upstream.wait_calls("open-1", 2)
        yard.wait_progress(open_["id"], lambda p: "retrying" in reasons(p) and p["calls"] == 3)
        before = {batch["id"]: yard.progress(batch["id"]) for batch in (ended, open_)}
        assert yard.stop() == 0
        yard.start()
        told = yard.progress(ended["id"])
        for key in ("calls", "repeated_calls", "unknown_calls", "failed_calls", "failing"):
            assert told[key] == before[ended["id"]][key]
        assert (told["calls"], told["repeated_calls"], told["unknown_calls"]) == (4, 2, 0)
        assert told["failed_calls"] == {"500": 1, "429": 1}
        upstream.wait_calls("open-1", 3)
        told = yard.wait_progress(open_["id"], lambda p: p["calls"] == 4)
        assert told["unknown_calls"] == 0, "its last call had been answered"
        assert told["repeated_calls"] == 2, "of one request, the last after the restart"
        assert told["failed_calls"] == {"500": 1, "429": 2}
        yard.post(f"{BATCHES}/{open_['id']}/cancel", b"")
        yard.wait_ended(open_["id"])


def test_calls_that_a_kill_cut_off_are_told_as_repeated_and_of_unknown_outcome(
    tmp_path: Path,
) -> None:
    prompts = [*(f"cut-{n}|hold:cut" for n in range(8)), *(f"cut-x{n}" for n in range(12))]
    with (
        Upstream() as upstream,
        Yard(tmp_path / "data", upstream.url, bounds=QUICK, slots=8) as yard,
    ):
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls("cut-", 8)
        # What the ledger was told a moment ago is all that is known of a killed process.
        yard.wait_progress(batch["id"], lambda p: p["in_flight"] == 8)
        first = yard.progress(batch["id"])["as_of"]
        later = datetime.fromisoformat(first) + timedelta(seconds=2.5)
        yard.wait_progress(batch["id"], lambda p: datetime.fromisoformat(p["as_of"]) > later)
        yard.signal(signal.SIGKILL)
        yard.wait()
        upstream.gate("cut").open()
        yard.start()
        yard.wait_ended(batch["id"])
        told = yard.progress(batch["id"])
        made = upstream.number("cut-")
        assert made == 28
        assert (told["calls"], told["repeated_calls"], told["unknown_calls"]) == (28, 8, 8)


def test_workers_tell_of_requests_that_wait_for_their_own_time(tmp_path: Path) -> None:
    prompts = ["far-x|429:600", *(f"far-{n}" for n in range(20))]
    with Upstream() as upstream, workers_yard(tmp_path / "data", upstream.url) as yard:
        batch = yard.create([request(prompt) for prompt in prompts])
        told = yard.wait_progress(
            batch["id"], lambda p: "retrying" in reasons(p) and p["results"] == 20
        )
        wait = reasons(told)["retrying"]
        assert wait["detail"] == "1 request waits to be sent again (429)"
        left = datetime.fromisoformat(wait["until"]) - datetime.fromisoformat(told["as_of"])
        assert timedelta(seconds=400) < left < timedelta(seconds=602)
        ends = told["estimate"]["ends_at"]
        assert ends is None or ends >= wait["until"]
