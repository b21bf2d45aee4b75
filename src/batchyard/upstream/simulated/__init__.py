"""The simulated model: an upstream that needs no network, no key and no money.

Deterministic by seed; its answers say that they are simulated. It counts tokens and prompt-cache
use as a real one would, so that what is built on it can be tested, and its cost estimated.
"""

from batchyard.upstream.simulated.upstream import Settings, Simulated

__all__ = ["Settings", "Simulated"]
