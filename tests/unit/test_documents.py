"""Sources to documents."""

import datetime
import enum
import io
import json
import math
import shlex
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from batchyard import limits
from batchyard.client.inputs.documents import Sources, files
from batchyard.client.inputs.kept import Rows
from batchyard.client.planning import spool
from batchyard.client.problems import InputError


def write(root: Path, **contents: str | bytes) -> None:
    for name, content in contents.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def keys(sources: Sources, **options) -> list[str]:
    return [document.key for document in sources.read(**options)]


def test_a_folder_gives_its_text_files_in_a_fixed_order(tmp_path: Path):
    write(tmp_path, b_md="b", a_txt="a", sub__c_rst="c", x_bin="x", _hidden_md="h")

    assert keys(files(tmp_path)) == ["a.txt", "b.md", "sub/c.rst"]


def test_a_glob_reaches_into_subfolders(tmp_path: Path):
    write(tmp_path, a_md="a", sub__deep__b_md="b", sub__c_txt="c")

    assert keys(files(f"{tmp_path}/**/*.md")) == ["a.md", "sub/deep/b.md"]


def test_keys_are_relative_to_the_common_root_of_all_sources(tmp_path: Path):
    write(tmp_path, one__README_md="1", two__README_md="2")

    found = files(tmp_path / "one" / "README.md", tmp_path / "two")

    assert keys(found) == ["one/README.md", "two/README.md"]


def test_a_file_named_twice_is_one_document(tmp_path: Path):
    write(tmp_path, a_md="a")

    assert keys(files(tmp_path, tmp_path / "a.md")) == ["a.md"]


def test_the_fields_of_a_file_are_text_path_and_name(tmp_path: Path):
    write(tmp_path, sub__a_md=b"\xef\xbb\xbfgr\xc3\xbc\xc3\x9fe\r\n")

    document = files(tmp_path).read()[0]

    assert document.fields == {"text": "grüße\r\n", "path": "sub/a.md", "name": "a"}


def test_bytes_that_are_not_utf8_are_named_with_their_offset(tmp_path: Path):
    write(tmp_path, a_md=b"\xef\xbb\xbfab\xffc")

    with pytest.raises(InputError, match=r"a\.md is not UTF-8: byte 5 is 0xff"):
        files(tmp_path).read()


def test_the_output_folder_is_no_input(tmp_path: Path):
    write(tmp_path, a_md="a", reports__a_md="r")

    assert keys(files(tmp_path), outside=tmp_path / "reports") == ["a.md"]


@pytest.mark.parametrize("pattern", ["nothing.md", "*.nothing", "empty"])
def test_a_source_that_gives_nothing_is_an_error(tmp_path: Path, pattern: str):
    (tmp_path / "empty").mkdir()

    with pytest.raises(InputError, match=pattern.replace("*", r"\*").replace(".", r"\.")):
        files(tmp_path / pattern).read()


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_is(tmp_path: Path):
    (tmp_path / "a[1].md").write_text("x")

    assert keys(files(tmp_path / "a[1].md")) == ["a[1].md"]


def test_rows_of_jsonl_are_documents_with_their_fields(tmp_path: Path):
    write(tmp_path, rows_jsonl='{"id":"x","text":"t","n":1}\n\n{"id":7,"text":"u"}\n')

    x, seven = files(tmp_path / "rows.jsonl").read()

    assert (x.key, seven.key) == ("x", "7"), "as they stand"
    assert x.fields["text"] == "t"
    assert x.fields["n"] == 1
    assert x.is_row


def test_rows_of_csv_are_documents_under_the_names_of_the_header(tmp_path: Path):
    write(tmp_path, rows_csv='name,body\na,"one\ntwo"\nb,three\n')

    a, b = files(tmp_path / "rows.csv", id="name").read()

    assert (a.key, a.fields["body"]) == ("a", "one\ntwo")
    assert (b.key, b.fields["body"]) == ("b", "three")


def test_rows_without_an_id_are_numbered(tmp_path: Path):
    write(tmp_path, rows_csv="body\nx\ny\n")

    assert keys(files(tmp_path / "rows.csv")) == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", '{"key":"a"}\n{oops\n', r"r\.jsonl:2: not JSON"),
        ("r.jsonl", "[1]\n", r"r\.jsonl:1: a row is a JSON object"),
        ("r.csv", "a,b\n1\n", r"r\.csv:2: 1 fields, but the header names 2 columns"),
        ("r.csv", "a,a\n1,2\n", r"r\.csv:1: a column name stands twice"),
        ("r.csv", "", r"r\.csv:1: the first line has to name the columns"),
        ("r.csv", "a\nx\n", r"r\.csv:2: the row has no field key; it has a"),
        ("r.jsonl", '{"key":null}\n', r"r\.jsonl:1: field key is None"),
        ("r.jsonl", '{"key":"x"}\n{"key":"x"}\n', r"two documents have the key x: .*:1 and .*:2"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)

    with pytest.raises(InputError, match=message):
        files(tmp_path / name, id="key").read()


