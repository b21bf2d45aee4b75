"""For tests of batch code: the emulator in this process, and a clock that stands still.

    from batchyard.testing import Emulator

    with Emulator() as emulator:
        client = anthropic.Anthropic(base_url=emulator.url, api_key="any")
        batch = client.messages.batches.create(requests=[...])
        emulator.advance("25h")

With pytest, the fixture `batchyard_emulator` is such an emulator. Nothing here imports a test
library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchyard.testing.clock import ManualClock
    from batchyard.testing.emulator import Emulator

__all__ = ["Emulator", "ManualClock"]


def __getattr__(name: str) -> object:
    # Imported when used: pytest loads this package in every run.
    if name == "Emulator":
        from batchyard.testing.emulator import Emulator  # noqa: PLC0415

        return Emulator
    if name == "ManualClock":
        from batchyard.testing.clock import ManualClock  # noqa: PLC0415

        return ManualClock
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
