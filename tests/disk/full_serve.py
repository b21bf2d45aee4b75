"""The command line on a disk that a test can fill, without mounting anything.

    python full_serve.py <switch> '{"limits:DISK_FULL_WAIT_S": 0.05}' serve …

While the file `switch` exists, what the server itself writes to a file meets `ENOSPC`, as on a disk
without a free byte: results, requests, manifests, spooled bodies. What the ledger writes is not
Python's: the test lets those system calls fail.
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
real_write = os.write


def refuse(descriptor: int) -> None:
    """Refuse to write to a file on the full disk."""
    if SWITCH.exists() and stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write(descriptor: int, data: Buffer) -> int:
    refuse(descriptor)
    return real_write(descriptor, data)


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
tempfile.TemporaryFile = temporary_file
runpy.run_path(str(Path(__file__).parents[1] / "helpers_serve.py"), run_name="__main__")
