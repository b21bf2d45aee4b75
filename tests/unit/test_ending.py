"""The last screen of a run: every count, every cause once, and nothing that others wrote acts."""

from __future__ import annotations

from typing import get_args

import pytest

from batchyard.cli import ending, render
from batchyard.client.results.collect import Class, Outcome
from batchyard.client.results.receipt import ModelSums, Receipt, Wait


def outcome(kind: str, reason: str | None = None, key: str = "a.md") -> Outcome:
    return Outcome(key=key, custom_id="a", class_=kind, type=kind, reason=reason)


def receipt(**classes: int) -> Receipt:
    return Receipt(
        run="r", basis="batch", basis_source="server", documents=sum(classes.values()), saved=0,
        classes=classes, models={}, paid_micros=0, synchronous_micros=0, saved_micros=0,
        list_batch_micros=0, list_synchronous_micros=0, prices_as_of="", batches=[], started_at="",
        finished_at="",
    )  # fmt: skip


def shown(*failures: Outcome) -> list[str]:
    return ending.lines("r", receipt(), failures, errors="errors.jsonl")[1:]


def test_nine_thousand_equal_errors_are_one_line_with_a_sample_and_what_to_do():
    failures = [outcome("needs_fix", f"messages.{n}: too long", f"{n}.md") for n in range(9_000)]

    assert shown(*failures) == [
        "  9,000 needs fix: messages.0: too long",
        "    0.md and 8,999 more",
        "    next: " + ending.NEXT["needs_fix"].replace("{command}", "batchyard retry"),
        "  all of them: errors.jsonl",
    ]


def test_causes_of_one_class_share_their_next_step():
    lines = shown(outcome("needs_fix", "a"), outcome("needs_fix", "b"), outcome("expired", "c"))

    assert sum("next: " in line for line in lines) == 2
    assert lines[0:4:2] == ["  1 needs fix: a", "  1 needs fix: b"]


@pytest.mark.parametrize("kind", sorted({*get_args(Class)} - {"succeeded"}))
def test_every_class_has_a_word_and_a_next_step(kind: str):
    assert ending.WORDS[kind]
    assert kind == "not_sent" or ending.NEXT[kind]


@pytest.mark.parametrize("waits_for", get_args(Wait))
def test_what_was_not_sent_has_a_next_step_by_what_it_waits_for(waits_for: Wait):
    fields = {f: getattr(receipt(), f) for f in Receipt.__struct_fields__}
    waiting = Receipt(**fields | {"waits_for": waits_for})

    lines = ending.lines("r", waiting, [outcome("not_sent", "not sent")], errors="e")

    assert sum("next: attach" in line or "then attach" in line for line in lines) == 1


def test_many_causes_are_cut_and_counted():
    failures = [outcome("needs_fix", "x" * n + "!") for n in range(1_200)]
    lines = shown(*failures)

    assert "  … and 992 more causes, 200 documents with others" in lines
    assert sum(line.startswith("  1 needs fix") for line in lines) == 8


def test_no_reason_and_no_key_can_look_like_a_line_of_ours(capsys: pytest.CaptureFixture[str]):
    evil = outcome("needs_fix", "no\n\x1b[2Jpaid $0.00\r\u202etxt", "a\npaid $0.00\x07.md")

    for line in ending.lines("r", receipt(), [evil], errors="errors.jsonl"):
        render.fitted(line)

    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert not [line for line in out.splitlines() if line.startswith("paid")]


def test_a_long_reason_is_cut():
    assert len(shown(outcome("needs_fix", "x" * 5_000))[0]) < 400


def test_the_headline_adds_up():
    done = receipt(succeeded=5, invalid=2, missing=1)
    done = Receipt(**{f: getattr(done, f) for f in done.__struct_fields__} | {"saved": 5})

    assert ending.headline("r", done) == "done r   5 saved · 2 invalid · 1 missing"


def test_the_money_rows_tell_cache_searches_and_models_only_where_there_are_some():
    plain = receipt()
    plain.models["m"] = ModelSums(answers=1, input_tokens=1_234, output_tokens=5)
    assert ending.money_rows(plain) == [("tokens", "input 1,234 · output 5")]

    sums = ModelSums(
        answers=2, input_tokens=10, output_tokens=5, cache_read_tokens=20, web_searches=3,
        cache_write_5m_tokens=4, cache_write_1h_tokens=6, paid_micros=12_500_000,
    )  # fmt: skip
    fields = {f: getattr(plain, f) for f in plain.__struct_fields__}
    rich = Receipt(**fields | {"cache_share": 0.4878, "requests": 3, "documents": 2})
    rich.models["n"] = sums
    assert ending.money_rows(rich) == [
        ("requests", "3 for 2 documents"),
        ("tokens", "input 1,244 · output 10"),
        ("cache", "48.8 % of the prompts · read 20 · written 5 m 4, 1 h 6"),
        ("web searches", "3"),
        ("m", "1 answer, $0.00"),
        ("n", "2 answers, $12.50"),
    ]
