"""Who comes in, where to, how often: workspaces, calls per minute, requests in the queue."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from helpers_yard import BATCHES, HEADERS, Yard, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_upstream import Upstream

ELSEWHERE = {"anthropic-workspace-id": "wrkspc_01Elsewhere"}


def test_every_answer_to_a_known_caller_names_organization_and_workspace(yard: Yard) -> None:
    for answer in (yard.get(BATCHES), yard.get(f"{BATCHES}/none"), yard.get("/v1/models")):
        assert answer.headers["anthropic-organization-id"]
        assert answer.headers["anthropic-workspace-id"] == "wrkspc_default"
    assert yard.request("GET", BATCHES, headers={}).headers["anthropic-workspace-id"] is None


def test_batch_endpoints_show_the_rate_limit(yard: Yard) -> None:
    first, second = yard.get(BATCHES), yard.get(f"{BATCHES}/none")
    for answer in (first, second):
        assert int(answer.headers["anthropic-ratelimit-requests-limit"]) == 60_000
        reset = answer.headers["anthropic-ratelimit-requests-reset"]
        assert datetime.strptime(reset, "%Y-%m-%dT%H:%M:%S%z")
        left = int(answer.headers["anthropic-ratelimit-requests-remaining"])
        assert 0 < left < 60_000
    assert yard.get("/v1/models").headers["anthropic-ratelimit-requests-limit"] is None


def test_a_workspace_sees_only_its_own_batches(yard: Yard) -> None:
    ours = yard.create([request("ours")])["id"]
    theirs = yard.create([request("theirs")], **ELSEWHERE)["id"]
    assert yard.get(f"{BATCHES}/{theirs}", **ELSEWHERE).status == 200
    for path, method in (("", "GET"), ("/results", "GET"), ("/cancel", "POST"), ("", "DELETE")):
        foreign = yard.request(method, f"{BATCHES}/{theirs}{path}")
        unknown = yard.request(method, f"{BATCHES}/msgbatch_none{path}")
        assert (foreign.status, unknown.status) == (404, 404)
        assert foreign.json()["error"]["message"] == f"Message Batch {theirs} not found."
        assert unknown.json()["error"]["type"] == foreign.json()["error"]["type"]
    listed = {batch["id"] for batch in yard.get(f"{BATCHES}?limit=1000").json()["data"]}
    assert ours in listed
    assert theirs not in listed


@pytest.mark.parametrize("value", ["", "default", "wrkspc_", "wrkspc_a b", "wrkspc_" + "x" * 65])
def test_a_malformed_workspace_is_refused(yard: Yard, value: str) -> None:
    answer = yard.get(BATCHES, **{"anthropic-workspace-id": value})
    assert answer.status == 400
    assert answer.json()["error"] == {
        "type": "invalid_request_error",
        "message": "anthropic-workspace-id header must be a valid workspace ID.",
    }


def test_too_many_calls_are_429_with_the_time_to_wait(upstream: Upstream, tmp_path: Path) -> None:
    environment = {"BATCHYARD_REQUESTS_PER_MINUTE": "3"}
    with Yard(tmp_path / "data", upstream.url, environment=environment) as yard:
        assert [yard.get(BATCHES).status for _ in range(3)] == [200] * 3
        refused = yard.get(BATCHES)
        assert refused.status == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert yard.get(BATCHES, **ELSEWHERE).status == 200, "another workspace's bucket"
        assert yard.get("/v1/models").status != 429, "messages have limits of their own"


def test_a_full_queue_is_429_until_it_has_room(upstream: Upstream, tmp_path: Path) -> None:
    environment = {"BATCHYARD_QUEUED_REQUESTS": "3"}
    with Yard(tmp_path / "data", upstream.url, environment=environment) as yard:
        first = yard.create([request("queue-1|hold:queue"), request("queue-2|hold:queue")])
        too_many = {"requests": [request("queue-3"), request("queue-4")]}
        refused = yard.post(BATCHES, too_many)
        assert refused.status == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "processing queue" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
        assert len(yard.get(BATCHES).json()["data"]) == 1, "nothing was created"
        assert [name for name in yard.files() if first["id"] not in name] == []
        yard.create([request("queue-5")], **ELSEWHERE)
        never = yard.post(BATCHES, {"requests": [request(f"never-{n}") for n in range(4)]})
        assert never.status == 429
        assert never.headers["x-should-retry"] == "false", "it will never fit"
        assert never.headers["retry-after"] is None
        upstream.gate("queue").open()
        yard.wait_ended(first["id"])
        assert yard.post(BATCHES, too_many).status == 200


def test_the_path_of_public_url_is_served_and_named(upstream: Upstream, tmp_path: Path) -> None:
    environment = {"BATCHYARD_PUBLIC_URL": "http://127.0.0.1:1/llm/batches"}
    with Yard(tmp_path / "data", upstream.url, environment=environment) as yard:
        batch = yard.create([request("prefixed")])
        yard.wait_ended(batch["id"])
        for prefix in ("", "/llm/batches"):
            found = yard.get(f"{prefix}{BATCHES}/{batch['id']}").json()
            path = f"/llm/batches{BATCHES}/{batch['id']}/results"
            assert found["results_url"] == f"http://127.0.0.1:1{path}"
            assert yard.get(f"{prefix}{BATCHES}/{batch['id']}/results").status == 200
        assert yard.get(f"/llm{BATCHES}").status == 404
        assert yard.get(f"/llm/batchesx{BATCHES}").status == 404


def test_a_user_profile_reaches_the_upstream(yard: Yard, upstream: Upstream) -> None:
    header = {"anthropic-user-profile-id": "profile_1"}
    requests = [
        request("profile-none"),
        request("profile-same", user_profile_id="profile_1"),
        request("profile-other", user_profile_id="profile_2"),
    ]
    batch = yard.create(requests, **header)
    yard.wait_ended(batch["id"])
    results = yard.results(batch["id"])
    for name in ("profile-none", "profile-same"):
        assert results[name]["type"] == "succeeded"
        (call,) = [call for call in upstream.calls if call.name == name]
        assert call.headers["anthropic-user-profile-id"] == "profile_1"
    error = results["profile-other"]["error"]["error"]
    assert error["type"] == "invalid_request_error"
    assert "user_profile_id" in error["message"]
    assert yard.get(BATCHES, **{"anthropic-user-profile-id": "a b"}).status == 400


def test_an_id_may_be_percent_encoded(yard: Yard) -> None:
    batch_id = yard.create([request("encoded")])["id"]
    encoded = "".join(f"%{ord(c):02x}" for c in batch_id)
    assert yard.request("GET", f"{BATCHES}/{encoded}", headers=HEADERS).json()["id"] == batch_id
