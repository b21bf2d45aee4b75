"""What a run leaves on disk: tables, audit record, one row for every document."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow.parquet as pq
import pytest

from batchyard.client.inputs.documents import Document, Sources
from batchyard.client.problems import InputError
from batchyard.client.results import collect, columns, formats, receipt
from batchyard.client.results.names import names_by
from batchyard.client.results.outputs import Tree
from batchyard.client.running import durable, folder, journal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CONFIG = journal.Config(
    model="claude-opus-4-8", max_tokens=9, prompt="p", prompt_sha256="0", shard_requests=9,
    base_url="http://127.0.0.1:1",
)  # fmt: skip


class Made:
    """A run on disk whose shards are collected, made without a server."""

    def __init__(self, out: Path, config: journal.Config = CONFIG) -> None:
        out.mkdir(exist_ok=True)
        self.out, self.files, self.config = out, folder.Files(out), config
        self.files.state.mkdir(exist_ok=True)
        self.entries: list[folder.DocumentEntry] = []
        self.shards: list[journal.Shard] = []
        self.saving = journal.Saving()

    def shard(self, documents: dict[str, list[str]], lines: Iterable[bytes], **more: Any) -> None:
        """Collect one more shard.

        Args:
            documents: keys of the documents by custom id.
            lines: of the results.
            more: fields of the shard.
        """
        index = len(self.shards)
        entries = {
            custom_id: [
                folder.DocumentEntry(custom_id, key, f"sha of {key}", f"{key}.md", index)
                for key in keys
            ]
            for custom_id, keys in documents.items()
        }
        self.entries += [entry for each in entries.values() for entry in each]
        requests = [{"custom_id": i, "params": params(i)} for i in documents]
        durable.write(self.files.requests(index), [json.dumps({"requests": requests}).encode()])
        durable.write(self.files.results(index), lines)
        lines_of = (msgspec.json.encode(entry) + b"\n" for entry in self.entries)
        durable.write(self.files.documents, lines_of)
        summary = collect.collect(
            self.files, Tree(self.out), index, entries, saved=lambda _: None,
            is_again=more.get("round", 0) > 0,
        )  # fmt: skip
        self.shards.append(
            journal.Shard(
                index=index, requests=len(documents), bytes=1, sha256="", billing="batch",
                phase=journal.Phase.COLLECTED, batch=f"msgbatch_{index}",
                classes=dict(summary.classes), **more,
            )
        )  # fmt: skip

    def state(self) -> journal.State:
        return journal.State("r", self.config, tuple(self.shards), 1, saving=self.saving)

    def finish(self, *wanted: str) -> receipt.Receipt:
        self.saving = msgspec.structs.replace(self.saving, formats=wanted or self.saving.formats)
        return receipt.write(self.files, self.state(), 2)

    def rows(self) -> list[dict[str, Any]]:
        return lines(self.out / "results.jsonl")


def params(custom_id: str) -> dict[str, Any]:
    return {
        "model": "claude-opus-4-8",
        "max_tokens": 9,
        "tools": [{"name": "n" * 300}],
        "messages": [{"role": "user", "content": custom_id}],
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer(custom_id: str, text: str = "fine", **more: Any) -> bytes:
    """Return a line of results that cost 55 micro-dollars in a batch, if `more` says no other."""
    message: dict[str, Any] = {
        "id": f"msg_{custom_id}",
        "type": "message",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "model": "claude-opus-4-8",
        "usage": {"input_tokens": 2, "output_tokens": 4},
    }
    result = {"type": "succeeded", "message": message | more}
    return json.dumps({"custom_id": custom_id, "result": result}).encode() + b"\n"


def failure(custom_id: str, kind: str = "overloaded_error") -> bytes:
    error = {"type": kind, "message": f"text of {kind}"}
    body = {"type": "error", "error": error, "request_id": "req_9"}
    result = {"type": "errored", "error": body}
    return json.dumps({"custom_id": custom_id, "result": result}).encode() + b"\n"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "out")


def test_a_table_has_a_row_for_every_document_in_the_order_of_the_inputs(made: Made):
    made.shard({i: [i] for i in "abcd"}, [answer("d"), failure("b"), answer("a")])
    made.finish("md", "jsonl")

    assert [(row["key"], row["status"]) for row in made.rows()] == [
        ("a", "succeeded"), ("b", "retryable"), ("c", "missing"), ("d", "succeeded"),
    ]  # fmt: skip
    assert made.rows()[0] | {"usage": None} == {
        "key": "a", "status": "succeeded", "reason": None, "text": "fine", "output": "a.md",
        "model": "claude-opus-4-8", "usage": None, "cost_micros": 55, "custom_id": "a",
        "batch": "msgbatch_0", "tries": 1, "same_as": None,
    }  # fmt: skip


def test_a_document_sent_again_has_its_last_outcome_and_the_cost_of_all_tries(made: Made):
    made.shard({i: [i] for i in "abc"}, [answer("a"), answer("b", stop_reason="max_tokens"),
                                         failure("c")])  # fmt: skip
    made.shard({"b1": ["b"], "c1": ["c"]}, [answer("b1", "whole"), failure("c1")],
               round=1, why="retry")  # fmt: skip
    done = made.finish("md", "jsonl")

    rows = {row["key"]: row for row in made.rows()}
    assert list(rows) == ["a", "b", "c"]
    assert (rows["b"]["text"], rows["b"]["tries"], rows["b"]["cost_micros"]) == ("whole", 2, 110)
    assert (rows["c"]["status"], rows["c"]["tries"]) == ("retryable", 2)
    assert (done.documents, done.requests) == (3, 5)
    assert done.classes == {"retryable": 1, "succeeded": 2}
    assert done.paid_micros == sum(row["cost_micros"] for row in rows.values()) == 165
    assert (made.out / "b.md").read_text() == "whole\n"
    assert [row["key"] for row in lines(made.out / "errors.jsonl")] == ["c"]


def test_a_shard_cut_into_smaller_ones_keeps_the_order_of_the_inputs(made: Made):
    made.shard({i: [i] for i in "ab"}, [])
    made.shard({i: [i] for i in "yz"}, [answer("y"), answer("z")])
    made.shards[0] = dataclasses.replace(made.shards[0], phase=journal.Phase.REPLACED, batch=None)
    made.shard({"a": ["a"]}, [answer("a")])
    made.shard({"b": ["b"]}, [answer("b")])
    done = made.finish("jsonl")

    assert [row["key"] for row in made.rows()] == ["a", "b", "y", "z"]
    assert (done.documents, done.requests, done.paid_micros) == (4, 4, 220)


def test_many_shards_are_read_with_few_files_open(made: Made):
    for number in range(20):
        first, second = f"{number:02}a", f"{number:02}b"
        made.shard({first: [first], second: [second]}, [answer(second), failure(first)])
    again = [f"{number:02}a" for number in range(20)]
    for half in (again[::2], again[1::2]):
        made.shard({f"{key}_R1": [key] for key in half}, [answer(f"{key}_R1") for key in half],
                   round=1, why="retry")  # fmt: skip
    done = made.finish("jsonl")

    assert [row["key"] for row in made.rows()] == [f"{n:02}{x}" for n in range(20) for x in "ab"]
    assert {row["status"] for row in made.rows()} == {"succeeded"}
    assert {row["tries"] for row in made.rows() if row["key"].endswith("a")} == {2}
    assert (done.documents, done.requests, done.paid_micros) == (40, 60, 40 * 55)


def test_documents_that_share_a_request_have_a_report_each_and_one_cost(made: Made):
    made.shard({"a": ["a", "copy/a"], "b": ["b", "c"]}, [answer("a"), failure("b")])
    done = made.finish("md", "jsonl")

    assert (made.out / "copy/a.md").read_text() == (made.out / "a.md").read_text() == "fine\n"
    assert [(row["key"], row["same_as"], row["cost_micros"]) for row in made.rows()] == [
        ("a", None, 55), ("copy/a", "a", 0), ("b", None, 0), ("c", "b", 0),
    ]  # fmt: skip
    assert (done.documents, done.saved, done.requests, done.paid_micros) == (4, 2, 2, 55)
    assert done.classes == {"retryable": 2, "succeeded": 2}
    assert done.models["claude-opus-4-8"].answers == 1


def test_a_continued_turn_is_one_report_with_what_was_said_before(made: Made):
    made.shard({"a": ["a"]}, [answer("a", "one ", stop_reason="pause_turn")])
    made.shard({"a1": ["a"]}, [answer("a1", "two")], round=1, why="retry")
    body = json.loads(made.files.requests(1).read_bytes())
    said = {"role": "assistant", "content": [{"type": "text", "text": "one "}]}
    body["requests"][0]["params"]["messages"].append(said)
    made.files.requests(1).write_text(json.dumps(body))
    collect.collect(made.files, Tree(made.out), 1, {"a1": [made.entries[1]]},
                    saved=lambda _: None, is_again=True)  # fmt: skip
    made.finish("md", "jsonl")

    assert (made.out / "a.md").read_text() == "one two\n"
    assert made.rows()[0]["text"] == "one two"


def test_no_cell_of_a_csv_is_a_formula(made: Made):
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "safe =1", 'a "quoted", b\nc']
    ids = [f"i{number}" for number in range(len(texts))]
    made.shard({i: [i] for i in ids}, [answer(i, text) for i, text in zip(ids, texts, strict=True)])
    made.finish("csv")

    with (made.out / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [*("'" + text for text in texts[:6]), *texts[6:]]
    assert rows[0]["cost_micros"] == "55"


def document(name: str, **fields: Any) -> Document:
    return Document(name, fields, "0", name, is_row=True)


def test_tables_carry_the_columns_of_the_input_with_their_types(made: Made):
    made.shard({i: [i] for i in "abc"}, [answer(i) for i in "abc"])
    columns.Columns(
        [
            document("a", id="a", stars=3, share=1, ok=True, key="mine", tags=["x"], none=None),
            document("b", id="b", stars=4, share=0.5, ok=False, key="=1", tags=[], none=None),
            document("c", id="c", stars=None, share=None, ok=None, key=None, tags=None, none=None),
        ]
    ).write(made.files.state)
    made.finish("parquet", "csv", "jsonl")

    table = pq.read_table(made.out / "results.parquet")
    assert table.column_names[:7] == ["id", "stars", "share", "ok", "input_key", "tags", "none"]
    assert table["stars"].to_pylist() == [3, 4, None]
    assert table["share"].to_pylist() == [1.0, 0.5, None]
    assert table["ok"].to_pylist() == [True, False, None]
    assert table["input_key"].to_pylist() == ["mine", "=1", None]
    assert table["tags"].to_pylist() == ['["x"]', "[]", None]
    assert table["key"].to_pylist() == ["a", "b", "c"]
    assert table["cost_micros"].to_pylist() == [55, 55, 55]
    with (made.out / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [row["input_key"] for row in csv.DictReader(file)] == ["mine", "'=1", ""]
    assert made.rows()[0]["input"]["tags"] == ["x"]


def test_what_templates_have_beside_a_row_is_no_column_of_it(tmp_path: Path):
    rows = [{"id": "a", "n": 1}, {"id": "b", "n": 2, "name": "own", "path": "own"}]
    columns.Columns(Sources(rows=tuple(rows)).read()).write(tmp_path)

    with columns.Reader(tmp_path) as reader:
        assert [reader.get("a"), reader.get("b")] == rows


def test_columns_are_found_in_any_order(made: Made):
    columns.Columns([document(i, n=i) for i in "abcd"]).write(made.files.state)

    with columns.Reader(made.files.state) as reader:
        found = [dict(reader.get(key)) for key in ("b", "a", "d", "nobody", "c")]
    assert found == [{"n": "b"}, {"n": "a"}, {"n": "d"}, {}, {"n": "c"}]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], "integer"), ([1, 2.5], "number"), ([2.5, 1], "number"),
        (["a", None], "text"), (["a", 1], "json"), ([True, 1], "json"), ([[1], None], "json"),
        ([2**70], "number"), ([None], None),
    ],
)  # fmt: skip
def test_a_column_has_the_kind_of_its_values(values: list[object], kind: str | None):
    found = None
    for value in values:
        found = formats.kind_of(value, found)

    assert found == kind


def test_a_table_is_whole_or_as_it_was(made: Made, monkeypatch: pytest.MonkeyPatch):
    made.shard({"a": ["a"], "b": ["b"]}, [answer("a"), answer("b")])
    made.finish("jsonl", "csv", "parquet")
    before = {name: (made.out / name).read_bytes() for name in formats.NAMES.values()}
    made.files.results(0).write_bytes(answer("a") + b"damaged\n")

    with pytest.raises(folder.JournalError, match="is not what it was"):
        made.finish("jsonl", "csv", "parquet")

    assert {name: (made.out / name).read_bytes() for name in formats.NAMES.values()} == before


def test_the_same_run_writes_the_same_bytes_again(made: Made):
    made.shard({i: [i] for i in "abc"}, [answer("c"), answer("a"), failure("b")])
    made.finish("md", "jsonl", "csv")
    names = ["results.jsonl", "results.csv", "errors.jsonl", ".batchyard/audit.jsonl"]
    before = [(made.out / name).read_bytes() for name in names]
    made.finish()

    assert [(made.out / name).read_bytes() for name in names] == before


def test_a_finished_run_writes_only_what_of_its_files_is_not_there(made: Made):
    made.shard({"a": ["a"]}, [answer("a")])
    first = made.finish("jsonl")
    state = dataclasses.replace(made.state(), finished_us=2)
    (made.out / "results.jsonl").write_text("left alone")

    assert receipt.refreshed(made.files, state) == first
    assert (made.out / "results.jsonl").read_text() == "left alone"
    more = dataclasses.replace(state, saving=journal.Saving(formats=("jsonl", "csv")))
    receipt.refreshed(made.files, more)
    assert (made.out / "results.csv").exists()
    assert made.rows()[0]["key"] == "a"


def test_another_format_writes_the_files_that_are_not_there(made: Made):
    made.saving = journal.Saving(formats=("jsonl",))
    made.shard({"a": ["a"]}, [answer("a")])
    (made.out / "a.md").unlink()
    made.finish("jsonl")
    assert not (made.out / "a.md").exists()

    made.finish("md")
    assert (made.out / "a.md").read_text() == "fine\n"


@pytest.mark.parametrize(
    ("given", "has_schema", "says"),
    [
        (["xml"], False, "md, json, jsonl, csv, parquet"),
        (["md", "json"], True, "both one file for each document"),
        (["json"], False, "needs --schema"),
    ],
)
def test_formats_that_do_not_fit_are_refused(given: list[str], has_schema: bool, says: str):
    with pytest.raises(InputError, match=says):
        formats.checked(given, has_schema=has_schema)


def test_parquet_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    with pytest.raises(InputError, match=r"pip install 'batchyard\[data\]'"):
        formats.checked(["parquet"], has_schema=False)


def test_the_audit_record_has_hashes_ids_and_usage_of_every_try_and_no_text(made: Made):
    made.shard({"a": ["a", "twin"], "b": ["b"]}, [answer("a", "SECRET"), failure("b")])
    made.shard({"b1": ["b"]}, [answer("b1")], round=1, why="retry")
    made.finish()

    records = lines(made.files.state / "audit.jsonl")
    assert [(r["key"], r["custom_id"], r["round"], r["class"]) for r in records] == [
        ("a", "a", 0, "succeeded"), ("twin", "a", 0, "succeeded"), ("b", "b", 0, "retryable"),
        ("b", "b1", 1, "succeeded"),
    ]  # fmt: skip
    sent = json.loads(made.files.requests(0).read_bytes())["requests"][0]["params"]
    assert records[0]["params_sha256"] == hashlib.sha256(json.dumps(sent).encode()).hexdigest()
    assert records[0]["input_sha256"] == "sha of a"
    assert records[0]["params"]["max_tokens"] == 9
    assert list(records[0]["params"]["tools"]) == ["sha256"]
    assert records[0]["usage"] == {"input_tokens": 2, "output_tokens": 4}
    assert (records[0]["message_id"], records[0]["batch"]) == ("msg_a", "msgbatch_0")
    assert [r["cost_micros"] for r in records] == [55, 0, 0, 55]
    assert records[2]["request_id"] == "req_9"
    assert records[1]["same_as"] == "a"
    assert "SECRET" not in (made.files.state / "audit.jsonl").read_text()
    assert records[0]["prices"].startswith("2026-")


def test_the_audit_record_goes_where_it_is_asked_for(made: Made, tmp_path: Path):
    made.shard({"a": ["a"]}, [answer("a")])
    made.saving = journal.Saving(audit=str(tmp_path / "audit.jsonl"))
    made.finish()

    assert len(lines(tmp_path / "audit.jsonl")) == 1
    assert not (made.files.state / "audit.jsonl").exists()


def test_a_template_names_reports_by_the_fields_of_their_documents():
    documents = [
        Document("sub/a.txt", {"text": "x"}, "0", "sub/a.txt"),
        document("7", id="7", lang="de"),
    ]

    assert names_by("{{ key }}.md", documents) == ["sub/a.txt.md", "7.md"]
    assert names_by("by/{{ stem }}-{{ name }}.md", documents) == ["by/a-a.txt.md", "by/7-7.md"]
    assert names_by("{{ lang }}/{{ id }}.md", documents[1:]) == ["de/7.md"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '../../' + key }}", "__/__/a"), ("{{ '/etc/' + key }}", "etc/a"),
        (".batchyard/x", "_.batchyard/x"),
        ("a\x00b\n{{ key }}", "a_b_a"), ("./{{ key }}//x", "a/x"),
    ],
)  # fmt: skip
def test_no_name_of_a_template_leaves_the_folder_or_holds_what_no_name_may(
    template: str, name: str
):
    assert names_by(template, [document("a")]) == [name]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ missing }}.md", "'missing' is undefined"),
        ("{{ key", "unexpected end of template"),
        ("../../{{ key }}", "names are below the output folder"),
        ("/etc/{{ key }}", "names are below the output folder"),
        ("same.md", "a and B would both be same.md"),
        ("{{ key|lower if key == 'B' else 'b' }}", "a and B would both be b"),
        ("receipt.json", "a file of the run"),
        ("RESULTS.csv", "a file of the run"),
        ("{{ '' }}", "would be called nothing"),
        ("{{ 'x' if key == 'a' else 'x/y' }}", "x would be a report and a folder"),
        ("{{ key.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_sent(template: str, says: str):
    with pytest.raises(InputError, match=r"--name") as caught:
        names_by(template, [document("a"), document("B")])

    assert says in caught.value.message
