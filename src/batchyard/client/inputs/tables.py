"""Rows from elsewhere: Parquet files, databases, and the tables of data libraries.

Objects are known by what they can do, never by their type, so that no data library is imported for
them. Files and databases need the extra `batchyard[data]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from batchyard.client.inputs.texts import read_text
from batchyard.client.problems import InputError
from batchyard.errors import shown

SQL = "sql:"
_EXTRA = "needs the extra: pip install 'batchyard[data]'"
_EXAMPLE = "'sql:sqlite:///notes.db SELECT id, text FROM notes'"
_GROUP_ROWS = 1_000


def rows_of(table: object) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as mappings from column to value.

    Args:
        table: an iterable of mappings (lists, generators, the datasets of Hugging Face), a data
            frame of pandas or polars, a table, batch or reader of Arrow, or anything that exports
            an Arrow stream.

    Raises:
        InputError: it is none of these, or a row is no mapping.
    """
    number = 0
    for number, row in enumerate(_rows(table), 1):
        if not isinstance(row, Mapping):
            raise InputError(
                f"row {number} is a {type(row).__name__}; a row is a mapping from name to value"
            )
        yield {str(name): _plain(value) for name, value in row.items()}


def _rows(table: Any) -> Iterable[Any]:
    if isinstance(table, Mapping) and table and not any(map(_is_scalar, table.values())):
        # Hugging Face gives the parts of a dataset in a mapping; so do readers of several sheets.
        part = shown(next(iter(table)))
        raise InputError(
            f"rows is a {type(table).__name__} of {', '.join(map(shown, table))}; it is one of "
            f"them, such as that of {part}"
        )
    if isinstance(table, (str, bytes, Mapping)):
        raise InputError(f"rows is a {type(table).__name__}; it is a table or a list of mappings")
    if callable(getattr(table, "iter_rows", None)):  # polars
        named: Iterable[Any] = table.iter_rows(named=True)
        return named
    if callable(getattr(table, "to_pylist", None)):  # an Arrow table or record batch
        return _arrow_rows(table)
    if callable(getattr(table, "itertuples", None)):  # pandas
        return _pandas_rows(table)
    if isinstance(table, Iterable) and not hasattr(table, "__arrow_c_stream__"):
        return table
    if hasattr(table, "__arrow_c_stream__"):
        reader = _pyarrow(f"a {type(table).__name__}").RecordBatchReader.from_stream(table)
        return (row for batch in reader for row in batch.to_pylist())
    if callable(getattr(table, "collect", None)):  # a lazy frame of polars
        return _rows(table.collect())
    raise InputError(f"rows is a {type(table).__name__}; it is a table or a list of mappings")


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, (str, bytes, int, float))


def _arrow_rows(table: Any) -> Iterator[Any]:
    batches = table.to_batches(_GROUP_ROWS) if hasattr(table, "to_batches") else [table]
    for batch in batches:
        yield from batch.to_pylist()


def _pandas_rows(frame: Any) -> Iterator[Any]:
    names = [str(name) for name in frame.columns]
    for values in frame.itertuples(index=False, name=None):
        yield dict(zip(names, values, strict=True))


def _plain(value: Any) -> Any:
    """Return a value that JSON has: scalars of numpy as Python's, and nothing for a missing one."""
    if callable(getattr(value, "item", None)) and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # pandas has missing values of its own, which equal nothing, not even themselves.
    if type(value).__name__ in {"NAType", "NaTType"}:
        return None
    return value


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the fields of each row of a Parquet file, a group at a time.

    Raises:
        InputError: it cannot be read, or the extra is not installed.
    """
    pyarrow = _pyarrow(str(path))
    from pyarrow import parquet  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: PLC0415

    try:
        with parquet.ParquetFile(path) as file:
            groups = file.iter_batches(batch_size=_GROUP_ROWS)
            for number, row in enumerate((row for group in groups for row in group.to_pylist()), 1):
                yield number, {name: _plain(value) for name, value in row.items()}
    except (OSError, pyarrow.ArrowException) as error:
        text = str(error).split("\n", 1)[0]
        raise InputError(f"{path} cannot be read as Parquet: {text}") from None


def read_sql(source: str) -> tuple[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Prepare a query and return its database, without password, and its numbered rows.

    Args:
        source: `sql:URL QUERY`, or `sql:URL @FILE` with the query in a file; the URL is one of
            SQLAlchemy, such as `sqlite:///notes.db` or `postgresql+psycopg://host/db`.

    Raises:
        InputError: it is not such a text, or the extra is not installed; while iterating: the
            database refuses.
    """
    url, _, query = source.removeprefix(SQL).strip().partition(" ")
    query = query.strip()
    if not url or not query:
        # The URL may hold a password, so the source is not shown.
        raise InputError(
            f"a source sql: is not usable; sql:URL QUERY is allowed, such as {_EXAMPLE}"
        )
    if query.startswith("@"):
        query = read_text(Path(query[1:]))
    try:
        import sqlalchemy  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: PLC0415
    except ImportError:
        raise InputError(f"a source sql: {_EXTRA}") from None
    try:
        parsed = sqlalchemy.make_url(url)
        try:
            engine = sqlalchemy.create_engine(parsed, poolclass=sqlalchemy.NullPool)
        except ImportError as error:
            raise InputError(_driver_hint(parsed, error)) from None
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        # The text of the URL may hold a password.
        raise InputError(f"the URL of a source sql: is not usable: {_first_line(error)}") from None
    where = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise InputError(f"{where}: the file does not exist")  # or it would be made, empty

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with engine.connect().execution_options(stream_results=True) as connection:
                result = connection.execute(sqlalchemy.text(query))
                names = list(result.keys())
                if len(set(names)) != len(names):
                    raise InputError(f"{where}: two columns of the query have one name")
                for number, values in enumerate(result, 1):
                    yield number, {n: _plain(v) for n, v in zip(names, values, strict=True)}
        except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            raise InputError(f"{where}: the query failed: {_first_line(error)}") from None
        finally:
            engine.dispose()

    return where, rows()


def _driver_hint(url: Any, error: ImportError) -> str:
    """Say which package reads a database; the URL may hold a password and is not shown."""
    if url.get_backend_name() == "postgresql":
        what = "begin the URL with postgresql+psycopg:// and pip install 'batchyard[postgres]'"
    else:
        what = f"pip install {error.name}" if error.name else _first_line(error)
    return f"a source sql: of {url.drivername} needs a driver that is not installed: {what}"


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: PLC0415
    except ImportError:
        raise InputError(f"{what} {_EXTRA}") from None
    return pyarrow


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
