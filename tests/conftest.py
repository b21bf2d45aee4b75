"""What every layer of tests shares."""

from __future__ import annotations

import pytest
from hypothesis import settings

# No deadline: it would be an assert on the wall clock. A failure prints how to repeat it.
settings.register_profile("batchyard", deadline=None, print_blob=True)
settings.load_profile("batchyard")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
