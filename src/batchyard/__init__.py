"""Message Batches for any model: a server, the pipeline that people run on it, an emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchyard.client.async_run import AsyncRun
    from batchyard.client.inputs.documents import files
    from batchyard.client.inputs.stages import outputs_of
    from batchyard.client.problems import (
        BudgetReached,
        Detached,
        InputError,
        InputsChanged,
        NeedsAttention,
        Paused,
        RunInUse,
    )
    from batchyard.client.run import Run
    from batchyard.errors import BatchyardError

__all__ = [
    "AsyncRun", "BatchyardError", "BudgetReached", "Detached", "InputError", "InputsChanged",
    "NeedsAttention", "Paused", "Run", "RunInUse", "files", "outputs_of",
]  # fmt: skip
__version__ = "0.1.0"

_PLACES = {
    "AsyncRun": "client.async_run",
    "BatchyardError": "errors",
    "Run": "client.run",
    "files": "client.inputs.documents",
    "outputs_of": "client.inputs.stages",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    """Import the library on first use: the command line starts without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    place = _PLACES.get(name, "client.problems")  # the others are its errors
    found: object = getattr(import_module(f"{__name__}.{place}"), name)
    return found
