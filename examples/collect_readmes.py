"""Collect real documents that are on this machine: the READMEs of installed software.

    python examples/collect_readmes.py demo/readmes

Takes the long description of every Python distribution of this environment and, where there are
any, the README files below /usr/share/doc; 500 documents at most, always the same for a machine.
"""

from __future__ import annotations

import gzip
import re
import sys
from importlib.metadata import distributions
from pathlib import Path

COUNT_MAX = 500
CHARS_MIN = 200
CHARS_MAX = 100_000
SYSTEM = Path("/usr/share/doc")


def main() -> None:
    target = Path(sys.argv[1])
    documents = dict(sorted({**system_readmes(), **python_readmes()}.items()))
    chosen = list(documents.items())[:COUNT_MAX]
    target.mkdir(parents=True, exist_ok=True)
    for name, text in chosen:
        (target / f"{name}.md").write_text(text, encoding="utf-8")
    print(f"collected {len(chosen)} READMEs of installed software in {target}")


def python_readmes() -> dict[str, str]:
    """Return the descriptions of the installed Python distributions by name."""
    found = {}
    for distribution in distributions():
        metadata = distribution.metadata
        text = metadata.get_payload() or metadata.get("Description", "")
        if metadata["Name"] and isinstance(text, str) and len(text) >= CHARS_MIN:
            found[f"python-{safe(metadata['Name'])}"] = text[:CHARS_MAX]
    return found


def system_readmes() -> dict[str, str]:
    """Return the README files of the system's packages by package."""
    found = {}
    for path in sorted(SYSTEM.glob("*/README*")):
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = data.decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError):
            continue
        if len(text) >= CHARS_MIN and "\x00" not in text:
            found.setdefault(f"system-{safe(path.parent.name)}", text[:CHARS_MAX])
    return found


def safe(name: str) -> str:
    return re.sub(r"[^a-z0-9.+-]+", "-", name.lower()).strip("-.")


if __name__ == "__main__":
    main()
