"""Tables of any make to rows."""

import contextlib
import datetime
import decimal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from batchyard.client.inputs.documents import files
from batchyard.client.inputs.tables import read_parquet, read_sql, rows_of
from batchyard.client.problems import InputError

ROWS = [{"id": "a", "n": 1}, {"id": "b", "n": 2}]


class Polars:
    """What a data frame of polars can do, as far as rows go."""

    def iter_rows(self, *, named: bool) -> Any:
        assert named
        return iter(ROWS)


class Pandas:
    """What a data frame of pandas can do."""

    columns = ("id", "n")

    def itertuples(self, *, index: bool, name: None) -> Any:
        assert not index
        assert name is None
        return iter([("a", 1), ("b", 2)])

    def __iter__(self) -> Any:
        return iter(self.columns)


class Lazy:
    """A lazy frame."""

    def collect(self) -> Polars:
        return Polars()


class Stream:
    """Anything that exports an Arrow stream."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pyarrow.Table.from_pylist(ROWS).__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "table",
    [
        ROWS,
        iter(ROWS),
        pyarrow.Table.from_pylist(ROWS),
        pyarrow.RecordBatch.from_pylist(ROWS),
        pyarrow.Table.from_pylist(ROWS).to_reader(),
        Polars(),
        Pandas(),
        Lazy(),
        Stream(),
    ],
    ids=lambda table: type(table).__name__,
)
def test_every_kind_of_table_gives_the_same_rows(table: object):
    assert list(rows_of(table)) == ROWS


class Dataset:
    """What a dataset of Hugging Face can do: it is a sequence of mappings, and no list."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return ROWS[at]

    def __iter__(self) -> Any:
        return (self[at] for at in range(len(self)))

    def to_pandas(self) -> Any:
        raise AssertionError("a dataset may be larger than memory")


class DatasetDict(dict[str, Dataset]):
    """Its parts by name."""


def test_a_dataset_is_read_row_by_row_and_one_in_parts_says_which_there_are():
    parts = DatasetDict(train=Dataset(), test=Dataset())

    assert list(rows_of(parts["train"])) == ROWS
    with pytest.raises(InputError, match="a DatasetDict of train, test; it is one of them"):
        list(rows_of(parts))


@pytest.mark.parametrize("table", ["a,b", b"x", {"a": 1}, 7, [1], ["ab"]])
def test_what_is_no_table_is_refused(table: object):
    with pytest.raises(InputError, match=r"rows is a |row 1 is a "):
        list(rows_of(table))


def test_missing_values_are_none_and_scalars_are_plain():
    class Scalar:
        shape = ()

        def item(self) -> int:
            return 7

    missing = type("NAType", (), {})()
    row = {"nan": float("nan"), "na": missing, "scalar": Scalar(), "none": None, 3: "x"}

    assert list(rows_of([row])) == [
        {"nan": None, "na": None, "scalar": 7, "none": None, "3": "x"},
    ]


def test_rows_of_parquet_are_documents_with_all_kinds_of_columns(tmp_path: Path):
    row = {
        "key": "x",
        "text": "日本",
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - as Parquet has it
        "price": decimal.Decimal("1.50"),
        "tags": ["a", "b"],
        "nested": {"deep": 1},
        "nothing": None,
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")

    document = files(tmp_path / "rows.parquet", id="key").read()[0]

    assert document.key == "x"
    assert {name: document.fields[name] for name in row} == row


def test_parquet_is_read_a_group_at_a_time(tmp_path: Path):
    table = pyarrow.Table.from_pylist([{"n": n} for n in range(2_500)])
    parquet.write_table(table, tmp_path / "rows.parquet")

    numbered = list(read_parquet(tmp_path / "rows.parquet"))

    assert [(number, row["n"]) for number, row in numbered] == [(n + 1, n) for n in range(2_500)]


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path):
    (tmp_path / "rows.parquet").write_bytes(b"no")

    with pytest.raises(InputError, match=r"rows\.parquet cannot be read as Parquet"):
        list(read_parquet(tmp_path / "rows.parquet"))


def test_without_the_extra_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)

    for source in (tmp_path / "x.parquet", "sql:sqlite:///x.db SELECT 1"):
        if isinstance(source, Path):
            source.write_bytes(b"")
        with pytest.raises(InputError, match=r"pip install 'batchyard\[data\]'"):
            files(source).read()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "notes.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE notes (id INTEGER, text TEXT)")
        connection.executemany("INSERT INTO notes VALUES (?, ?)", [(1, "one"), (2, "two")])
    return path


def test_rows_of_a_query_are_documents(database: Path, tmp_path: Path):
    query = "SELECT id, text FROM notes WHERE id > 1"
    (tmp_path / "query.sql").write_text(query)

    for source in (f"sql:sqlite:///{database} {query}",
                   f"sql:sqlite:///{database} @{tmp_path}/query.sql"):  # fmt: skip
        document = files(source).read()[0]
        assert (document.key, document.fields["text"]) == ("2", "two")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path):
    with pytest.raises(InputError, match="the file does not exist"):
        files(f"sql:sqlite:///{tmp_path}/new.db SELECT 1").read()

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sql:", "sql:URL QUERY is allowed"),
        ("sql:sqlite:///x.db", "sql:URL QUERY is allowed"),
        ("sql:nonsense SELECT 1", "the URL of a source sql: is not usable"),
        ("sql:nonsense://x SELECT 1", "the URL of a source sql: is not usable"),
    ],
)
def test_a_source_that_is_no_query_is_refused(source: str, message: str):
    with pytest.raises(InputError, match=message):
        read_sql(source)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:hunter2@h/d", r"postgresql\+psycopg:// and pip install 'batchyard\[postg"),
        ("mysql+pymysql://u:hunter2@h/d", "not installed: pip install pymysql"),
    ],
)
def test_a_database_without_its_driver_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, url: str, message: str
):
    for driver in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.setitem(sys.modules, "pymysql", None)

    with pytest.raises(InputError, match=message) as caught:
        read_sql(f"sql:{url} SELECT 1")

    assert "hunter2" not in str(caught.value)


def test_a_query_that_fails_says_why(database: Path):
    with pytest.raises(InputError, match=r"the query failed: .*no such table: missing"):
        files(f"sql:sqlite:///{database} SELECT * FROM missing").read()
    with pytest.raises(InputError, match="two columns of the query have one name"):
        files(f"sql:sqlite:///{database} SELECT id, id FROM notes").read()


def test_a_password_in_a_url_is_never_shown():
    source = "sql:sqlite://user:hunter2@host/x.db SELECT 1"

    with pytest.raises(InputError) as caught:
        read_sql(source)

    assert "hunter2" not in str(caught.value)
