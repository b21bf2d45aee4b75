"""The prompt cache of the simulated model, seen through usage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from batchyard.testing.clock import ManualClock
from batchyard.upstream import Call, Reply
from batchyard.upstream.simulated import Settings, Simulated
from batchyard.upstream.simulated.cache import Prefix, PromptCache

pytestmark = pytest.mark.anyio

LONG = "Gears turn sprockets and sprockets turn gears. " * 200  # about 2,000 tokens
FIVE = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}


def text(words: str, control: dict[str, str] | None = None) -> dict[str, Any]:
    return {"type": "text", "text": words} | ({"cache_control": control} if control else {})


def params(question: Any = "Why?", **fields: Any) -> dict[str, Any]:
    return {
        "model": "claude-opus-5-5",
        "max_tokens": 50,
        "system": [text(LONG, FIVE)],
        "messages": [{"role": "user", "content": question}],
    } | fields


class Asker:
    """One simulated model on a clock of its own."""

    def __init__(self, url: str = "simulated:") -> None:
        self.clock = ManualClock()
        self.model = Simulated("sim", Settings.parse(url), self.clock)

    async def raw(self, fields: dict[str, Any], workspace: str = "a") -> tuple[int, Any]:
        call = Call(json.dumps(fields).encode(), "2026-10-21", (), workspace)
        outcome = await self.model.send(call)
        assert isinstance(outcome, Reply)
        return outcome.status, json.loads(outcome.body)

    async def usage(self, fields: dict[str, Any], workspace: str = "a") -> tuple[int, int, int]:
        """Return tokens read, written for 5 minutes, written for 1 hour."""
        status, body = await self.raw(fields, workspace)
        assert status == 200, body
        usage = body["usage"]
        parts = usage["cache_creation"]
        written = parts["ephemeral_5m_input_tokens"], parts["ephemeral_1h_input_tokens"]
        assert usage["cache_creation_input_tokens"] == sum(written)
        return usage["cache_read_input_tokens"], *written


async def test_the_first_request_writes_and_the_second_reads_the_same_tokens() -> None:
    asker = Asker()
    read, written, hour = await asker.usage(params("Why?"))
    assert (read, hour) == (0, 0)
    assert written > 1_500
    assert await asker.usage(params("How?")) == (written, 0, 0)


async def test_input_tokens_are_what_is_neither_read_nor_written() -> None:
    asker = Asker()
    plain = (await Asker().raw(params(system=LONG)))[1]["usage"]["input_tokens"]
    for _ in range(2):
        usage = (await asker.raw(params()))[1]["usage"]
        assert usage["input_tokens"] < 20
        assert plain == (
            usage["input_tokens"]
            + usage["cache_read_input_tokens"]
            + usage["cache_creation_input_tokens"]
        )


async def test_the_text_of_the_answer_does_not_depend_on_the_cache() -> None:
    asker = Asker()
    first, second = [(await asker.raw(params()))[1]["content"] for _ in range(2)]
    assert first == second


async def test_nothing_is_cached_without_a_breakpoint() -> None:
    asker = Asker()
    for _ in range(2):
        assert await asker.usage(params(system=LONG)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("model", "repeats", "cached"),
    [
        ("claude-opus-5-5", 60, True),  # from 512
        ("claude-opus-5-5", 40, False),
        ("claude-haiku-4-5", 300, False),  # from 4,096
        ("claude-haiku-4-5", 450, True),
        ("another-model", 90, False),  # from 1,024
        ("another-model", 120, True),
    ],
)
async def test_a_prefix_below_the_minimum_of_its_model_is_silently_not_cached(
    model: str, repeats: int, cached: bool
) -> None:
    words = "Gears turn sprockets and sprockets turn gears. " * repeats
    _, written, _ = await Asker().usage(params(model=model, system=[text(words, FIVE)]))
    assert (written > 0) is cached


@pytest.mark.parametrize(("control", "seconds"), [(FIVE, 300), (HOUR, 3_600)])
async def test_an_entry_lapses_after_its_time_from_the_start_of_its_writer(
    control: dict[str, str], seconds: int
) -> None:
    for wait, hit in ((seconds - 0.001, True), (seconds, False)):
        asker = Asker()
        fields = params(system=[text(LONG, control)])
        await asker.usage(fields)
        await asker.clock.advance(wait)
        assert ((await asker.usage(fields))[0] > 0) is hit


async def test_latency_of_the_writer_counts_as_life_of_the_entry() -> None:
    asker = Asker("simulated:?latency=100")
    async with asyncio.TaskGroup() as group:
        group.create_task(asker.usage(params()))
        await asker.clock.advance(100)
    await asker.clock.advance(200)  # 300 s after the start
    async with asyncio.TaskGroup() as group:
        late = group.create_task(asker.usage(params()))
        await asker.clock.advance(100)
    assert late.result()[0] == 0


async def test_use_renews_an_entry() -> None:
    asker = Asker()
    await asker.usage(params())
    for _ in range(5):
        await asker.clock.advance(299)
        assert (await asker.usage(params()))[0] > 0


async def test_an_entry_is_readable_only_once_the_first_answer_begins() -> None:
    asker = Asker("simulated:?latency=2")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(asker.usage(params("one")))
        await asker.clock.advance(1)
        second = group.create_task(asker.usage(params("two")))
        await asker.clock.advance(1)
        third = group.create_task(asker.usage(params("three")))
        await asker.clock.advance(2)
    written = first.result()[1]
    assert second.result() == (0, written, 0)
    assert third.result() == (written, 0, 0)


async def test_requests_started_together_all_write_even_without_latency() -> None:
    asker = Asker()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asker.usage(params())) for _ in range(3)]
    assert all(task.result()[0] == 0 for task in tasks)


async def test_a_cancelled_writer_leaves_no_entry() -> None:
    asker = Asker("simulated:?latency=2")
    task = asyncio.ensure_future(asker.usage(params()))
    await asker.clock.wait_for_sleepers(1)
    task.cancel()
    await asker.clock.advance(5)
    async with asyncio.TaskGroup() as group:
        later = group.create_task(asker.usage(params()))
        await asker.clock.advance(2)
    assert later.result()[0] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"model": "claude-opus-5"},
        {"system": [text(LONG + "!", FIVE)]},
        {"tools": [{"name": "t", "input_schema": {"type": "object"}}]},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "null"}}}},
    ],
)
async def test_a_change_before_the_breakpoint_misses(change: dict[str, Any]) -> None:
    asker = Asker()
    await asker.usage(params())
    assert (await asker.usage(params(**change)))[0] == 0


async def test_caches_of_workspaces_are_apart() -> None:
    asker = Asker()
    await asker.usage(params(), "a")
    assert (await asker.usage(params(), "b"))[0] == 0


async def test_settings_of_the_messages_do_not_touch_what_comes_before() -> None:
    asker = Asker()
    question = [text("Why? " * 500, FIVE)]
    _, both, _ = await asker.usage(params(question))
    changed = params(question, thinking={"type": "adaptive"})
    system, rest, _ = await asker.usage(changed)
    assert system > 0
    assert system + rest == both


async def test_the_longest_prefix_is_read_and_the_rest_written() -> None:
    asker = Asker()
    _, written, _ = await asker.usage(params("Why?"))
    read, more, _ = await asker.usage(params([text("How? " * 500, FIVE)]))
    assert read == written
    assert more > 500
    assert await asker.usage(params([text("How? " * 500, FIVE)])) == (read + more, 0, 0)


async def test_a_breakpoint_looks_back_over_twenty_blocks() -> None:
    for between, hit in ((19, True), (20, False)):
        asker = Asker()
        await asker.usage(params())
        blocks = [text(f"Block {number}.") for number in range(between)]
        blocks[-1]["cache_control"] = FIVE
        read, written, _ = await asker.usage(params(blocks, system=[text(LONG)]))
        assert (read > 0) is hit
        assert written > 0


async def test_hour_and_minutes_are_counted_apart() -> None:
    asker = Asker()
    fields = params([text("How? " * 500, FIVE)], system=[text(LONG, HOUR)])
    read, minutes, hour = await asker.usage(fields)
    assert read == 0
    assert hour > 1_500
    assert minutes > 500
    await asker.clock.advance(1_000)
    assert await asker.usage(fields) == (hour, minutes, 0)


async def test_top_level_control_marks_the_last_block() -> None:
    asker = Asker()
    fields = params(LONG, system="Be brief.", cache_control=FIVE)
    _, written, _ = await asker.usage(fields)
    assert written > 1_500
    assert await asker.usage(fields) == (written, 0, 0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "five": (params([text("x", FIVE) for _ in range(4)]),
             "A maximum of 4 blocks with cache_control may be provided. Found 5."),
    "automatic fifth": (params([*(text("x", FIVE) for _ in range(3)), text("x")],
                               cache_control=FIVE), "A maximum of 4 blocks"),
    "other ttl": (params([text("x", FIVE)], cache_control=HOUR), "cache_control: "),
    "order": (params([text("x", HOUR)]), "messages.0.content.0.cache_control.ttl: a ttl='1h'"),
    "ttl": (params([text("x", {"type": "ephemeral", "ttl": "2h"})]),
            "messages.0.content.0.text.cache_control.ephemeral.ttl: Input should be '5m' or '1h'"),
    "kind": (params([text("x", {"type": "x"})]), "messages.0.content.0.text.cache_control.type: "),
    "shape": (params([text("x") | {"cache_control": 5}]),
              "messages.0.content.0.text.cache_control: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_contradicting_breakpoints_are_refused(name: str) -> None:
    fields, words = REFUSED[name]
    status, body = await Asker().raw(fields)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert body["error"]["message"].startswith(words)


@pytest.mark.parametrize("name", REFUSED)
async def test_they_are_refused_of_models_of_other_makers_too(name: str) -> None:
    fields, _ = REFUSED[name]
    status, body = await Asker().raw(fields | {"model": "qwen3:8b"})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert "cache_control" in body["error"]["message"]


def test_the_least_recently_used_entries_make_room() -> None:
    cache = PromptCache(entries_max=2)

    def use(key: bytes, now_s: float) -> int:
        found = cache.use(Prefix([key], [2_000], [(0, 300)]), now_s)
        cache.begin(found)
        return found.read

    assert [use(b"a", 0), use(b"b", 1), use(b"a", 2), use(b"c", 3)] == [0, 0, 2_000, 0]
    assert len(cache) == 2
    assert [use(b"a", 4), use(b"b", 5)] == [2_000, 0]
