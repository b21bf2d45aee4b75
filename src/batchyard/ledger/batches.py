"""Batches: adding one, once however often its create call is repeated, and finding one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchyard import fairness, limits
from batchyard.errors import RateLimited
from batchyard.ledger import Known, columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchyard.ledger import CreateKey
    from batchyard.ledger.sql import Transaction
    from batchyard.model import Batch, ShardPlan


def add(
    t: Transaction,
    batch: Batch,
    shards: Sequence[ShardPlan],
    key: CreateKey,
    queued_max: int | None,
) -> Known | None:
    """Add a batch with its shards, or return the one that its key has made; see the protocol."""
    if t.again and get(t, batch.workspace, batch.id) is not None:
        return None
    put = {
        "workspace": batch.workspace,
        "key": key.key,
        "digest": key.digest,
        "until_us": key.until_us,
        "now": batch.created_us,
        "batch": batch.id,
        "replaces": int(key.replaces),
    }
    while not t.change("create_put", put):
        found = known(t, batch.workspace, key.key, batch.created_us)
        if found is not None:
            return found
    if queued_max is not None:
        _check_queue(t, batch, queued_max)
    row = t.one("batch_insert", _batch_row(batch))
    if row is not None:  # else an earlier run has been committed after all
        t.each("shard_insert", list(_shard_rows(batch, shards, row["seq"])))
    return None


def known(t: Transaction, workspace: str, key: str, now_us: int) -> Known | None:
    """Return the live create call under `key`."""
    row = t.one("create_find", {"workspace": workspace, "key": key, "now": now_us})
    if row is None:
        return None
    batch = get(t, workspace, row["batch"])
    return None if batch is None else Known(batch=batch, digest=row["digest"])


def get(t: Transaction, workspace: str, batch_id: str) -> Batch | None:
    """Return a batch of a workspace."""
    row = t.one("batch_get", {"id": batch_id, "workspace": workspace})
    return None if row is None else columns.read_batch(row)


def _batch_row(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "workspace": batch.workspace,
        "requests": batch.requests,
        "version": batch.version,
        "betas": ",".join(batch.betas),
        "user_profile": batch.user_profile,
        "billing": batch.billing,
        "priority": fairness.PRIORITIES.index(batch.priority),
        "created_us": batch.created_us,
        "expires_us": batch.expires_us,
    }


def _shard_rows(batch: Batch, shards: Sequence[ShardPlan], seq: int) -> Iterator[dict[str, Any]]:
    heads = {shard.pool: shard.index for shard in reversed(shards)}
    for shard in shards:
        yield {
            "batch": batch.id,
            "idx": shard.index,
            "seq": seq,
            "workspace": batch.workspace,
            "pool": shard.pool,
            "off": shard.offset,
            "len": shard.length,
            "crc": shard.crc,
            "n": shard.requests,
            "priority": fairness.PRIORITIES.index(batch.priority),
            "head": int(heads[shard.pool] == shard.index),
        }


def _check_queue(t: Transaction, batch: Batch, queued_max: int) -> None:
    row = t.one("queued", {"workspace": batch.workspace})
    assert row is not None  # it is a sum
    queued = row["requests"]
    if queued + batch.requests <= queued_max:
        return
    fits_never = batch.requests > queued_max
    raise RateLimited(
        "This request would exceed your organization's limit on batch requests in the processing "
        f"queue: {queued} of {queued_max} are taken, and this batch has {batch.requests}",
        retry_after_s=None if fits_never else limits.QUEUE_FULL_RETRY_AFTER_S,
        should_retry=False if fits_never else None,
    )