def test_the_hash_of_a_document_depends_on_its_content_only(tmp_path: Path):
    write(tmp_path, a_md="same")
    before = files(tmp_path).read()[0].sha256
    (tmp_path / "a.md").touch()

    assert files(tmp_path).read()[0].sha256 == before
    write(tmp_path, a_md="other")
    assert files(tmp_path).read()[0].sha256 != before


def test_a_pdf_or_image_is_a_document_without_text(tmp_path: Path):
    write(tmp_path, sub__a_pdf=b"%PDF-1.7\nx")

    document = files(f"{tmp_path}/**/*.pdf").read()[0]

    assert document.key == "sub/a.pdf"
    assert document.fields == {"text": "", "path": "sub/a.pdf", "name": "a"}
    assert document.media is not None
    before = document.sha256
    write(tmp_path, sub__a_pdf=b"%PDF-1.7\ny")
    assert files(f"{tmp_path}/**/*.pdf").read()[0].sha256 != before


@pytest.mark.parametrize("folder", ["docs", "größe [1] it's", "x" * 200])
def test_a_folder_without_text_says_how_to_name_what_it_holds(tmp_path: Path, folder: str):
    path = tmp_path / folder / "a.pdf"
    path.parent.mkdir()
    path.write_bytes(b"%PDF-1.7\nx")

    with pytest.raises(InputError, match="matches no document; the first file") as caught:
        files(path.parent).read()

    words = shlex.split(str(caught.value).partition(", which ")[2])
    assert words[1:] == ["would", "name"]
    (document,) = files(words[0]).read()
    assert document.fields["name"] == "a"


def test_a_folder_without_documents_says_why(tmp_path: Path):
    def said(out: Path | None = None) -> str:
        with pytest.raises(InputError) as caught:
            files(tmp_path).read(outside=out)
        return caught.value.message.removeprefix(f"{tmp_path} matches no document")

    (tmp_path / "empty").mkdir()
    write(tmp_path, _hidden="x")
    assert said() == said(tmp_path / "out") == ": the folder is empty, hidden files aside"
    write(tmp_path, a_log="x")
    assert "a.log; of a folder those count that end in .adoc, " in said()
    other = f" outside the output folder: name another --out than {tmp_path}"
    assert said(tmp_path) == other
    write(tmp_path, b_md="x")
    assert said(tmp_path) == other


def test_files_in_another_encoding_are_read_when_it_is_named(tmp_path: Path):
    write(tmp_path, a_md="grüße".encode("latin-1"), b_csv="id,text\n1,süß\n".encode("latin-1"))

    a, b = files(tmp_path / "a.md", tmp_path / "b.csv", encoding="latin-1").read()

    assert a.fields["text"] == "grüße"
    assert b.fields["text"] == "süß"
    with pytest.raises(InputError, match=r"2 files are no text; .* --encoding"):
        files(tmp_path / "a.md", tmp_path / "b.csv").read()


def test_rows_of_tsv_are_documents(tmp_path: Path):
    write(tmp_path, rows_tsv="id\tbody\nx\ta, b\n")

    document = files(tmp_path / "rows.tsv").read()[0]

    assert (document.key, document.fields["body"]) == ("x", "a, b")


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("jsonl", '{"id":"x","text":"t"}\n', [("x", "t")]),
        ("csv", "id,text\nx,t\ny,u\n", [("x", "t"), ("y", "u")]),
        ("tsv", "id\ttext\nx\tt\n", [("x", "t")]),
        ("text", "all of it\n", [("stdin", "all of it\n")]),
    ],
)
def test_standard_input_is_rows_or_one_document(
    monkeypatch: pytest.MonkeyPatch, form, text: str, expected: list[tuple[str, str]]
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    found = files("-", stdin=form).read()

    assert [(document.key, document.fields["text"]) for document in found] == expected


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ("id;price\nx;1,5\n", {"id": "x", "price": "1,5"}),
        ("id\tprice\nx\t1,5\n", {"id": "x", "price": "1,5"}),
        ("id,a;b\nx,1;2\n", {"id": "x", "a;b": "1;2"}),
        ('id\n"x, y"\n', {"id": "x, y"}),
    ],
)
def test_a_csv_file_without_a_comma_in_its_first_line_is_separated_by_what_stands_there(
    tmp_path: Path, content: str, fields: dict[str, str]
):
    (tmp_path / "r.csv").write_text(content)

    (document,) = files(tmp_path / "r.csv").read()

    assert {name: document.fields[name] for name in fields} == fields


