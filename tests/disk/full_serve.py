"""The command line on a disk that a test can fill, without mounting anything.

    python full_serve.py <switch> '{"limits:DISK_FULL_WAIT_S": 0.05}' serve …

While the file `switch` exists, what the server itself writes to a file meets `ENOSPC`, as on a disk
without a free byte: results, requests, manifests, spooled bodies. What the ledger writes is not
Python's: the test lets those system calls fail. While `switch` with the ending `.marks` exists,
there is room for the mark of a failed sync, or the note of one of the ledger, only when the ballast
has been given up.
"""

from __future__ import annotations

import errno
import io
import os
import runpy
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Buffer

SWITCH = Path(sys.argv.pop(1))
MARKS, BALLAST = SWITCH.with_suffix(".marks"), SWITCH.with_name("data") / "ballast"
NOTES = ("/sync-failed", "/ledger.failed")
real_write, real_open = os.write, os.open


def refuse(descriptor: int) -> None:
    """Refuse to write to a file on the full disk."""
    if SWITCH.exists() and stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write(descriptor: int, data: Buffer) -> int:
    refuse(descriptor)
    return real_write(descriptor, data)


def opened(path: Any, *args: Any, **options: Any) -> int:
    if str(path).endswith(NOTES) and MARKS.exists() and BALLAST.exists():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real_open(path, *args, **options)


class Spooled(io.FileIO):
    def write(self, data: Buffer) -> int:
        refuse(self.fileno())
        return super().write(data)


def temporary_file(*, dir: Path, buffering: int) -> Any:  # noqa: A002 - as the library has it
    descriptor, name = tempfile.mkstemp(dir=dir)
    Path(name).unlink()
    spooled = Spooled(descriptor, "r+")
    return io.BufferedRandom(spooled, buffering) if buffering else spooled


os.write = write  # type: ignore[assignment]
os.open = opened
tempfile.TemporaryFile = temporary_file
runpy.run_path(str(Path(__file__).parents[1] / "helpers_serve.py"), run_name="__main__")
