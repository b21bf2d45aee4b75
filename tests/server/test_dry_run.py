"""`POST /v1/messages/batches/validate`: the checks of a create and of the worker, for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers_yard import BATCHES, HEADERS, Yard, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_upstream import Upstream

VALIDATE = f"{BATCHES}/validate"

URL_IMAGE = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/i.png"}}
            ],
        }
    ]
}


def error_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return type and message of an errored result."""
    assert result["type"] == "errored"
    error = result["error"]["error"]
    return {"type": error["type"], "message": error["message"]}


def test_a_dry_run_says_what_the_batch_would(yard: Yard, upstream: Upstream) -> None:
    requests = [
        request("dry-1"),
        request("dry-2", stream=True),
        request("dry-3", max_tokens=0),
        {"custom_id": "dry-4", "params": {"model": "scripted", "max_tokens": 1}},
        request("dry-5", **URL_IMAGE),
        request("dry-6"),
    ]
    calls = len(upstream.calls)
    before = yard.files()
    answer = yard.post(VALIDATE, {"requests": requests})
    assert answer.status == 200
    report = answer.json()
    assert len(upstream.calls) == calls, "a dry run calls nobody"
    assert yard.files() == before, "a dry run keeps nothing"
    assert report["type"] == "message_batch_validation"
    assert (report["requests"], report["valid"], report["invalid"]) == (6, 2, 4)
    assert report["billing"] == "standard", "the upstream is a synchronous endpoint"
    assert report["has_more"] is False
    assert [problem["index"] for problem in report["problems"]] == [1, 2, 3, 4]

    batch = yard.create(requests)
    yard.wait_ended(batch["id"])
    results = yard.results(batch["id"])
    for problem in report["problems"]:
        assert error_of(results.pop(problem["custom_id"])) == problem["error"]
    assert {result["type"] for result in results.values()} == {"succeeded"}


def test_version_and_betas_of_the_call_count(yard: Yard) -> None:
    body = {"requests": [request("warm", temperature=0.5)]}
    assert yard.post(VALIDATE, body).json()["invalid"] == 0
    new = HEADERS | {"anthropic-version": "2026-10-21"}
    assert yard.post(VALIDATE, body, new).json()["invalid"] == 1


def test_a_bad_envelope_is_refused_as_by_create(yard: Yard) -> None:
    for body in (b"", b"[]", b'{"requests":[]}', b'{"requests":[{"custom_id":"a b","params":{}}]}'):
        answer, created = yard.post(VALIDATE, body), yard.post(BATCHES, body)
        assert (answer.status, created.status) == (400, 400)
        assert answer.json()["error"] == created.json()["error"]


def test_an_unknown_model_is_found(upstream: Upstream, tmp_path: Path) -> None:
    config = tmp_path / "yard.toml"
    yard = Yard(tmp_path / "data", upstream.url, slots=4)
    command = yard.command()
    config = tmp_path / "data.toml"
    config.write_text(config.read_text() + 'models = ["known-*"]\n')
    assert str(config) in command
    yard.command = lambda: command  # type: ignore[method-assign]
    with yard:
        body = {"requests": [request("a", model="known-1"), request("b", model="other")]}
        report = yard.post(VALIDATE, body).json()
        assert [(p["custom_id"], p["error"]) for p in report["problems"]] == [
            ("b", {"type": "not_found_error", "message": "model: other"})
        ]


def test_only_so_many_problems_are_listed(yard: Yard) -> None:
    body = {"requests": [request(f"many-{n}", stream=True) for n in range(1_200)]}
    report = yard.post(VALIDATE, body).json()
    assert (report["invalid"], len(report["problems"]), report["has_more"]) == (1_200, 1_000, True)
