"""What random tests draw: anew in each run by hand, the same in each run of CI on a commit."""

from __future__ import annotations

import os
import random


def is_fixed() -> bool:
    """Whether nothing is drawn anew: `CI` is set, as `.ci/run` and most systems for it do."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def seed(variable: str) -> int:
    """Return a seed, and print how to repeat it: the one that an environment variable gives."""
    given = os.environ.get(variable)
    found = int(given) if given else 0 if is_fixed() else random.randrange(1 << 32)
    print(f"{variable}={found}")
    return found
