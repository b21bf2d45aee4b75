"""Run a Python script on a machine whose wall clock can be set.

    python set_clock.py offset-file script.py …

The wall clock of this one process is what the file says off that of the machine, in seconds, at
every moment; its monotonic clock and all its waits are those of the machine. That is what a process
sees when somebody sets the clock. Nothing but the interpreter is needed; a library that is loaded
before the C library (libfaketime) moves the waits as well.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

_, file, script, *rest = sys.argv
_offset = Path(file)
_real_ns = time.time_ns


def _time_ns() -> int:
    return _real_ns() + int(_offset.read_text()) * 1_000_000_000


time.time_ns = _time_ns
time.time = lambda: _time_ns() / 1e9
sys.argv = [script, *rest]
sys.path[0] = str(Path(script).parent)
runpy.run_path(script, run_name="__main__")
