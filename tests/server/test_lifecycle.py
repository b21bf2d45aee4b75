"""Create, retrieve, list, cancel, delete: shapes and rules over raw HTTP."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, KEY, Answer, Yard, assert_answered, request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers_upstream import Upstream

KEYS = [
    "id",
    "type",
    "processing_status",
    "request_counts",
    "ended_at",
    "created_at",
    "expires_at",
    "archived_at",
    "cancel_initiated_at",
    "results_url",
]
COUNTS = ["processing", "succeeded", "errored", "canceled", "expired"]


def counts(**some: int) -> dict[str, int]:
    return dict.fromkeys(COUNTS, 0) | some


def error_of(answer: Answer) -> dict[str, Any]:
    """Check the envelope of an error and return its inner part."""
    body = answer.json()
    assert list(body) == ["type", "error", "request_id"]
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"]
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = body["error"]
    return error


# The object ------------------------------------------------------------------------------------


def test_an_open_batch_has_all_ten_keys_and_frozen_counts(yard: Yard, upstream: Upstream) -> None:
    prompts = [f"open-{n}" if n else "open-0|hold:open" for n in range(3)]

    created = yard.create([request(prompt) for prompt in prompts])

    assert list(created) == KEYS
    assert re.fullmatch(r"msgbatch_01[1-9A-HJ-NP-Za-km-z]{22}", created["id"])
    assert created["type"] == "message_batch"
    assert created["processing_status"] == "in_progress"
    assert list(created["request_counts"]) == COUNTS
    assert created["request_counts"] == counts(processing=3)
    times = [created[key] for key in ("created_at", "expires_at")]
    for time in times:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)
    begin, end = map(datetime.fromisoformat, times)
    assert end - begin == timedelta(hours=24)
    for key in ("ended_at", "archived_at", "cancel_initiated_at", "results_url"):
        assert created[key] is None

    # Two of the three are answered, and still no count moves.
    yard.wait_progress(created["id"], lambda progress: progress["results"] == 2)
    assert yard.batch(created["id"]) == created

    upstream.gate("open").open()
    ended = yard.wait_ended(created["id"])
    assert list(ended) == KEYS
    assert ended["request_counts"] == counts(succeeded=3)
    assert ended["results_url"] == f"{yard.url}{BATCHES}/{created['id']}/results"
    assert ended["ended_at"] >= ended["created_at"]
    assert ended["archived_at"] is None
    assert ended["cancel_initiated_at"] is None
    assert_answered(yard.results(created["id"]), prompts)


def test_retry_after_is_on_an_unfinished_retrieve_only(yard: Yard, upstream: Upstream) -> None:
    answer = yard.post(BATCHES, {"requests": [request("ra|hold:ra")]})
    assert answer.headers["retry-after"] is None
    path = f"{BATCHES}/{answer.json()['id']}"
    assert yard.get(path).headers["retry-after"] == "10"
    assert yard.get(BATCHES).headers["retry-after"] is None
    canceled = yard.post(f"{path}/cancel", b"")
    assert canceled.headers["retry-after"] is None
    assert yard.get(path).headers["retry-after"] == "10"
    upstream.gate("ra").open()
    yard.wait_ended(answer.json()["id"])
    assert yard.get(path).headers["retry-after"] is None


def test_every_answer_has_its_own_request_id(yard: Yard) -> None:
    answers = [yard.get(BATCHES), yard.get(BATCHES), yard.get("/nowhere"), yard.post(BATCHES, b"")]
    found = {answer.headers["request-id"] for answer in answers}
    assert len(found) == 4
    for request_id in found:
        assert re.fullmatch(r"req_01\w{22}", request_id)


def test_the_query_of_the_older_beta_clients_changes_nothing(yard: Yard) -> None:
    headers = HEADERS | {"anthropic-beta": "message-batches-2024-09-24,message-batches-2024-09-24"}
    created = yard.post(f"{BATCHES}?beta=true", {"requests": [request("beta")]}, headers)
    assert created.status == 200
    batch_id = created.json()["id"]
    assert yard.get(f"{BATCHES}/{batch_id}?beta=true").json()["id"] == batch_id
    assert batch_id in {b["id"] for b in yard.get(f"{BATCHES}?beta=true&limit=1000").json()["data"]}
    yard.wait_ended(batch_id)
    assert yard.post(f"{BATCHES}/{batch_id}/cancel?beta=true", b"", headers).status == 200
    assert yard.get(f"{BATCHES}/{batch_id}/results?beta=true").lines()
    assert yard.request("DELETE", f"{BATCHES}/{batch_id}?beta=true").status == 200


# Paths and methods ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "PATCH"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/_stainless_unknown_path?after_id=after_id&before_id=before_id&limit=1",
        "/v1/messages/batches/",
        "/v1//messages/batches",
        "/v1/messages/batches/msgbatch_x/nothing",
        "/v1/messages/batches/../../etc/passwd",
        "/v1/messages/batches/%2e%2e%2fetc",
        "/v1/complete",
    ],
)
def test_unknown_paths_are_404_for_every_method(yard: Yard, method: str, path: str) -> None:
    answer = yard.request(method, path)
    assert answer.status == 404
    assert error_of(answer)["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", BATCHES, "GET, POST"),
        ("DELETE", BATCHES, "GET, POST"),
        ("POST", f"{BATCHES}/msgbatch_x", "DELETE, GET"),
        ("GET", f"{BATCHES}/msgbatch_x/cancel", "POST"),
        ("POST", f"{BATCHES}/msgbatch_x/results", "GET"),
        ("GET", "/v1/messages", "POST"),
        ("POST", "/v1/models", "GET"),
    ],
)
def test_wrong_methods_are_405_with_allow(yard: Yard, method: str, path: str, allowed: str) -> None:
    answer = yard.request(method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "batch_id",
    [
        "msgbatch_01HkcTjaV5uDC8jWR4ZsDV8d",
        "message_batch_id",
        "x",
        "%00",
        "%C3%A9",
        "..%00",
        "msgbatch_" + "1" * 3_000,
        "'%3B--",
    ],
)
def test_unknown_ids_are_404_everywhere(yard: Yard, batch_id: str) -> None:
    path = f"{BATCHES}/{batch_id}"
    answers = [
        yard.get(path),
        yard.request("DELETE", path),
        yard.post(f"{path}/cancel", b""),
        yard.get(f"{path}/results"),
        yard.get(f"{path}/progress"),
    ]
    texts = set()
    for answer in answers:
        assert answer.status == 404
        error = error_of(answer)
        assert error["type"] == "not_found_error"
        texts.add(error["message"])
    assert len(texts) == 1
    if re.fullmatch(r"\w+", batch_id) and len(batch_id) < 80:
        assert texts == {f"Message Batch {batch_id} not found."}


# List -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(
    upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Yard, list[str]]]:
    """A yard with seven batches, newest first."""
    data = tmp_path_factory.mktemp("listed") / "data"
    with Yard(data, upstream.url) as yard:
        empty = yard.get(BATCHES).json()
        assert empty == {"data": [], "has_more": False, "first_id": None, "last_id": None}
        made = [yard.create([request(f"list-{n}")])["id"] for n in range(7)]
        yield yard, made[::-1]


def page(yard: Yard, query: str = "") -> tuple[list[str], bool]:
    answer = yard.get(f"{BATCHES}{query}")
    assert answer.status == 200, answer.body
    body = answer.json()
    assert list(body) == ["data", "has_more", "first_id", "last_id"]
    ids = [batch["id"] for batch in body["data"]]
    for batch in body["data"]:
        assert list(batch) == KEYS
    assert (body["first_id"], body["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    return ids, body["has_more"]


def test_the_list_is_newest_first(listed: tuple[Yard, list[str]]) -> None:
    yard, ids = listed
    assert page(yard) == (ids, False)
    assert page(yard, "?limit=7") == (ids, False)
    assert page(yard, "?limit=6") == (ids[:6], True)
    assert page(yard, "?limit=1000&order=asc&x=%00") == (ids, False)


def test_after_id_pages_towards_the_older_ones(listed: tuple[Yard, list[str]]) -> None:
    yard, ids = listed
    assert page(yard, f"?limit=3&after_id={ids[2]}") == (ids[3:6], True)
    assert page(yard, f"?limit=3&after_id={ids[5]}") == (ids[6:], False)
    assert page(yard, f"?after_id={ids[6]}") == ([], False)


def test_before_id_gives_the_nearest_newer_ones(listed: tuple[Yard, list[str]]) -> None:
    yard, ids = listed
    assert page(yard, f"?limit=3&before_id={ids[5]}") == (ids[2:5], True)
    assert page(yard, f"?limit=3&before_id={ids[2]}") == (ids[:2], False)
    assert page(yard, f"?before_id={ids[0]}") == ([], False)


def test_walking_the_pages_meets_every_batch_once(listed: tuple[Yard, list[str]]) -> None:
    yard, ids = listed
    for limit in range(1, 9):
        walked, more = page(yard, f"?limit={limit}")
        while more:
            part, more = page(yard, f"?limit={limit}&after_id={walked[-1]}")
            walked += part
        assert walked == ids


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ("0", "limit: Input should be greater than or equal to 1"),
        ("-1", "limit: Input should be greater than or equal to 1"),
        ("1001", "limit: Input should be less than or equal to 1000"),
        ("9" * 400, "limit: Input should be less than or equal to 1000"),
        ("abc", "limit: Input should be a valid integer"),
        ("", "limit: Input should be a valid integer"),
        ("1e3", "limit: Input should be a valid integer"),
        ("-", "limit: Input should be a valid integer"),
        ("--1", "limit: Input should be a valid integer"),
        ("%D9%A3", "limit: Input should be a valid integer"),
    ],
)
def test_bad_limits_are_400(yard: Yard, limit: str, text: str) -> None:
    answer = yard.get(f"{BATCHES}?limit={limit}")
    assert answer.status == 400
    assert error_of(answer)["message"].startswith(text)


def test_an_unknown_cursor_is_400(yard: Yard) -> None:
    for query in ("after_id=no", "before_id=no"):
        answer = yard.get(f"{BATCHES}?{query}")
        assert answer.status == 400
        assert error_of(answer)["type"] == "invalid_request_error"


# Cancel ---------------------------------------------------------------------------------------


def test_cancel_keeps_answers_in_flight_and_starts_no_other(
    upstream: Upstream, tmp_path: Path
) -> None:
    prompts = [f"cancel-{n:04}|hold:cancel" for n in range(1_200)]
    with Yard(tmp_path / "data", upstream.url, slots=4) as yard:
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls("cancel-", 4)
        assert upstream.number("cancel-") == 4

        canceled = yard.post(f"{BATCHES}/{batch['id']}/cancel", b"").json()
        # The calls in flight are answered at once: their slots must not take the next request.
        upstream.gate("cancel").open()
        assert list(canceled) == KEYS
        assert canceled["processing_status"] == "canceling"
        assert canceled["request_counts"] == counts(processing=1_200)
        assert canceled["cancel_initiated_at"] >= canceled["created_at"]
        assert canceled["results_url"] is None

        ended = yard.wait_ended(batch["id"])
        results = yard.results(batch["id"])
        log = yard.read_log()

    assert upstream.number("cancel-") == 4, "a call was started after the cancel"
    assert ended["request_counts"] == counts(succeeded=4, canceled=1_196)
    assert ended["cancel_initiated_at"] == canceled["cancel_initiated_at"]
    answered = [name for name in results if upstream.counts[name]]
    assert len(answered) == 4
    assert {results[name]["type"] for name in answered} == {"succeeded"}
    unsent = [result for name, result in results.items() if name not in answered]
    assert unsent == [{"type": "canceled"}] * 1_196
    assert "Traceback" not in log


def test_cancel_of_a_canceling_batch_changes_nothing(yard: Yard, upstream: Upstream) -> None:
    batch_id = yard.create([request("twice|hold:twice")])["id"]
    upstream.wait_calls("twice", 1)
    first = yard.post(f"{BATCHES}/{batch_id}/cancel", b"").json()
    assert yard.post(f"{BATCHES}/{batch_id}/cancel", b"").json() == first
    assert yard.batch(batch_id) == first
    upstream.gate("twice").open()
    ended = yard.wait_ended(batch_id)
    assert ended["request_counts"] == counts(succeeded=1)
    assert ended["cancel_initiated_at"] == first["cancel_initiated_at"]


def test_cancel_of_an_ended_batch_changes_nothing(yard: Yard) -> None:
    batch_id = yard.create([request("too-late")])["id"]
    ended = yard.wait_ended(batch_id)
    answer = yard.post(f"{BATCHES}/{batch_id}/cancel", b"")
    assert answer.status == 200
    assert answer.json() == ended
    assert yard.batch(batch_id) == ended


def test_a_canceled_batch_of_a_paused_upstream_leaves_the_pool_usable(
    upstream: Upstream, yard: Yard
) -> None:
    """The pool was paused by a refused key and had nothing left to try with."""
    first = yard.create([request("paused-1|401", model="paused")])
    yard.wait_progress(first["id"], lambda p: "up/paused" in p["paused"])
    yard.post(f"{BATCHES}/{first['id']}/cancel", b"")
    yard.wait_ended(first["id"])
    second = yard.create([request("paused-2", model="paused")])
    yard.wait_ended(second["id"])
    assert yard.batch(second["id"])["request_counts"] == counts(succeeded=1)
    assert "up/paused" not in yard.progress(second["id"])["paused"]


@pytest.mark.parametrize("method_and_tail", [("POST", "/cancel"), ("DELETE", "")])
@pytest.mark.parametrize(
    ("body", "extra"),
    [
        (None, {}),
        (b"", {"content-length": "0"}),
        (b"", {"content-type": "text/plain"}),
        (b"not json", {}),
    ],
)
def test_cancel_and_delete_neither_need_nor_read_a_body(
    yard: Yard, method_and_tail: tuple[str, str], body: bytes | None, extra: dict[str, str]
) -> None:
    method, tail = method_and_tail
    batch_id = yard.create([request("bodiless")])["id"]
    yard.wait_ended(batch_id)
    assert yard.request(method, f"{BATCHES}/{batch_id}{tail}", body, HEADERS | extra).status == 200


# Delete ---------------------------------------------------------------------------------------


def test_delete_removes_an_ended_batch_and_its_files(yard: Yard) -> None:
    batch_id = yard.create([request("doomed")])["id"]
    yard.wait_ended(batch_id)
    assert any(batch_id in name for name in yard.files())

    answer = yard.request("DELETE", f"{BATCHES}/{batch_id}")

    assert answer.status == 200
    assert answer.json() == {"id": batch_id, "type": "message_batch_deleted"}
    assert not any(batch_id in name for name in yard.files())
    path = f"{BATCHES}/{batch_id}"
    for again in (
        yard.request("DELETE", path),
        yard.get(path),
        yard.get(f"{path}/results"),
        yard.post(f"{path}/cancel", b""),
    ):
        assert again.status == 404
    listed = yard.get(f"{BATCHES}?limit=1000").json()["data"]
    assert batch_id not in {batch["id"] for batch in listed}


def test_an_official_client_deletes_what_it_lists_page_by_page(
    upstream: Upstream, tmp_path: Path
) -> None:
    with (
        Yard(tmp_path / "data", upstream.url) as yard,
        anthropic.Anthropic(base_url=yard.url, api_key=KEY, max_retries=0) as client,
    ):
        batches = client.messages.batches

        def made() -> list[str]:
            """Make seven batches that have ended; newest first."""
            ids = [yard.create([request(f"swept-{n}")])["id"] for n in range(7)]
            for batch_id in ids:
                yard.wait_ended(batch_id)
            return ids[::-1]

        def swept(**query: Any) -> list[str]:
            return [batches.delete(batch.id).id for batch in batches.list(limit=2, **query)]

        first = made()
        assert swept() == first
        assert page(yard) == ([], False)
        # The other direction, from a batch that is gone too: the nearest page comes first.
        second = made()
        assert swept(before_id=first[0]) == [second[n] for n in (5, 6, 3, 4, 1, 2, 0)]
        assert page(yard) == ([], False)


def test_an_unfinished_batch_cannot_be_deleted(yard: Yard, upstream: Upstream) -> None:
    batch_id = yard.create([request("kept|hold:kept")])["id"]
    upstream.wait_calls("kept", 1)
    for status in ("in_progress", "canceling"):
        assert yard.batch(batch_id)["processing_status"] == status
        answer = yard.request("DELETE", f"{BATCHES}/{batch_id}")
        assert answer.status == 400
        assert error_of(answer) == {
            "type": "invalid_request_error",
            "message": "In progress batches cannot be deleted. "
            "Consider canceling the batch instead.",
        }
        yard.post(f"{BATCHES}/{batch_id}/cancel", b"")
    upstream.gate("kept").open()
    assert yard.wait_ended(batch_id)["request_counts"] == counts(succeeded=1)
    assert yard.request("DELETE", f"{BATCHES}/{batch_id}").status == 200


# Repeated creates -----------------------------------------------------------------------------


def body_of(*prompts: str) -> dict[str, object]:
    return {"requests": [request(prompt) for prompt in prompts]}


def test_the_same_idempotency_key_and_body_give_the_first_batch(yard: Yard) -> None:
    headers = HEADERS | {"idempotency-key": "one"}
    first = yard.post(BATCHES, body_of("idem-1"), headers).json()
    yard.wait_ended(first["id"])
    second = yard.post(BATCHES, body_of("idem-1"), headers).json()
    assert second["id"] == first["id"]
    assert second["processing_status"] == "ended"
    assert yard.post(BATCHES, body_of("idem-1")).json()["id"] != first["id"]
    other_key = HEADERS | {"idempotency-key": "two"}
    assert yard.post(BATCHES, body_of("idem-1"), other_key).json()["id"] != first["id"]


def test_the_same_idempotency_key_with_another_body_is_refused_for_good(yard: Yard) -> None:
    headers = HEADERS | {"idempotency-key": "three"}
    first = yard.post(BATCHES, body_of("idem-3"), headers)
    answer = yard.post(BATCHES, body_of("idem-3-other"), headers)
    assert (first.status, answer.status) == (200, 400)
    assert answer.headers["x-should-retry"] == "false"
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize("key", ["", "k" * 257])
def test_an_unusable_idempotency_key_is_400(yard: Yard, key: str) -> None:
    answer = yard.post(BATCHES, body_of("idem"), HEADERS | {"idempotency-key": key})
    assert answer.status == 400
    assert answer.headers["x-should-retry"] == "false"


def test_a_key_may_be_used_again_after_its_batch_was_deleted(yard: Yard) -> None:
    headers = HEADERS | {"idempotency-key": "four"}
    first = yard.post(BATCHES, body_of("idem-4"), headers).json()
    yard.wait_ended(first["id"])
    yard.request("DELETE", f"{BATCHES}/{first['id']}")
    second = yard.post(BATCHES, body_of("idem-4"), headers)
    assert second.status == 200
    assert second.json()["id"] != first["id"]


def at_once(yard: Yard, number: int, body: object, headers: dict[str, str]) -> list[Answer]:
    """Make equal create calls that are all sent before any is answered."""
    barrier = threading.Barrier(number)

    def call(_: int) -> Answer:
        barrier.wait(DEADLINE_S)
        return yard.post(BATCHES, body, headers)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(call, range(number)))


def test_calls_at_once_under_one_key_make_one_batch(yard: Yard) -> None:
    for round_number in range(5):
        key = f"race-{round_number}"
        answers = at_once(yard, 6, body_of(key), HEADERS | {"idempotency-key": key})
        made = {answer.json()["id"] for answer in answers if answer.status == 200}
        assert len(made) == 1
        for answer in answers:
            assert answer.status in {200, 409}
            if answer.status == 409:
                assert error_of(answer)["type"] == "conflict_error"
        assert batches_with(yard, key) == made


def test_equal_batches_on_purpose_are_all_made(yard: Yard) -> None:
    """Without a key and without a retry count nothing says that a call is a repeat."""
    answers = at_once(yard, 6, body_of("on-purpose"), HEADERS)
    assert [answer.status for answer in answers] == [200] * 6
    assert len({answer.json()["id"] for answer in answers}) == 6


def batches_with(yard: Yard, name: str) -> set[str]:
    """Return the batches whose first result is of this request."""
    found = set()
    for batch in yard.get(f"{BATCHES}?limit=1000").json()["data"]:
        yard.wait_ended(batch["id"])
        if name in yard.results(batch["id"]):
            found.add(batch["id"])
    return found


def test_an_sdk_retry_gives_the_first_batch(yard: Yard) -> None:
    first_try = HEADERS | {"x-stainless-retry-count": "0"}
    retry = HEADERS | {"x-stainless-retry-count": "1"}
    first = yard.post(BATCHES, body_of("sdk-1"), first_try).json()["id"]
    assert yard.post(BATCHES, body_of("sdk-1"), retry).json()["id"] == first
    again = HEADERS | {"x-stainless-retry-count": "2"}
    assert yard.post(BATCHES, body_of("sdk-1"), again).json()["id"] == first
    # Not a repeat: other content, another key, another version, or no retry at all.
    others = [
        yard.post(BATCHES, body_of("sdk-1", "sdk-2"), retry),
        yard.post(BATCHES, body_of("sdk-1"), retry | {"x-api-key": "another"}),
        yard.post(BATCHES, body_of("sdk-1"), retry | {"anthropic-version": "2026-10-21"}),
        yard.post(BATCHES, body_of("sdk-1"), first_try),
    ]
    made = {answer.json()["id"] for answer in others}
    assert len(made) == 4
    assert first not in made
    newest = others[-1].json()["id"]
    assert yard.post(BATCHES, body_of("sdk-1"), retry).json()["id"] == newest


def test_a_retry_whose_first_try_never_arrived_makes_a_batch(yard: Yard) -> None:
    retry = HEADERS | {"x-stainless-retry-count": "2"}
    assert yard.post(BATCHES, body_of("sdk-lost"), retry).status == 200


def test_batches_are_listed_in_the_order_of_creation(yard: Yard) -> None:
    for _ in range(3):
        yard.create([request("ordered")])
    created = [batch["created_at"] for batch in yard.get(f"{BATCHES}?limit=1000").json()["data"]]
    assert all(newer >= older for newer, older in pairwise(created))
