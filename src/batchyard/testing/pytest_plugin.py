"""The pytest fixture. pytest loads this file by itself where batchyard is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchyard.testing.emulator import Emulator


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker."""
    config.addinivalue_line(
        "markers",
        "batchyard(**settings): settings of `batchyard_emulator`, those of "
        "`batchyard.testing.Emulator`: script, seed, speed, latency, …",
    )


@pytest.fixture
def batchyard_emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """A Message Batches API of its own for each test; see `batchyard.testing.Emulator`."""
    from batchyard.testing.emulator import Emulator  # noqa: PLC0415 - only where it is used

    marker = request.node.get_closest_marker("batchyard")
    with Emulator(**({} if marker is None else marker.kwargs)) as emulator:
        yield emulator
