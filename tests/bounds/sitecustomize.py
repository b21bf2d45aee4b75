"""Other bounds and another wall clock for every process that has this directory in `PYTHONPATH`.

Python imports this module at its start. `BATCHYARD_TEST_BOUNDS` is a JSON object of `module:NAME`
and value, as for `helpers_serve.py`, which reaches one process only.

`BATCHYARD_TEST_WALL_CLOCK` names a file. The wall clock of each process is what it says off that
of the machine, in seconds, at every moment; the monotonic clock and all waits are the machine's.
That is what processes see when somebody sets the clock. Nothing but the interpreter is needed; a
library that is loaded before the C library (libfaketime) moves the waits as well.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path

for name, value in json.loads(os.environ.get("BATCHYARD_TEST_BOUNDS", "{}")).items():
    module_name, _, constant = name.partition(":")
    module = importlib.import_module(f"batchyard.{module_name}")
    assert hasattr(module, constant), name
    setattr(module, constant, value)


def _set_clock(offset: Path) -> None:
    real_ns = time.time_ns

    def time_ns() -> int:
        return real_ns() + int(offset.read_text()) * 1_000_000_000

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


if "BATCHYARD_TEST_WALL_CLOCK" in os.environ:
    _set_clock(Path(os.environ["BATCHYARD_TEST_WALL_CLOCK"]))
