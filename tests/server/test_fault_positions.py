"""Every fault that the scripted upstream knows, at the first, a middle and the last of nine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from helpers_ports import Port
from helpers_upstream import STEPS, Upstream
from helpers_yard import QUICK, Yard, assert_answered, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REPLY_BYTES_MAX = 256 * 1024
PLACES = (0, 4, 8)
SIZE = 9
ANSWERED = "answered"

# The first call meets the fault and the next one would be answered: what becomes of the request,
# `answered` or the type of its error. An error that would come again is not tried again.
OUTCOMES = {
    "204": ANSWERED,
    "304": "api_error",
    "400": "invalid_request_error",
    "401": ANSWERED,
    "402": ANSWERED,
    "403": ANSWERED,
    "404": "not_found_error",
    "405": "api_error",
    "408": ANSWERED,
    "409": ANSWERED,
    "413": "invalid_request_error",
    "418": "api_error",
    "422": "api_error",
    "429": ANSWERED,
    "429:0": ANSWERED,
    "429:nonsense": ANSWERED,
    "500": ANSWERED,
    "502": ANSWERED,
    "503": ANSWERED,
    "503:0": ANSWERED,
    "504": ANSWERED,
    "529": ANSWERED,
    "529:0": ANSWERED,
    "599": ANSWERED,
    "html": ANSWERED,
    "html200": ANSWERED,
    "empty": ANSWERED,
    "nobody": ANSWERED,
    "nocontent": ANSWERED,
    "nostop": ANSWERED,
    "badutf8": ANSWERED,
    "truncated": ANSWERED,
    "nolength": ANSWERED,
    "endless": ANSWERED,
    "close": ANSWERED,
    "reset": ANSWERED,
    "garbage": ANSWERED,
    "gzip": ANSWERED,
    "hints": ANSWERED,
    "huge": "api_error",
    "hugechunked": "api_error",
    "redirect": "api_error",
    "sse": ANSWERED,
    "ssecut": ANSWERED,
    "streamerror:overloaded_error": ANSWERED,
}
NO_FAULTS = {"message", "hold", "accepted", "plain", "stream"}


@pytest.fixture(scope="module")
def harmed(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    bounds = QUICK | {"limits:UPSTREAM_REPLY_BYTES_MAX": REPLY_BYTES_MAX}
    with Yard(tmp_path_factory.mktemp("harmed") / "data", upstream.url, bounds=bounds) as yard:
        yield yard
        log = yard.read_log()
    assert "Traceback" not in log, log
    assert "defect" not in log, log


def create(yard: Yard, name: str, fault: str, of: str = "") -> dict[str, list[str]]:
    """Create a batch for each place; return their prompts by id, that of the fault first.

    With a model of its own: what its pool learns from the fault slows down no other batch.

    Args:
        yard: to create them in.
        name: with which all prompts begin.
        fault: the steps of the request that meets it.
        of: another model, for that request.
    """
    made = {}
    for place in PLACES:
        prompts = [f"{name}-{place}-{n}" for n in range(SIZE)]
        prompts[place] = bad = f"{name}-{place}-bad|{fault}"
        requests = [request(prompt, model=f"{name}-{place}") for prompt in prompts]
        requests[place] = request(bad, model=of or f"{name}-{place}")
        made[yard.create(requests)["id"]] = [bad, *(p for p in prompts if p != bad)]
    return made


def split(yard: Yard, batch_id: str, prompts: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return the result of the request with the fault, and those of the others."""
    counts = yard.wait_ended(batch_id)["request_counts"]
    others = yard.results(batch_id)
    assert len(others) == SIZE
    bad = others.pop(prompts[0].partition("|")[0])
    assert counts["succeeded"] == SIZE - 1 + (bad["type"] == "succeeded")
    return bad, others


@pytest.mark.parametrize(("fault", "outcome"), OUTCOMES.items(), ids=list(OUTCOMES))
def test_a_fault_at_any_place_is_that_of_one_request(
    harmed: Yard, upstream: Upstream, fault: str, outcome: str
) -> None:
    """The others are answered, and the one that met it as well if it may do better."""
    name = "place-" + re.sub(r"\W", "-", fault)
    with Upstream() as elsewhere:
        step = f"{fault}:{elsewhere.port}" if fault == "redirect" else fault
        for batch_id, prompts in create(harmed, name, f"{step},message").items():
            bad, others = split(harmed, batch_id, prompts)
            assert_answered(others, prompts[1:])
            calls = upstream.counts[prompts[0].partition("|")[0]]
            if outcome == ANSWERED:
                assert_answered({prompts[0].partition("|")[0]: bad}, prompts[:1])
                assert calls == 2
            else:
                assert bad["type"] == "errored"
                assert (bad["error"]["error"]["type"], calls) == (outcome, 1)
        assert elsewhere.connections == 0


def test_every_step_of_the_scripted_upstream_is_met() -> None:
    met = {fault.partition(":")[0] for fault in OUTCOMES} | {"silent"}
    assert {name for name in met if not name.isdigit()} == set(STEPS) - NO_FAULTS


def test_a_call_that_is_never_answered_at_any_place_is_timed_out(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Others that a busy machine makes as late have further tries, as they would have."""
    bounds = QUICK | {"limits:UPSTREAM_TIMEOUT_S": 0.5, "limits:ATTEMPTS_MAX": 4}
    with Yard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        passing = create(yard, "unheard-once", "silent,message")
        staying = create(yard, "unheard-always", "silent")
        for batch_id, prompts in (passing | staying).items():
            bad, others = split(yard, batch_id, prompts)
            assert_answered(others, prompts[1:])
            name = prompts[0].partition("|")[0]
            if batch_id in passing:
                assert_answered({name: bad}, prompts[:1])
                assert upstream.counts[name] >= 2
            else:
                assert bad["error"]["error"]["type"] == "timeout_error"
                assert upstream.counts[name] == 4
        assert "Traceback" not in yard.read_log()


def test_a_connection_that_is_refused_at_any_place_is_waited_for(
    upstream: Upstream, tmp_path: Path
) -> None:
    with Port() as later:
        yard = Yard(tmp_path / "data", upstream.url, bounds=QUICK, slots=64)
        command = yard.command()
        config = tmp_path / "data.toml"
        entry = f'[[upstream]]\nname = "later"\nurl = "{later.url}"\nmodels = ["later"]\n'
        config.write_text(entry + config.read_text())
        yard.command = lambda: command  # type: ignore[method-assign]
        with yard:
            made = create(yard, "refused", "message", of="later")
            for batch_id in made:
                yard.wait_progress(
                    batch_id,
                    lambda told: told["results"] == SIZE - 1 and told["failed_calls"],
                )
            with Upstream(port=later.number) as there:
                for batch_id, prompts in made.items():
                    bad, others = split(yard, batch_id, prompts)
                    assert_answered({prompts[0].partition("|")[0]: bad} | others, prompts)
                assert len(there.calls) == len(PLACES)
