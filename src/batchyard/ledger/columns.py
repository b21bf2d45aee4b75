"""Between the rows of a ledger and our values. Pure; knows columns, not databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard import wire
from batchyard.fairness import PRIORITIES
from batchyard.ledger import Rest
from batchyard.model import Batch, Counts, Extent, Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = Mapping[str, Any]


def read_batch(row: Row) -> Batch:
    """Return the batch of a row."""
    return Batch(
        id=row["id"],
        workspace=row["workspace"],
        requests=row["requests"],
        version=row["version"],
        betas=read_betas(row["betas"]),
        user_profile=row["user_profile"],
        billing=row["billing"],
        priority=PRIORITIES[row["priority"]],
        created_us=row["created_us"],
        expires_us=row["expires_us"],
        cancel_us=row["cancel_us"],
        ended_us=row["ended_us"],
        archived_us=row["archived_us"],
        counts=read_counts(row),
        tokens=load_tokens(row["tokens"]),
    )


def read_betas(text: str) -> tuple[str, ...]:
    """Return the beta values of a column."""
    return tuple(text.split(",")) if text else ()


def read_counts(row: Row) -> Counts:
    """Return the four counts of a row."""
    return Counts(row["succeeded"], row["errored"], row["canceled"], row["expired"])


def read_rest(row: Row) -> Rest:
    """Return what is left of a batch in a pool."""
    return Rest(row["inflight"], row["unsent"], row["queued"])


def bind_counts(counts: Counts | None) -> dict[str, int | None]:
    """Return the counts as parameters; None for counts that are not told."""
    if counts is None:
        return dict.fromkeys(("succeeded", "errored", "canceled", "expired"))
    return {
        "succeeded": counts.succeeded,
        "errored": counts.errored,
        "canceled": counts.canceled,
        "expired": counts.expired,
    }


def dump_extents(extents: Sequence[Extent]) -> str:
    """Write extents for a column."""
    return wire.encode(
        [[extent.segment, extent.length, extent.blocks] for extent in extents]
    ).decode()


def load_extents(text: str) -> tuple[Extent, ...]:
    """Read extents back."""
    return tuple(
        # Two values only: written before there were checksums.
        Extent(segment, length, tuple(blocks[0]) if blocks else ())
        for segment, length, *blocks in wire.decode(text)
    )


def dump_tokens(tokens: Tokens) -> str:
    """Write token sums for a column."""
    return wire.encode(
        [tokens.input, tokens.output, tokens.cache_write, tokens.cache_read]
    ).decode()


def load_tokens(text: str) -> Tokens:
    """Read token sums back."""
    return Tokens(*wire.decode(text))
