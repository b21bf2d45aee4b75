"""How a command ends: exit codes, and which failure has which."""

from __future__ import annotations

import os
import traceback
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

from batchyard.cli import render
from batchyard.errors import BatchyardError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from batchyard.client.running.journal import Wait


class Exit(IntEnum):
    """The exit codes of the run."""

    ALL_SAVED = 0
    CRASH = 1
    USAGE = 2
    NEEDS_ATTENTION = 3
    BUDGET_REACHED = 4
    DETACHED = 5
    INTERRUPTED = 130


WAITING: Mapping[Wait, Exit] = {
    "budget": Exit.BUDGET_REACHED,
    "billing": Exit.NEEDS_ATTENTION,
    "pilot": Exit.NEEDS_ATTENTION,
}
"""The exit code of a run whose rest waits."""


@contextmanager
def guarded(out: Path | None = None) -> Iterator[None]:
    """Turn failures into one line for people and an exit code.

    Args:
        out: the folder of the run whose log gets the trace of a crash; without it, or when the log
            cannot be written, nothing does.

    Raises:
        SystemExit: always, when the body failed.
    """
    from batchyard.client import problems  # noqa: PLC0415 - only commands of the run need it

    try:
        yield
    except problems.Detached as error:
        render.aside(error.message)
        raise SystemExit(Exit.DETACHED) from None
    except problems.Paused as error:
        render.complain(error.message)
        raise SystemExit(WAITING[error.waits_for]) from None
    except problems.InputError as error:
        render.complain(error.message)
        raise SystemExit(Exit.USAGE) from None
    except problems.Unwritable as error:
        render.complain(error.message)
        raise SystemExit(Exit.CRASH) from None
    except BatchyardError as error:
        render.complain(error.message)
        raise SystemExit(Exit.NEEDS_ATTENTION) from None
    except KeyboardInterrupt:
        raise SystemExit(Exit.INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has left; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(Exit.CRASH) from None
    except OSError as error:
        if os.environ.get("BATCHYARD_DEBUG"):
            raise
        _keep_trace(out)
        name = error.filename if isinstance(error.filename, str | os.PathLike) else out
        render.complain(f"{name or 'the disk'} cannot be used: {error.strerror or error}")
        raise SystemExit(Exit.CRASH) from None
    except Exception as error:
        if os.environ.get("BATCHYARD_DEBUG"):
            raise
        where = _keep_trace(out)
        render.complain(f"crash: {type(error).__name__}: {error}; {where}")
        raise SystemExit(Exit.CRASH) from None


def _keep_trace(out: Path | None) -> str:
    if out is not None:
        from batchyard.client.running.folder import Files  # noqa: PLC0415

        log = Files(out).log
        try:
            with log.open("a", encoding="utf-8") as file:
                file.write(traceback.format_exc() + "\n")
        except OSError:
            pass
        else:
            return f"the trace is in {log}"
    return "BATCHYARD_DEBUG=1 shows the trace"
