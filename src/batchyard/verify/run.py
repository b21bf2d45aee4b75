"""One check of one data directory, from the ledger to the last file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.errors import ConfigError, StoreError, shown
from batchyard.verify import ledger, reading, rows
from batchyard.verify.batch import BatchCheck
from batchyard.verify.files import Tree
from batchyard.verify.findings import Finding, Reporter, Rule, Summary
from batchyard.verify.ledger import LedgerFile, State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batchyard.verify.rows import BatchRow


def check(data: Path, tell: Callable[[Finding], None]) -> Summary:
    """Check a data directory that no yard works on. Blocks; writes nothing below `data`.

    Args:
        data: the directory.
        tell: told each finding when it is found.

    Raises:
        DataDirectoryInUse: a yard works on it.
        ConfigError: it is no data directory, or cannot be read.
    """
    report = Reporter(tell)
    tree = Tree(data, report)
    try:
        if not data.is_dir():
            raise ConfigError(f"{data} is not a directory")
        if not tree.is_yard:
            raise ConfigError(f"{data} is not the data directory of a yard")
    except OSError as error:
        raise ConfigError(f"cannot read {data}: {error.strerror}") from None
    with reading.held(data):
        try:
            tree.check_top()
            with ledger.opened(data, report) as opened:
                if isinstance(opened, LedgerFile):
                    _check_all(tree, opened, report)
                elif opened is State.EMPTY:
                    _check_abandoned(tree, report)
        except StoreError as error:
            raise ConfigError(error.message) from None
    report.close()
    return report.summary


def _check_all(tree: Tree, file: LedgerFile, report: Reporter) -> None:
    needed = dict.fromkeys(file.ids(), True)
    creates = list(file.creates())
    created: dict[str, BatchRow | None] = {create.batch: None for create in creates}
    for row in file.batches():
        _check_batch(tree, file, row, report)
        needed[row.id] = row.archived_us is None
        if row.id in created:
            created[row.id] = row
        report.close(row.id)
    for batch, shards in file.orphans():
        report.add(Rule.SHARD_ORPHAN, f"{shards} shards of a batch that is not there", batch=batch)
    for create in creates:
        of_batch = created[create.batch]
        if create.batch not in needed:
            text = f"{shown(create.key)} is of a batch that is not there"
            report.add(Rule.CREATE_BATCH, text, batch=create.batch)
        elif of_batch is not None:
            for rule, text in rows.create_problems(create, of_batch):
                report.add(rule, text, batch=create.batch)
    if file.is_whole:  # else what lies there may well be needed
        tree.check_spread(needed)
    for batch in needed:
        report.close(batch)


def _check_batch(tree: Tree, file: LedgerFile, row: BatchRow, report: Reporter) -> None:
    report.summary.batches += 1
    for rule, text in rows.batch_problems(row):
        report.add(rule, text, batch=row.id)
    shards = file.shards(row.id)
    if not rows.is_batch_id(row.id):
        report.add(Rule.BATCH_ROW, f"{shown(row.id)} is no id of ours", batch=row.id)
    elif row.archived_us is not None:
        if shards:
            text = f"it is archived, and {len(shards)} shards are left"
            report.add(Rule.BATCH_STATE, text, batch=row.id)
    elif row.is_open:
        checked = BatchCheck(tree.root, row, tree.batch(row.id), report)
        checked.open(shards)
        if checked.is_lost:
            report.summary.lost.append(row.id)
        elif checked.is_redone:
            report.summary.redone.append(row.id)
    else:
        BatchCheck(tree.root, row, tree.batch(row.id), report).ended(shards)


def _check_abandoned(tree: Tree, report: Reporter) -> None:
    """Look at segments whose ledger says nothing."""
    found = list(tree.root.glob("??/*/requests"))
    if found:
        report.add(
            Rule.LEDGER_MISSING,
            f"the requests of {len(found)} batches are there and the ledger knows none of them: "
            "the next start would remove them",
            segment=ledger.FILE,
        )
