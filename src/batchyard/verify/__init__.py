"""The offline check of a yard's data directory: is what it promises true of what is on disk?

It reads the files by itself and asks no running code, so that a fault of the yard cannot hide
itself: the SQL and the record parser here are its own. Shared are the values, the limits, the
names of segments and the rules of a result line.

Invariant: nothing below the directory is written, made or removed, but by `giving_up`, which is
asked for. Damaged bytes are findings, never exceptions.
"""

from __future__ import annotations

from batchyard.verify.findings import Finding, Rule, Summary
from batchyard.verify.giving_up import give_up
from batchyard.verify.giving_up_shared import give_up_shared
from batchyard.verify.run import check

__all__ = ["Finding", "Rule", "Summary", "check", "give_up", "give_up_shared"]
