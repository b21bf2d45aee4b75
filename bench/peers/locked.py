"""The environments of the peers, and what is locked in them."""

from __future__ import annotations

import re

from peers.system import ENVIRONMENTS, ROOT

INSTALL = "make .bench/{}/.ready"


def version(peer: str, package: str) -> str:
    """Return the version of a package in the lock of a peer."""
    lock = (ROOT / "requirements" / f"peer-{peer}.lock").read_text(encoding="utf-8")
    found = re.search(rf"^{package}(?:\[[a-z,]+\])?==(\S+)", lock, re.MULTILINE)
    assert found, package
    return found[1]


def program(peer: str, name: str) -> str:
    return str(ENVIRONMENTS / peer / "bin" / name)


def missing(peer: str) -> str | None:
    if (ENVIRONMENTS / peer / ".ready").exists():
        return None
    return f"it is not installed: {INSTALL.format(peer)}"
