"""Message Batches for any model: a server, the pipeline that people run on it, an emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchyard.client.async_run import AsyncRun
    from batchyard.client.inputs.documents import files
    from batchyard.client.inputs.stages import outputs_of
    from batchyard.client.run import Run

__all__ = ["AsyncRun", "Run", "files", "outputs_of"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    """Import the library on first use: the command line starts without it."""
    if name == "Run":
        from batchyard.client.run import Run  # noqa: PLC0415

        return Run
    if name == "AsyncRun":
        from batchyard.client.async_run import AsyncRun  # noqa: PLC0415

        return AsyncRun
    if name == "files":
        from batchyard.client.inputs.documents import files  # noqa: PLC0415

        return files
    if name == "outputs_of":
        from batchyard.client.inputs.stages import outputs_of  # noqa: PLC0415

        return outputs_of
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
