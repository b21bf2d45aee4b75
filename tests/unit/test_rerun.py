"""What is different when the same command comes again."""

from dataclasses import replace as changed_plan
from pathlib import Path

import msgspec
import pytest

from batchyard.client.inputs.documents import Sources
from batchyard.client.inputs.template import Template
from batchyard.client.planning import rerun
from batchyard.client.planning.plan import Plan, Settings, make, subset
from batchyard.client.running.folder import DocumentEntry
from batchyard.client.running.journal import Config

CONFIG = Config(model="m", max_tokens=9, prompt="p", prompt_sha256="0", shard_requests=1)


def plan(tmp_path: Path, rows: dict[str, str], prompt: str = "{{ text }}", **settings) -> Plan:
    path = tmp_path / "p.j2"
    path.write_text(prompt)
    documents = Sources(rows=tuple({"id": k, "text": v} for k, v in rows.items())).read()
    options = {"model": "claude-opus-4-8", "max_tokens": 100} | settings
    return make(documents, Template(path), None, Settings(**options))


def entries(made: Plan, *, shard: int = 0) -> list[DocumentEntry]:
    return [
        DocumentEntry(r.custom_id, d.key, d.sha256, d.output, shard, r.digest)
        for r in made.requests
        for d in r.documents()
    ]


def test_new_changed_removed_and_same_documents_are_told_apart(tmp_path: Path):
    before = entries(plan(tmp_path, {"a": "1", "b": "2", "c": "3"}))
    now = plan(tmp_path, {"a": "1", "b": "other", "d": "4"})

    changes = rerun.compare(before, now, is_same_command=True)

    assert changes == rerun.Changes(["d"], ["b"], ["c"], 1, frozenset({"b"}))
    assert changes.lines() == [
        "1 new document: d",
        "1 changed document: b",
        "1 removed document: c; what they have is kept",
    ]


def test_a_comment_in_the_template_changes_no_document(tmp_path: Path):
    before = entries(plan(tmp_path, {"a": "1"}))
    now = plan(tmp_path, {"a": "1"}, "{# a note #}{{ text }}")

    changes = rerun.compare(before, now, is_same_command=False)
    drift = rerun.drift(CONFIG, msgspec.structs.replace(CONFIG, prompt_sha256="1"))

    assert changes.same == 1
    assert rerun.refused(drift, changes, (), is_finished=True) == []


@pytest.mark.parametrize("settings", [{"max_tokens": 50}, {"params": {"stop_sequences": ["x"]}}])
def test_another_parameter_changes_every_document(tmp_path: Path, settings: dict):
    before = entries(plan(tmp_path, {"a": "1", "b": "2"}))

    changes = rerun.compare(before, plan(tmp_path, {"a": "1", "b": "2"}, **settings),
                            is_same_command=False)  # fmt: skip

    assert changes.changed == ["a", "b"]


def test_a_field_that_the_prompt_does_not_use_changes_nothing(tmp_path: Path):
    before = entries(plan(tmp_path, {"a": "1"}, "fixed"))

    changes = rerun.compare(before, plan(tmp_path, {"a": "2"}, "fixed"), is_same_command=True)

    assert changes.same == 1


def test_a_repetition_does_not_hide_what_was_sent_first(tmp_path: Path):
    first = entries(plan(tmp_path, {"a": "1"}))
    again = DocumentEntry("a_R1", "a", first[0].sha256, "a.md", 1)

    changes = rerun.compare([*first, again], plan(tmp_path, {"a": "1"}), is_same_command=True)

    assert changes.same == 1


def test_runs_that_did_not_note_requests_are_compared_by_their_fields(tmp_path: Path):
    now = plan(tmp_path, {"a": "1"})
    old = [msgspec.structs.replace(each, request="") for each in entries(now)]

    assert rerun.compare(old, now, is_same_command=True).same == 1
    assert rerun.compare(old, now, is_same_command=False).changed == ["a"]


