"""The official clients, unmodified, of both generations, against a real yard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers_upstream import DEADLINE_S, Upstream, text_of
from helpers_yard import BATCHES, QUICK, Yard

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")
INTERPRETERS = {
    "2": sys.executable,
    "0": str(ROOT / ".venv-sdk0" / "bin" / "python"),
}
BODY_CAP = {"limits:BATCH_BODY_BYTES_MAX": 1 << 20}
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


@pytest.fixture(scope="module", params=INTERPRETERS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return what one client saw, and the yard that it saw it of."""
    python = INTERPRETERS[request.param]
    if not Path(python).exists():
        pytest.fail(f"{python} is missing: run `make test`, which sets it up", pytrace=False)
    data = tmp_path_factory.mktemp(f"sdk{request.param}") / "data"
    with Upstream() as upstream, Yard(data, upstream.url, bounds=QUICK | BODY_CAP) as yard:
        report = drive(python, yard, upstream)
        report["calls"] = [(call.name, call.headers) for call in upstream.calls]
        report["url"] = yard.url
        yield report
        log = yard.read_log()
        assert "Traceback" not in log, log


def drive(python: str, yard: Yard, upstream: Upstream) -> dict[str, Any]:
    """Run the driver; open the gates that it names on its lines, all but the last."""
    process = subprocess.Popen(
        [python, "-W", "error::ResourceWarning", str(DRIVER), yard.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            for line in process.stdout:
                report: dict[str, Any] = json.loads(line)
                if "open" in report:
                    upstream.gate(report["open"]).open()
                    continue
                _, complaints = process.communicate(timeout=DEADLINE_S)
                assert process.returncode == 0, complaints
                return report
            raise AssertionError(process.stderr.read() if process.stderr else "")
        finally:
            process.kill()


def test_the_generation_is_the_one_that_is_meant(
    seen: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    assert seen["version"].startswith(request.node.callspec.params["seen"] + ".")


@pytest.mark.parametrize("space", ["ga", "beta"])
def test_a_batch_from_create_to_results(seen: dict[str, Any], space: str) -> None:
    found = seen[space]
    created, ended = found["created"], found["ended"]
    assert found["request id"].startswith("req_01")
    assert created["processing_status"] == "in_progress"
    assert created["request_counts"] == dict.fromkeys(COUNTS, 0) | {"processing": 3}
    assert created["results_url"] is None
    assert ended["request_counts"] == dict.fromkeys(COUNTS, 0) | {"succeeded": 2, "errored": 1}
    assert ended["results_url"] == f"{seen['url']}{BATCHES}/{created['id']}/results"
    assert set(created) == set(ended)
    assert found["ended type"][0] in {"MessageBatch", "BetaMessageBatch"}
    assert found["ended type"][1] == "datetime"
    assert found["results"] == {
        f"{space}-1": ["succeeded", text_of(f"{space}-1"), "end_turn", "batch"],
        f"{space}-2": ["succeeded", text_of(f"{space}-2"), "end_turn", "batch"],
        f"{space}-bad": ["errored", "error", "invalid_request_error", "scripted 400"],
    }


@pytest.mark.parametrize("space", ["ga", "beta"])
def test_early_results_are_a_client_error_and_an_early_delete_is_400(
    seen: dict[str, Any], space: str
) -> None:
    found = seen[space]
    assert found["early"][0] == "AnthropicError"
    assert "No `results_url` for the given batch" in found["early"][1]
    assert found["early delete"] == [
        "BadRequestError",
        400,
        "invalid_request_error",
        "In progress batches cannot be deleted. Consider canceling the batch instead.",
        True,
    ]


@pytest.mark.parametrize("space", ["ga", "beta"])
def test_cancel_keeps_what_was_in_flight(seen: dict[str, Any], space: str) -> None:
    assert seen[space]["canceled"] == ["canceling", True]
    results = seen[space]["canceled results"]
    # Its call may not have begun when the cancel came.
    assert results[f"{space}-held"][0] in {"succeeded", "canceled"}
    assert results[f"{space}-x"] == ["canceled"]


@pytest.mark.parametrize("space", ["ga", "beta"])
def test_pages_are_walked_by_the_client_itself(seen: dict[str, Any], space: str) -> None:
    found = seen[space]
    for claim in ("newest first", "each once", "newer", "older"):
        assert found[claim] is True, claim
    assert found["more"] == [True, True, True]


@pytest.mark.parametrize("space", ["ga", "beta"])
def test_raw_responses_and_delete(seen: dict[str, Any], space: str) -> None:
    found = seen[space]
    assert found["raw"] == ["application/json", None, True]
    assert found["deleted"] == ["message_batch_deleted", True]
    for claim in ("gone", "gone twice"):
        assert found[claim][:3] == ["NotFoundError", 404, "not_found_error"]
        assert found[claim][4] is True


def test_the_asynchronous_client(seen: dict[str, Any]) -> None:
    for space in ("ga", "beta"):
        assert seen["async"][space] == {
            f"async-{space}-{n}": [
                "succeeded",
                text_of(f"async-{space}-{n}"),
                "end_turn",
                "batch",
            ]
            for n in range(3)
        }
        assert seen["async"][f"{space} canceled"] == "ended"
        assert seen["async"][f"{space} listed"] is True
        assert seen["async"][f"{space} deleted"] == "message_batch_deleted"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("empty", ["BadRequestError", 400, "invalid_request_error"]),
        ("custom id", ["BadRequestError", 400, "invalid_request_error"]),
        ("twice", ["BadRequestError", 400, "invalid_request_error"]),
        ("limit", ["BadRequestError", 400, "invalid_request_error"]),
        ("conflict", ["BadRequestError", 400, "invalid_request_error"]),
        ("version", ["BadRequestError", 400, "invalid_request_error"]),
        ("key", ["AuthenticationError", 401, "authentication_error"]),
        ("origin", ["PermissionDeniedError", 403, "permission_error"]),
        ("unknown", ["NotFoundError", 404, "not_found_error"]),
        ("unknown results", ["NotFoundError", 404, "not_found_error"]),
        ("unknown path", ["NotFoundError", 404, "not_found_error"]),
    ],
)
def test_errors_become_the_classes_of_the_client(
    seen: dict[str, Any], case: str, expected: list[Any]
) -> None:
    found = seen["errors"][case]
    assert found[:3] == expected
    assert found[4] is True, "the request id differs"


def test_a_body_that_is_too_large_is_named(seen: dict[str, Any]) -> None:
    """The server answers without reading it; the client sees the answer, not a broken pipe."""
    found = seen["errors"]["too large"]
    assert found[0] in {"ContentTooLargeError", "RequestTooLargeError"}
    assert found[1:3] == [413, "request_too_large"]


def test_an_unknown_path_prefix_is_404(seen: dict[str, Any]) -> None:
    assert seen["prefix"] == ["NotFoundError", 404, "not_found_error"]


def test_one_base_url_serves_messages_tokens_and_models(seen: dict[str, Any]) -> None:
    assert seen["messages"] == {
        "message": [text_of("sync-1"), "standard"],
        "refused": ["NotFoundError", 404, "not_found_error"],
        "stream": ["message_start", "content_block_delta", "message_stop"],
        "tokens": 42,
        "models": ["m"],
    }


def test_version_and_betas_of_the_create_call_reach_the_upstream(seen: dict[str, Any]) -> None:
    version = "2026-10-21" if seen["version"].startswith("2.") else "2023-06-01"
    calls = dict(seen["calls"])
    assert calls["ga-1"]["anthropic-version"] == version
    assert "anthropic-beta" not in calls["ga-1"]
    assert "output-300k-2026-03-24" in calls["beta-1"]["anthropic-beta"]
    for headers in calls.values():
        assert "sk-test" not in str(headers), "the client's key was sent to the upstream"
