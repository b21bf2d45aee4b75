"""What every layer of tests shares."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# A shell that starts this in the background has it ignore Ctrl-C, and all its children with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: it would be an assert on the wall clock. A failure prints how to repeat it.
settings.register_profile("batchyard", deadline=None, print_blob=True)
settings.load_profile("batchyard")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
