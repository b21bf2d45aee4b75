"""Why requests wait, in words: of a pool, and as `status --why` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from batchyard.cli.why import lines
from batchyard.client.answers import Progress
from batchyard.dispatch.limiter import Wait
from batchyard.dispatch.waiting import in_pool
from batchyard.errors import ConfigError
from batchyard.fairness import Share, Shares
from batchyard.server.config import load
from unit.test_turns import pool, shard, take

if TYPE_CHECKING:
    from pathlib import Path


def test_a_paused_upstream_and_the_waits_of_its_gate_are_named_with_their_end() -> None:
    made = pool(4, shard(2))
    made.pause("wrong key", 40.0)
    wait = Wait("cooling_down", "asked to wait", 20.0)
    paused, cooling = in_pool(made, [wait], [], "b", 10.0)
    assert (paused.reason, paused.detail, paused.until_s) == ("paused", "wrong key", 40.0)
    assert (cooling.reason, cooling.until_s) == ("cooling_down", 20.0)


def test_a_pause_that_is_over_is_named_until_the_next_call_was_answered() -> None:
    made = pool(4, shard(2))
    made.pause("wrong key", 40.0)
    (paused,) = in_pool(made, [], [], "b", 50.0)
    assert paused.until_s == 50.0
    made.answered()
    assert in_pool(made, [], [], "b", 50.0) == []


def test_requests_that_wait_for_a_prompt_cache_are_counted_of_their_own_batch() -> None:
    run, other = shard(3), shard(3, batch="c")
    for each in (run, other):
        while each.unsent:
            each.park()
    made = pool(4)
    (priming,) = in_pool(made, [], [run, other], "b", 0.0)
    assert priming.reason == "priming"
    assert priming.detail == "3 requests wait until their prompt prefix is in the cache"


def test_a_batch_whose_slots_others_have_is_behind_its_share_and_a_limit_goes_before() -> None:
    mine, others = shard(3), shard(9, batch="c")
    made = pool(4, mine, others)
    for _ in range(4):
        assert take(made)
    made.busy = 4
    (behind,) = in_pool(made, [], [mine, others], "b", 0.0)
    assert behind.reason == "behind_share"
    assert behind.detail == "2 of 4 slots; the others work for other batches"
    limited = Wait("limited", "slowly", None)
    reasons = [each.reason for each in in_pool(made, [limited], [mine, others], "b", 0.0)]
    assert reasons == ["limited"]


def test_a_batch_that_fills_all_slots_itself_is_limited_by_them() -> None:
    mine = shard(9)
    made = pool(4, mine)
    for _ in range(4):
        take(made)
    made.busy = 4
    (limited,) = in_pool(made, [], [mine], "b", 0.0, queued=1_000)
    assert limited.reason == "limited"
    assert limited.detail == "all 4 slots are filled; 1,005 requests wait"
    made.busy = 3
    assert in_pool(made, [], [mine], "b", 0.0) == [], "a free one is filled in a moment"


def test_slots_that_nobody_else_has_are_no_share_of_others() -> None:
    mine = shard(9)
    made = pool(4, mine)
    made.busy = 4
    (limited,) = in_pool(made, [], [mine], "b", 0.0)
    assert limited.reason == "limited"
    made.unwritten = 4
    (recording,) = in_pool(made, [], [mine], "b", 0.0)
    assert recording.reason == "recording"


def test_what_waits_until_another_one_was_tried_alone_is_told_of_its_own_batch() -> None:
    mine, others = shard(9), shard(9, batch="c")
    mine.kept_back = [mine.unsent.pop() for _ in range(8)]
    made = pool(4, mine, others)
    take(made)
    (alone,) = in_pool(made, [], [mine, others], "b", 0.0)
    assert alone.reason == "tried_alone"
    assert alone.detail.startswith("8 requests wait until one ")
    assert in_pool(made, [], [mine, others], "c", 0.0) == []


def test_who_has_no_more_to_send_waits_for_no_slot() -> None:
    mine, others = shard(1), shard(9, batch="c")
    made = pool(4, mine, others)
    for _ in range(4):
        take(made)
    made.busy = 4
    assert in_pool(made, [], [mine, others], "b", 0.0) == []


def test_a_workspace_that_has_all_it_may_have_is_limited_by_that_though_slots_are_free() -> None:
    first, second = shard(9), shard(9, batch="c")
    made = pool(8, first, second, shares=Shares(others=Share(most=0.5)))
    while take(made):
        made.busy += 1
    for batch in ("b", "c"):
        (limited,) = in_pool(made, [], [first, second], batch, 0.0)
        assert limited.reason == "limited"
        assert limited.detail == "its workspace fills the 4 slots that it may have (share_max)"


def test_requests_that_wait_for_their_own_time_are_counted_with_the_first_and_last_end() -> None:
    mine, others = shard(4), shard(4, batch="c")
    mine.retrying = {"b-0": (600.0, "429"), "b-1": (40.0, "500"), "b-2": (300.0, "429")}
    others.retrying = {"c-0": (900.0, "429")}
    made = pool(4, mine, others)
    (retrying,) = in_pool(made, [], [mine, others], "b", 10.0)
    assert retrying.reason == "retrying"
    assert retrying.detail == "3 requests wait to be sent again (429)"
    assert (retrying.until_s, retrying.last_s) == (40.0, 600.0)
    mine.retrying.clear()
    assert in_pool(made, [], [mine, others], "b", 10.0) == []


def test_one_that_waits_for_its_own_time_does_not_hide_why_the_others_wait() -> None:
    mine = shard(9)
    made = pool(4, mine)
    for _ in range(5):
        take(made)
    mine.retrying = {"b-0": (600.0, "429")}
    made.busy = 4
    found = in_pool(made, [], [mine], "b", 0.0)
    assert [each.detail for each in found] == [
        "all 4 slots are filled; 4 requests wait",
        "1 request waits to be sent again (429)",
    ]


def test_status_says_it_a_sentence_a_line() -> None:
    told = {
        "results": 10,
        "requests": 100,
        "in_flight": 4,
        "processing_status": "in_progress",
        "waiting": [
            {"pool": "up/m", "reason": "priming", "detail": "6 requests wait", "until": None},
            {
                "pool": "up/m",
                "reason": "cooling_down",
                "detail": "asked to wait",
                "until": "2026-09-21T14:13:20.5Z",
            },
            {"pool": "up/m", "reason": "news", "detail": "of a later server", "until": None},
        ],
        "calls": 1_200,
        "repeated_calls": 7,
        "unknown_calls": 3,
        "failed_calls": {"429": 5, "connect": 2},
        "failing": [
            {"custom_id": "over", "tries": 2, "reason": "429", "message": "m", "is_over": True},
            {"custom_id": "a\x1b[31m", "tries": 1, "reason": "500", "message": "x" * 500},
            {
                "custom_id": "b",
                "tries": 3,
                "reason": "500",
                "reasons": {"500": 2, "429": 1},
                "message": "m",
            },
        ],
        "estimate": {"ends_at": None, "basis": "no basis"},
    }
    assert lines(msgspec.convert(told, Progress)) == [
        "priming caches: 6 requests wait (up/m)",
        "cooling down until 14:13:20 UTC: asked to wait (up/m)",
        "news: of a later server (up/m)",
        (
            "1,200 calls, 7 of them repeated (3 after the end of a process); "
            "failed: 429 (5x), connect (2x)"
        ),
        r"failed once: a\x1b[31m: 500: " + "x" * 119 + "…",
        "failed 3 times, 500 (2x), 429 (1x): b: 500: m",
        "end not known: no basis",
    ]


def test_status_names_a_few_of_many_that_fail() -> None:
    failing = [{"custom_id": f"c{n}", "tries": 2, "reason": "500"} for n in range(20)]
    told = msgspec.convert({"processing_status": "in_progress", "failing": failing}, Progress)
    said = [line for line in lines(told) if line.startswith("failed")]
    assert said[0] == "failed 2 times: c15: 500: "
    assert said[-1] == "failed: 15 more of late"
    assert len(said) == 6


@pytest.mark.parametrize(
    ("status", "said"), [("in_progress", ["nothing holds it back"]), ("ended", [])]
)
def test_status_says_so_when_nothing_waits(status: str, said: list[str]) -> None:
    assert lines(Progress(processing_status=status)) == said


# Limits that are written down -----------------------------------------------------------------

UPSTREAM = '[[upstream]]\nname = "up"\nurl = "http://localhost:8000"\nmodels = ["*"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("requests_per_minute = 0", "upstream up: requests_per_minute 0: 1 to 1000000000000"),
        ("output_tokens_per_minute = -5", "output_tokens_per_minute -5: 1 to"),
        ("input_tokens_per_minute = 1000000000001", "input_tokens_per_minute 1000000000001: 1 to"),
        ('requests_per_minute = "50"', "requests_per_minute"),
        ("requests_per_minute = 1.5", "requests_per_minute"),
        ("requests_per_second = 5", "requests_per_second"),
        ("[[upstream.limit]]\nrequests_per_minute = 5", "models"),
        (
            '[[upstream.limit]]\nmodels = ["*"]',
            "upstream up, limit 1: models and one of requests_per_minute, input_tokens_per_minute",
        ),
        (
            "[[upstream.limit]]\nmodels = []\nrequests_per_minute = 5",
            "upstream up, limit 1: models",
        ),
        ('[[upstream.limit]]\nmodels = ["*"]\ntokens_per_minute = 5', "tokens_per_minute"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "batchyard.toml"
    path.write_text(UPSTREAM + text)
    with pytest.raises(ConfigError) as caught:
        load(environment={}, file=path)
    assert said in str(caught.value)