@pytest.mark.parametrize(
    ("changed", "allow", "text"),
    [
        ({"prompt_sha256": "1"}, "prompt", "the prompt p has another text"),
        ({"system_sha256": "1"}, "prompt", "the system prompt has another text"),
        ({"model": "n"}, "model", "--model was m and is n"),
        ({"max_tokens": 10}, "options", "--max-tokens was 9 and is 10"),
        ({"betas": ("b",)}, "options", "--beta was not given and is b"),
        ({"params": {"temperature": 1}}, "options", "temperature was not given and is 1"),
        ({"cache": "1h"}, "options", "--cache was off and is 1h"),
        ({"base_url": "http://x"}, "server", "the server was not given and is http://x"),
        ({"suffix": ".txt"}, None, "--suffix was .md and is .txt"),
    ],
)
def test_each_option_that_changed_is_named_with_what_allows_it(
    changed: dict, allow: str | None, text: str
):
    drift = rerun.drift(CONFIG, msgspec.structs.replace(CONFIG, **changed))
    changes = rerun.Changes(changed=["a"])

    assert drift == [rerun.Drift(text, allow)]
    refused = rerun.refused(drift, changes, (), is_finished=True)
    assert refused[0] == (f"{text} (--allow-{allow}-change)" if allow else text)
    if allow:
        assert rerun.refused(drift, changes, {allow}, is_finished=True) in (
            [], ["1 changed document: a (--allow-input-change)"],
        )  # fmt: skip


def test_new_and_removed_documents_need_no_leave_and_changed_ones_do():
    new = rerun.Changes(new=["n"], removed=["r"], same=3)
    edited = rerun.Changes(changed=["c"], same=3)

    assert rerun.refused([], new, (), is_finished=True) == []
    assert rerun.refused([], edited, (), is_finished=True) == [
        "1 changed document: c (--allow-input-change)"
    ]
    assert rerun.refused([], edited, {"input"}, is_finished=True) == []


def test_a_run_under_way_takes_nothing_new():
    new = rerun.Changes(new=["n"])

    assert rerun.refused([], new, rerun.ALLOWS, is_finished=False) == ["1 new document: n"]


def test_a_changed_document_keeps_its_report_and_a_new_one_takes_no_other_name(tmp_path: Path):
    first = plan(tmp_path, {"a": "1", "gone": "2"})
    before = [
        msgspec.structs.replace(each, output="new.md") if each.key == "gone" else each
        for each in entries(first)
    ]
    now = plan(tmp_path, {"a": "other", "new": "3"})
    changes = rerun.compare(before, now, is_same_command=True)

    names = rerun.names(before, now, changes)

    assert names["a"] == "a.md"
    assert names["new"].startswith("new~")
    assert names["new"].endswith(".md")


def test_what_is_sent_again_is_a_plan_of_its_own_with_the_round_in_its_ids(tmp_path: Path):
    whole = plan(tmp_path, {"a": "1", "b": "2", "c": "3"})

    some = subset(whole, {"b", "c"}, round_=2, names={"c": "other.md"})

    assert [r.custom_id for r in some.requests] == ["b_R2", "c_R2"]
    assert [r.output for r in some.requests] == ["b.md", "other.md"]
    assert [r.digest for r in some.requests] == [r.digest for r in whole.requests[1:]]
    assert some.tokens.input == sum(
        whole.basis.weights.tokens(whole.measures.sizes[at]) for at in (1, 2)
    )
    assert b'"custom_id":"b_R2"' in b"".join(some.shards[0].body())
    assert len(b"".join(some.shards[0].body())) == some.shards[0].size


def test_of_documents_that_share_a_request_the_rest_keeps_sharing_one(tmp_path: Path):
    whole = plan(tmp_path, {"a": "same", "b": "same", "c": "same"})

    some = subset(whole, {"b", "c"})

    assert [r.key for r in some.requests] == ["b"]
    assert [copy.key for copy in some.requests[0].copies] == ["c"]
    assert b'"custom_id":"b"' in bytes(some.requests[0].body)
    assert changed_plan(whole).documents == 3
