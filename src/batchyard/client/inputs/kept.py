"""Fields of documents that wait in a file without a name, where they are long."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from batchyard import limits
from batchyard.client.planning.spool import Spool, Spooled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SHORT_BYTES = 256  # fields that are not worth a place in a file


def kept(fields: Mapping[str, Any], spool: Spool) -> Mapping[str, Any] | Spooled:
    """Return the fields, or where they are kept: only if they are read as they were."""
    if not _is_plain(fields):  # a template is to see what a date, a pair or an object of theirs is
        return fields
    try:
        data = json.dumps(fields, ensure_ascii=False).encode()
    except ValueError:  # half of a surrogate pair, or a number of thousands of digits
        return fields
    return fields if len(data) <= _SHORT_BYTES else spool.add(data)


def read(fields: Mapping[str, Any] | Spooled) -> Mapping[str, Any]:
    """Return fields that `kept` gave."""
    if isinstance(fields, Spooled):
        found: dict[str, Any] = json.loads(bytes(fields))
        return found
    return fields


class Rows:
    """Rows of a program, taken as they come: to be iterated over as often as one likes."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        spool = Spool(limits.MIB)
        self._rows = [kept(row, spool) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return map(read, self._rows)


def _is_plain(value: object) -> bool:
    """Whether JSON has exactly this value; of a class that inherits from one of JSON's, it is not.

    Source: RFC 8259.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is int:
        return True
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type] # a float
    if isinstance(value, dict) and kind is dict:
        return all(type(name) is str and _is_plain(each) for name, each in value.items())
    return isinstance(value, list) and kind is list and all(map(_is_plain, value))
