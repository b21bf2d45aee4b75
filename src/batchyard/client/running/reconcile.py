"""Decide whether a create call whose answer was lost has made a batch. Pure.

The server shows no ids of requests while a batch runs, so a batch is recognised by when it was
created and by how many requests it has, and confirmed later by its results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from batchyard import limits

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from batchyard.client.answers import Batch

# The `Date` header has whole seconds and is read some time after it was written.
SKEW_TOLERANCE_US = 3 * limits.SECOND_US


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the list says: adopt `batch`, resend, look again, or find out which of `several`."""

    action: Literal["adopt", "resend", "wait", "several"]
    batch: Batch | None = None
    several: tuple[Batch, ...] = ()


def judge(
    batches: Sequence[Batch],
    *,
    requests: int,
    known: Collection[str],
    sent_us: int,
    sent_until_us: int,
    skew_us: int,
    is_final: bool,
) -> Verdict:
    """Judge one look at the list.

    Args:
        batches: all batches that may be as young as the call.
        requests: of the shard.
        known: batch ids that cannot be of this call.
        sent_us: our time just before the call.
        sent_until_us: our time after which no server can have accepted it any more, late as a
            proxy may have passed it on.
        skew_us: the server's clock minus ours.
        is_final: whether a batch that exists must be listed by now.
    """
    earliest = sent_us + skew_us - SKEW_TOLERANCE_US
    latest = sent_until_us + skew_us + SKEW_TOLERANCE_US
    fitting = [
        batch
        for batch in batches
        if batch.id not in known
        and batch.request_counts.total == requests
        and earliest <= batch.created_us <= latest
    ]
    if len(fitting) == 1:
        return Verdict("adopt", fitting[0])
    if fitting:
        fitting.reverse()  # the list has the newest first, and so the newest of one moment
        return Verdict("several", several=tuple(sorted(fitting, key=lambda b: b.created_us)))
    return Verdict("resend" if is_final else "wait")


def is_older(batch: Batch, *, sent_us: int, skew_us: int) -> bool:
    """Whether this batch, and so all after it in the list, is older than the call."""
    return batch.created_us < sent_us + skew_us - SKEW_TOLERANCE_US