def test_standard_input_that_is_no_json_names_the_option(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"id,text\nx,t\n")))

    with pytest.raises(InputError, match=r"standard input:1: not JSON.*--stdin csv, tsv or text"):
        files("-").read()


def test_an_error_in_standard_input_names_the_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"id":"x"}\n{oops\n')))

    with pytest.raises(InputError, match="standard input:2: not JSON"):
        files("-").read()


def test_many_documents_are_not_in_memory_and_are_what_was_read(tmp_path: Path):
    texts = {f"{number:02}.md": f"{number:02}" + "x" * limits.MIB for number in range(96)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    tracemalloc.start()
    try:
        found = files(str(tmp_path)).read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80 * limits.MIB < sum(map(len, texts.values()))
    for name in texts:
        (tmp_path / name).unlink()
    assert {document.key: document.fields["text"] for document in found} == texts


ROWS = 24


def given_rows(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """Return rows of a mebibyte each, from a file, standard input or a generator."""

    def lines() -> Iterator[str]:
        text = "x" * limits.MIB
        yield "id,text\n" if kind == "csv" else ""
        for number in range(ROWS):
            yield (
                f"{number:02},{text}\n"
                if kind == "csv"
                else json.dumps({"id": f"{number:02}", "text": text}) + "\n"
            )

    if kind == "rows":
        return Sources((), Rows(json.loads(line) for line in lines() if line))
    path = folder / f"r.{kind}"
    with path.open("w") as file:
        file.writelines(lines())
    if kind == "csv":
        return files(path)
    if kind == "jsonl":
        return files(path)
    monkeypatch.setattr("sys.stdin", path.open())
    return files("-")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "stdin", "rows"])
def test_many_rows_are_not_in_memory_and_are_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(spool, "MEMORY_BYTES_MAX", limits.MIB)
    tracemalloc.start()
    try:
        found = given_rows(kind, tmp_path, monkeypatch).read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        if kind == "stdin":
            sys.stdin.close()

    assert peak < 16 * limits.MIB < ROWS * limits.MIB
    assert [document.key for document in found] == [f"{number:02}" for number in range(ROWS)]
    assert {document.fields["text"] for document in found} == {"x" * limits.MIB}


class Kind(enum.StrEnum):
    LONG = "long"


class Named(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value", [Kind.LONG, Named("n"), (1, 2), math.inf, {1: 2}, "\ud800", [10**5_000], [{"a": (1,)}]]
)
def test_the_values_of_a_row_of_a_program_are_those_that_it_gave(value: object):
    row = {"id": "a", "text": "long " * 100, "value": value}

    (found,) = Rows([row])

    assert type(found["value"]) is type(value)
    assert found == row


def test_rows_of_a_generator_can_be_read_twice():
    sources = Sources((), Rows({"id": n, "text": "long " * 100} for n in range(3)))

    assert [document.fields["text"] for document in sources.read() + sources.read()] == [
        "long " * 100
    ] * 6


def test_the_values_of_a_row_are_what_they_were(tmp_path: Path):
    pairs = pyarrow.map_(pyarrow.string(), pyarrow.int64())
    values = {
        "when": pyarrow.array([datetime.date(2026, 11, 22)]),
        "pairs": pyarrow.array([[("one", 1), ("two", 2)]], pairs),
        "numbers": pyarrow.array([[1.0, 2.5]]),
    }
    for name, array in values.items():
        (value,) = array.to_pylist()
        table = pyarrow.table({"id": ["a"], "text": ["long " * 100], name: array})
        parquet.write_table(table, tmp_path / "t.parquet")
        (document,) = files(str(tmp_path / "t.parquet")).read()
        assert repr(document.fields[name]) == repr(value)
        assert document.fields["text"] == "long " * 100


def test_the_values_of_a_long_row_of_json_are_what_they_were(tmp_path: Path):
    row = {"id": "a", "text": "long " * 100, "of": [1, 2.0, None, True, "ü", {"big": 2**63}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    (document,) = files(str(tmp_path / "t.jsonl")).read()
    assert repr({name: document.fields[name] for name in row}) == repr(row)
