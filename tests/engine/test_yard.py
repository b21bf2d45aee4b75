"""A yard whose model is in its own process: batches, cancel and a death of the engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from batchyard.errors import ConfigError
from batchyard.server import config
from engine.conftest import STANDIN
from helpers_yard import BATCHES, QUICK, Yard, poll, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def yard(tmp_path: Path, model: Path) -> Iterator[Yard]:
    url = f"vllm:{model}?max_num_seqs=4&max_model_len=1000"
    bounds = QUICK | {"limits:DRAIN_GRACE_S": 0.2}
    environment = {"PYTHONPATH": str(STANDIN)}
    with Yard(tmp_path / "data", url, bounds=bounds, environment=environment) as running:
        yield running
        assert running.stop() == 0
    log = running.read_log()
    assert "Traceback" not in log, log
    assert "defect" not in log, log


def test_a_batch_is_answered_by_the_model_in_the_process(yard: Yard) -> None:
    requests = [request(f"n{n} says so", f"n{n}") for n in range(20)]
    tools = [{"name": "t", "input_schema": {"type": "object"}}]
    requests.append(request("with tools", "tools", tools=tools))
    batch = yard.create(requests)
    ended = yard.wait_ended(batch["id"])
    assert ended["request_counts"]["succeeded"] == 20
    results = yard.results(batch["id"])
    message = results["n7"]["message"]
    assert message["content"] == [{"type": "text", "text": "n7 says so "}]
    assert message["usage"]["service_tier"] == "batch"
    error = results["tools"]["error"]["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("tools: not supported by an in-process engine")


def test_one_base_url_serves_messages_as_well(yard: Yard) -> None:
    params = request("hello there")["params"]
    answer = yard.post("/v1/messages", params)
    assert (answer.status, answer.json()["content"][0]["text"]) == (200, "hello there ")
    answer = yard.post("/v1/messages/count_tokens", params)
    assert answer.json() == {"input_tokens": 4}
    assert yard.get("/v1/models").json()["data"][0]["id"] == "tiny-model"


def test_a_cancel_ends_what_the_engine_generates(yard: Yard) -> None:
    batch = yard.create([request("quick"), request("hang")])
    yard.wait_progress(batch["id"], lambda p: p["results"] == 1)
    yard.post(f"{BATCHES}/{batch['id']}/cancel", b"")
    yard.wait_ended(batch["id"])
    assert yard.results(batch["id"])["hang"]["type"] == "canceled"
    poll(lambda: "stand-in aborted" in yard.read_log(), yard.read_log)


def test_a_request_that_kills_the_engine_again_and_again_costs_only_itself(yard: Yard) -> None:
    results = yard.run([*(f"before{n}" for n in range(8)), "die", *(f"after{n}" for n in range(8))])
    kinds = {name: result["type"] for name, result in results.items()}
    assert kinds.pop("die") == "errored"
    assert set(kinds.values()) == {"succeeded"}
    assert "the engine died" in json.dumps(results["die"])
    log = yard.read_log()
    assert log.count("the engine works again") == 8


def test_settings_that_make_no_sense_with_a_model_in_the_process_are_refused(
    tmp_path: Path,
) -> None:
    file = tmp_path / "batchyard.toml"
    head = '[[upstream]]\nname = "a"\nurl = "vllm:/m/v1"\n'
    file.write_text(head)
    loaded = config.load(file=file, environment={})
    (upstream,) = loaded.upstreams
    assert upstream.engine is not None
    assert upstream.engine.model == "/m/v1"
    assert upstream.slots == upstream.engine.max_num_seqs == 64
    file.write_text(f"{head}slots = 9\n")
    (upstream,) = config.load(file=file, environment={}).upstreams
    assert upstream.engine is not None
    assert upstream.slots == upstream.engine.max_num_seqs == 9
    with pytest.raises(ConfigError, match="each worker loads the model"):
        config.load(file=file, environment={}, workers=2)
    for line in ('key_env = "K"', "fetches_urls = true"):
        file.write_text(f"{head}{line}\n")
        with pytest.raises(ConfigError, match="not for a model in the process"):
            config.load(file=file, environment={"K": "k"})
