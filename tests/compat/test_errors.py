"""Every error class of the official clients, on every call, and answers that break off.

The emulator fails by script; the clients do not repeat. Section 1.7 of the API's contract.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers_clients import CLIENTS, Client, Emulator, run

STATUSES = {
    400: ("invalid_request_error", "BadRequestError"),
    401: ("authentication_error", "AuthenticationError"),
    402: ("billing_error", "PaymentRequiredError"),
    403: ("permission_error", "PermissionDeniedError"),
    404: ("not_found_error", "NotFoundError"),
    409: ("conflict_error", "ConflictError"),
    413: ("request_too_large", "ContentTooLargeError"),
    429: ("rate_limit_error", "RateLimitError"),
    500: ("api_error", "InternalServerError"),
    504: ("timeout_error", "GatewayTimeoutError"),
    529: ("overloaded_error", "OverloadedError"),
}
# In the order in which the drivers make them.
CALLS = ("create", "retrieve", "list", "cancel", "results", "delete")
# A dropped answer of a delete would leave nothing to delete.
DROPPED = {call: int(call != "delete") for call in CALLS}
LINES = 2


def cuts(client: Client, call: str) -> int:
    """Return how often the answer breaks off, which only those clients can notice that return."""
    return int(call == "results" and not client.waits_for_ever)


def script(client: Client) -> str:
    """Return the faults of each call in the order in which the driver meets them."""
    found = []
    for call in CALLS:
        for space in client.spaces:
            for status, (kind, _) in STATUSES.items():
                found += [
                    f'[[call]]\non = "{call}"\nfault = "error"\ntimes = 1',
                    f'status = {status}\ntype = "{kind}"\nmessage = "{space} {call} {status}"',
                ]
            found += [f'[[call]]\non = "{call}"\nfault = "drop"\ntimes = 1'] * DROPPED[call]
            found += [f'[[call]]\non = "{call}"\nfault = "cut"\nlines = {LINES}'] * cuts(
                client, call
            )
    return "\n".join(found)


@pytest.fixture(scope="module", params=CLIENTS)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what one client saw of all these faults."""
    client = CLIENTS[request.param]
    folder = tmp_path_factory.mktemp(client.name)
    outcomes = folder / "outcomes.toml"
    outcomes.write_text(script(client), encoding="utf-8")
    counts = {call: len(STATUSES) + DROPPED[call] + cuts(client, call) for call in CALLS}
    with Emulator(folder / "data", "--script", str(outcomes)) as emulator:
        lives = run(client.driver("faults", emulator.url, json.dumps(counts)))
        assert "Traceback" not in emulator.read_log(), emulator.read_log()
    assert tuple(lives) == client.spaces
    return {"client": client, "lives": lives}


@pytest.mark.parametrize("call", CALLS)
def test_each_status_is_the_error_class_that_the_client_documents(
    seen: dict[str, Any], call: str
) -> None:
    client: Client = seen["client"]
    for space, found in seen["lives"].items():
        expected = [
            [
                client.error_class(status, name, space),
                status,
                kind,
                f"{space} {call} {status}",
                True,
            ]
            for status, (kind, name) in STATUSES.items()
        ]
        assert found[call][: len(STATUSES)] == expected, space


@pytest.mark.parametrize("call", [call for call in CALLS if DROPPED[call]])
def test_a_dropped_answer_is_a_connection_error(seen: dict[str, Any], call: str) -> None:
    for space, found in seen["lives"].items():
        assert found[call][len(STATUSES)][0] == "APIConnectionError", space


def test_results_that_break_off_are_an_error_not_a_short_list(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        if seen["client"].waits_for_ever:
            assert len(found["results"]) == len(STATUSES) + DROPPED["results"], space
            continue
        broken = found["results"][-1]
        assert len(broken) == 2, space  # class and text: neither a success nor a status
        assert "JSON" not in broken[0], space


def test_after_the_faults_every_call_works(seen: dict[str, Any]) -> None:
    for space, found in seen["lives"].items():
        names = ["good-0", "good-1", "good-2"]
        assert found["at last"] == [True, "ended", names, "message_batch_deleted"], space
