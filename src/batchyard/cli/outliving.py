"""Output whose reader leaves, as `head` does: a run that is paid for goes on without it.

Commands that only show something end with their reader, as programs in a pipe do.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from batchyard.cli import render

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Outliving:
    """A stream that becomes deaf when nobody reads it any more; otherwise the one inside."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._be_deaf()
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what is buffered."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._be_deaf()

    def _be_deaf(self) -> None:
        # The descriptor leads nowhere from now on, so that what is buffered has somewhere to go.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._stream.fileno() != sys.stderr.fileno():
            render.aside("nobody reads the output any more; the run goes on without it")


@contextmanager
def outliving() -> Iterator[None]:
    """Let standard output and standard error outlive their readers."""
    out, error = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Outliving(out), _Outliving(error)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = out, error
