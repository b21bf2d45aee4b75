"""The emulator as users of `batchyard.testing` meet it."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from batchyard.errors import ConfigError, InvalidRequest
from batchyard.testing import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BATCHES = "/v1/messages/batches"


CLIENTS: list[anthropic.Anthropic] = []


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def client_of(emulator: Emulator, **options: Any) -> anthropic.Anthropic:
    CLIENTS.append(anthropic.Anthropic(base_url=emulator.url, api_key="any", **options))
    return CLIENTS[-1]


def requests(*names: str, **params: object) -> Any:
    base = {
        "model": "claude-haiku-4-5",
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    return [{"custom_id": name, "params": base | params} for name in names]


def types_of(client: anthropic.Anthropic, batch_id: str) -> dict[str, str]:
    return {r.custom_id: r.result.type for r in client.messages.batches.results(batch_id)}


def ask(emulator: Emulator, method: str, path: str, body: object = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        emulator.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "content-type": "application/json",
            "x-api-key": "any",
            "anthropic-version": "2023-06-01",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


# Time ---------------------------------------------------------------------------------------


def test_a_batch_without_latency_ends_by_itself() -> None:
    with Emulator() as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests("a", "b"))
        emulator.settle()
        assert client.messages.batches.retrieve(batch.id).processing_status == "ended"
        assert types_of(client, batch.id) == {"a": "succeeded", "b": "succeeded"}


def test_answers_take_as_long_as_the_clock_says() -> None:
    with Emulator(latency=3_600, slots=10) as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests(*(f"r{n}" for n in range(30))))
        emulator.advance("20m")
        assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
        emulator.advance("6h")
        batch = client.messages.batches.retrieve(batch.id)
        assert batch.request_counts.succeeded == 30
        assert batch.ended_at is not None
        hours = (batch.ended_at - batch.created_at) / timedelta(hours=1)
        assert 1.5 <= hours <= 5, "three rounds of 30 to 90 minutes"


def hours_of(turns: list[str]) -> float:
    """Return how long 400 requests take, four at a time, about ten minutes each."""
    with Emulator(latency="10m", slots=4) as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests(*(f"r{n}" for n in range(400))))
        for turn in turns:
            emulator.advance(turn)
        batch = client.messages.batches.retrieve(batch.id)
        assert batch.request_counts.succeeded == 400
        assert batch.ended_at is not None
        return (batch.ended_at - batch.created_at) / timedelta(hours=1)


def test_one_long_turn_is_as_good_as_many_short_ones() -> None:
    long, short = hours_of(["23h"]), hours_of(["2h"] * 12)
    assert long > 5, "it takes most of a day, one answer after the other"
    assert abs(long - short) / short < 0.2


def test_after_24_hours_requests_expire_and_after_29_days_results_are_gone() -> None:
    script = '[[request]]\ncustom_id = "slow-*"\noutcome = "slow"\nseconds = "40h"'
    with Emulator(script=script) as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests("slow-1", "quick"))
        emulator.advance("23h")
        assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
        emulator.advance("2h")
        batch = client.messages.batches.retrieve(batch.id)
        assert batch.processing_status == "ended"
        assert types_of(client, batch.id) == {"slow-1": "expired", "quick": "succeeded"}
        emulator.advance("27d")
        assert client.messages.batches.retrieve(batch.id).archived_at is None
        emulator.advance("2d")
        batch = client.messages.batches.retrieve(batch.id)
        assert batch.archived_at is not None
        assert batch.results_url is None
        status, body = ask(emulator, "GET", f"{BATCHES}/{batch.id}/results")
        assert (status, body["error"]["type"]) == (404, "not_found_error")


def test_now_is_the_time_of_the_clock() -> None:
    with Emulator() as emulator:
        before = emulator.now
        emulator.advance(90)
        emulator.advance("1h30m")
        passed = emulator.now - before
        assert timedelta(hours=1, minutes=31, seconds=30) <= passed < timedelta(hours=1.6)


def test_speed_lets_time_fly() -> None:
    with Emulator(latency=60, speed=100_000) as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests("a"))
        while client.messages.batches.retrieve(batch.id).processing_status != "ended":
            pass
        assert types_of(client, batch.id) == {"a": "succeeded"}


@pytest.mark.parametrize("duration", ["", "x", "-1h", "1y", -5, float("nan")])
def test_what_is_no_duration_is_refused(duration: str | float) -> None:
    with Emulator() as emulator, pytest.raises(InvalidRequest):
        emulator.advance(duration)


# Determinism --------------------------------------------------------------------------------


def lines_of(seed: int, order: int) -> dict[str, str]:
    names = [f"r{n}" for n in range(40)][::order]
    with Emulator(seed=seed, slots=3) as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests(*names))
        emulator.settle()
        return {
            result.custom_id: result.to_json()
            for result in client.messages.batches.results(batch.id)
        }


def test_the_same_seed_gives_the_same_results_in_any_order() -> None:
    first = lines_of(7, 1)
    assert lines_of(7, -1) == first
    assert lines_of(8, 1) != first


# Calls that fail ----------------------------------------------------------------------------


def test_a_dropped_create_answer_makes_one_batch() -> None:
    with Emulator(script='[[call]]\non = "create"\nfault = "drop"\ntimes = 2') as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests("a"))
        assert [found.id for found in client.messages.batches.list()] == [batch.id]


def test_a_client_that_does_not_retry_sees_the_drop() -> None:
    with Emulator(script='[[call]]\non = "create"\nfault = "drop"') as emulator:
        client = client_of(emulator, max_retries=0)
        with pytest.raises(anthropic.APIConnectionError):
            client.messages.batches.create(requests=requests("a"))
        assert len(client.messages.batches.list().data) == 1, "the work was done"


def test_a_cut_stream_gives_so_many_lines_and_is_noticed() -> None:
    script = '[[call]]\non = "results"\nfault = "cut"\nlines = 3\ntimes = 2'
    with Emulator(script=script) as emulator:
        client = client_of(emulator)
        names = [f"r{n}" for n in range(8)]
        batch = client.messages.batches.create(requests=requests(*names))
        emulator.settle()
        with pytest.raises(Exception, match="complete message body"):
            list(client.messages.batches.results(batch.id))
        with pytest.raises(http.client.IncompleteRead) as cut:
            ask(emulator, "GET", f"{BATCHES}/{batch.id}/results")
        assert cut.value.partial.count(b"\n") == 3
        assert cut.value.partial.endswith(b"\n")
        assert set(types_of(client, batch.id)) == set(names)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (403, anthropic.PermissionDeniedError),
        (404, anthropic.NotFoundError),
        (409, anthropic.ConflictError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
        (529, anthropic.APIStatusError),
    ],
)
def test_an_error_answer_is_the_status_that_the_script_names(
    status: int, kind: type[Exception]
) -> None:
    script = f'[[call]]\non = "retrieve"\nfault = "error"\nstatus = {status}\nmessage = "So."'
    with Emulator(script=script) as emulator:
        client = client_of(emulator, max_retries=0)
        batch = client.messages.batches.create(requests=requests("a"))
        with pytest.raises(kind, match="So"):
            client.messages.batches.retrieve(batch.id)
        assert client.messages.batches.retrieve(batch.id).id == batch.id, "once"


def test_after_and_times_say_which_calls_meet_the_fault() -> None:
    script = '[[call]]\non = "list"\nfault = "error"\nstatus = 500\nafter = 1\ntimes = 2'
    with Emulator(script=script) as emulator:
        found = [ask(emulator, "GET", BATCHES)[0] for _ in range(5)]
        assert found == [200, 500, 500, 200, 200]


def test_times_0_is_for_ever_and_any_is_every_call() -> None:
    script = '[[call]]\non = "any"\nfault = "error"\nstatus = 503\ntimes = 0\nretry_after = 9'
    with Emulator(script=script) as emulator:
        for path in (BATCHES, f"{BATCHES}/x", "/v1/models", BATCHES):
            assert ask(emulator, "GET", path)[0] == 503
        assert ask(emulator, "GET", "/emulator")[0] == 200, "its own endpoints are not touched"


def test_a_slow_call_waits_on_the_clock() -> None:
    with Emulator(script='[[call]]\non = "list"\nfault = "slow"\nseconds = 600') as emulator:
        statuses: list[int] = []
        thread = threading.Thread(target=lambda: statuses.append(ask(emulator, "GET", BATCHES)[0]))
        thread.start()
        while thread.is_alive():
            emulator.advance("1m")
        assert statuses == [200]


# Script and account -------------------------------------------------------------------------


def test_outcomes_follow_the_script_and_another_one_replaces_it() -> None:
    script = """
        [[request]]
        custom_id = "bad-*"
        outcome = "errored"
        error = "overloaded_error"
        [[request]]
        custom_id = "late-*"
        outcome = "expired"
        [[request]]
        custom_id = "off-*"
        outcome = "canceled"
    """
    names = ("bad-1", "late-1", "off-1", "fine-1")
    with Emulator(script=script) as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests(*names))
        emulator.settle()
        found = types_of(client, batch.id)
        assert found == dict(
            zip(names, ("errored", "expired", "canceled", "succeeded"), strict=True)
        )
        emulator.follow("")
        batch = client.messages.batches.create(requests=requests(*names))
        emulator.settle()
        assert Counter(types_of(client, batch.id).values()) == {"succeeded": 4}


def test_the_account_runs_dry_and_can_be_filled() -> None:
    with Emulator(script="[credit]\nrequests = 2") as emulator:
        client = client_of(emulator, max_retries=0)
        batch = client.messages.batches.create(requests=requests("a", "b", "c"))
        emulator.settle()
        assert Counter(types_of(client, batch.id).values()) == {"succeeded": 2, "errored": 1}
        with pytest.raises(anthropic.APIStatusError) as refused:
            client.messages.batches.create(requests=requests("d"))
        assert refused.value.status_code == 402
        assert refused.value.response.headers["x-should-retry"] == "false"
        emulator.pay_in(requests=5)
        client.messages.batches.create(requests=requests("d"))


def test_who_has_no_account_cannot_pay_in() -> None:
    with Emulator() as emulator, pytest.raises(InvalidRequest, match="credit"):
        emulator.pay_in(requests=5)


def test_a_wrong_script_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.toml"
    file.write_text('[[request]]\noutcome = "lost"\n')
    for script in (file, file.read_text(), tmp_path / "none.toml"):
        with pytest.raises(ConfigError):
            Emulator(script=script)


# Over HTTP ----------------------------------------------------------------------------------


def test_clock_script_and_account_are_turned_over_http() -> None:
    with Emulator(script="[credit]\nrequests = 1") as emulator:
        status, before = ask(emulator, "GET", "/emulator")
        assert status == 200
        assert (before["type"], before["speed"], before["credit_left"]) == ("emulator", 1.0, 1)
        status, after = ask(emulator, "POST", "/emulator/clock", {"advance": "25h"})
        assert status == 200
        assert after["passed_s"] - before["passed_s"] >= 25 * 3_600
        assert ask(emulator, "POST", "/emulator/clock", {"speed": 50})[1]["speed"] == 50
        assert ask(emulator, "POST", "/emulator/credit", {"requests": 4})[1]["credit_left"] == 5
        assert ask(emulator, "POST", "/emulator/script", {"toml": ""})[1]["credit_left"] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/emulator/clock", {}, 400),
        ("POST", "/emulator/clock", {"advance": "1h", "speed": 2}, 400),
        ("POST", "/emulator/clock", {"advance": "soon"}, 400),
        ("POST", "/emulator/clock", {"advance": -1}, 400),
        ("POST", "/emulator/clock", {"faster": 2}, 400),
        ("POST", "/emulator/clock", [1], 400),
        ("POST", "/emulator/speed", {}, 404),
        ("DELETE", "/emulator/clock", None, 405),
        ("POST", "/emulator", {}, 405),
        ("POST", "/emulator/script", {"toml": "[[request]]\noutcome = 'lost'"}, 400),
        ("POST", "/emulator/credit", {"requests": 4}, 400),
        ("POST", "/emulator/credit", {}, 400),
    ],
)
def test_a_wrong_order_is_refused(
    shared: Emulator, method: str, path: str, body: object, status: int
) -> None:
    found, answer = ask(shared, method, path, body)
    assert found == status
    assert answer["type"] == "error"


@pytest.fixture(scope="module")
def shared() -> Any:
    with Emulator() as emulator:
        yield emulator


# Its own life -------------------------------------------------------------------------------


def test_two_emulators_know_nothing_of_each_other() -> None:
    with Emulator() as one, Emulator() as other:
        client_of(one).messages.batches.create(requests=requests("a"))
        assert client_of(other).messages.batches.list().data == []
        other.advance("10h")
        assert other.now - one.now > timedelta(hours=9)


def test_it_ends_at_once_though_answers_are_under_way() -> None:
    with Emulator(latency=80_000) as emulator:
        client_of(emulator).messages.batches.create(requests=requests("a", "b"))
        data = emulator._data
        assert data is not None
        assert data.exists()
    assert not data.exists(), "nothing is left behind"


def test_an_emulator_that_is_not_running_says_so() -> None:
    emulator = Emulator()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = emulator.url
    emulator.close()
    with emulator:
        assert emulator.url
    with pytest.raises(RuntimeError, match="another one"):
        emulator.start()
    with pytest.raises(RuntimeError, match="has ended"):
        emulator.advance("1h")
    emulator.close()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("speed", 0), ("speed", "fast"), ("latency", -1), ("latency", "soon"), ("words", 0),
        ("slots", 0), ("slots", 2.5), ("seed", -1), ("seed", "a"), ("requests_per_minute", 0),
        ("queued_requests", True),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_is_named(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=setting):
        Emulator(**{setting: value})  # type: ignore[arg-type]


def test_a_latency_may_be_a_duration() -> None:
    with Emulator(latency="2h", slots=1) as emulator:
        client = client_of(emulator)
        batch = client.messages.batches.create(requests=requests("a"))
        emulator.advance("30m")
        assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
        emulator.advance("3h")
        assert client.messages.batches.retrieve(batch.id).processing_status == "ended"


def test_a_script_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.toml"
    file.write_text('[[request]]\noutcome = "expired"\n')
    for script in (file, str(file)):
        with Emulator(script=script) as emulator:
            client = client_of(emulator)
            batch = client.messages.batches.create(requests=requests("a"))
            emulator.settle()
            assert types_of(client, batch.id) == {"a": "expired"}


def test_the_batch_of_the_fixtures_does_not_meet_the_script() -> None:
    script = '[[request]]\noutcome = "errored"\nfirst = 1'
    with Emulator(script=script, fixtures=True) as emulator:
        client = client_of(emulator)
        ready = client.messages.batches.retrieve("message_batch_id")
        assert ready.request_counts.succeeded == 1
        batch = client.messages.batches.create(requests=requests("a"))
        emulator.settle()
        assert types_of(client, batch.id) == {"a": "errored"}
