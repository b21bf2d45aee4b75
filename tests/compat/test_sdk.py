"""The official clients, unmodified, of five generations and two languages, against a real yard.

Sections 1.1 to 1.7, 2 and 11 of the API's contract, as far as a client can see them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers_clients import CLIENTS, Client, run
from helpers_upstream import Upstream, text_of
from helpers_yard import BATCHES, QUICK, Yard

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY_CAP = {"limits:BATCH_BODY_BYTES_MAX": 1 << 20}
COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


@pytest.fixture(scope="module", params=CLIENTS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return what one client saw, and the yard that it saw it of."""
    client = CLIENTS[request.param]
    data = tmp_path_factory.mktemp(client.name) / "data"
    with Upstream() as upstream, Yard(data, upstream.url, bounds=QUICK | BODY_CAP) as yard:

        def listen(line: dict[str, Any]) -> None:
            if "open" in line:
                upstream.gate(line["open"]).open()

        report = run(client.driver("lifecycle", yard.url), listen)
        report["client"] = client
        report["calls"] = {call.name: call.headers for call in upstream.calls}
        report["url"] = yard.url
        yield report
        log = yard.read_log()
        assert "Traceback" not in log, log


def test_the_generation_is_the_one_that_is_meant(seen: dict[str, Any]) -> None:
    client: Client = seen["client"]
    assert seen["version"].startswith(client.version)
    assert tuple(seen["lives"]) == client.spaces


def test_a_batch_from_create_to_results(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        created, ended = found["created"], found["ended"]
        assert found["request id"].startswith("req_01"), space
        assert created["processing_status"] == "in_progress", space
        assert created["request_counts"] == dict.fromkeys(COUNTS, 0) | {"processing": 3}, space
        assert created["results_url"] is None, space
        assert ended["request_counts"] == dict.fromkeys(COUNTS, 0) | {
            "succeeded": 2,
            "errored": 1,
        }, space
        assert ended["results_url"] == f"{seen['url']}{BATCHES}/{created['id']}/results", space
        assert set(created) == set(ended), space
        assert found["results"] == {
            f"{space}-1": ["succeeded", text_of(f"{space}-1"), "end_turn", "batch"],
            f"{space}-2": ["succeeded", text_of(f"{space}-2"), "end_turn", "batch"],
            f"{space}-bad": ["errored", "error", "invalid_request_error", "scripted 400"],
        }, space


def test_times_are_what_the_client_reads_as_times(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        if seen["client"].name.startswith("python"):
            prefix = "Beta" if "beta" in space else ""
            assert found["types"] == [f"{prefix}MessageBatch", "datetime"], space
        else:
            assert found["types"] == ["Object", "String"], space


def test_early_results_are_a_client_error_and_an_early_delete_is_400(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        kind, text = found["early"]
        assert kind == "AnthropicError", space
        assert "`results_url`" in text, space
        assert "in_progress" in text, space
        assert found["early delete"] == [
            "BadRequestError",
            400,
            "invalid_request_error",
            "In progress batches cannot be deleted. Consider canceling the batch instead.",
            True,
        ], space


def test_cancel_keeps_what_was_in_flight(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        assert found["canceled"] == ["canceling", True], space
        assert found["canceled once"] is True, space
        results = found["canceled results"]
        assert set(results) == {f"{space}-held", f"{space}-x"}, space
        # Its call may not have begun when the cancel came.
        assert results[f"{space}-held"][0] in {"succeeded", "canceled"}, space
        assert results[f"{space}-x"] == ["canceled"], space


def test_cancel_of_an_ended_batch_changes_nothing(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        assert found["canceled late"] == ["ended", None], space


def test_pages_are_walked_by_the_client_itself(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        for claim in ("newest first", "each once", "to the end", "newer", "older"):
            assert found[claim] is True, (space, claim)
        assert found["more"] == [True, True, True], space


def test_raw_responses_and_delete(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        assert found["raw"] == ["application/json", None, True], space
        assert found["deleted"] == ["message_batch_deleted", True], space
        for call in ("retrieve", "results", "cancel", "delete"):
            error = found[f"{call} of the deleted"]
            assert error[:3] == ["NotFoundError", 404, "not_found_error"], (space, call)
            assert error[4] is True, (space, call)


def test_ids_are_read_percent_decoded(seen: dict[str, Any]) -> None:
    assert seen["encoded"] is True
    for space, found in seen["lives"].items():
        assert found["odd id"] == [
            "NotFoundError",
            404,
            "not_found_error",
            "Message Batch msgbatch 1+2 not found.",
            True,
        ], space


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
        ("unknown cancel", ["NotFoundError", 404, "not_found_error"]),
        ("unknown delete", ["NotFoundError", 404, "not_found_error"]),
        ("unknown path", ["NotFoundError", 404, "not_found_error"]),
        ("unknown path, POST", ["NotFoundError", 404, "not_found_error"]),
        ("unknown path, DELETE", ["NotFoundError", 404, "not_found_error"]),
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
    expected = seen["client"].error_class(413, "ContentTooLargeError", "ga")
    assert seen["errors"]["too large"][:3] == [expected, 413, "request_too_large"]


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
    client: Client = seen["client"]
    for space in client.spaces:
        headers = seen["calls"][f"{space}-1"]
        assert headers["anthropic-version"] == client.wire, space
        if "beta" in space:
            # The driver names it twice.
            betas = headers["anthropic-beta"].split(",")
            assert betas.count("output-300k-2026-03-24") == 1, space
        else:
            assert "anthropic-beta" not in headers, space
    for headers in seen["calls"].values():
        assert "sk-test" not in str(headers), "the client's key was sent to the upstream"
