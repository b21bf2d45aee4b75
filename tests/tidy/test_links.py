"""Every link of the documents leads somewhere."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_HEADING = re.compile(r"^#+\s+(.+?)\s*#*$", re.MULTILINE)
_CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def text_of(path: Path) -> str:
    """Return a document without its code."""
    return re.sub(r"`[^`\n]*`", "", _CODE.sub("", path.read_text(encoding="utf-8")))


@cache
def anchors(path: Path) -> set[str]:
    raw = _CODE.sub("", path.read_text(encoding="utf-8"))
    slugs: set[str] = set()
    for heading in _HEADING.findall(raw):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        number = 0
        unique = slug
        while unique in slugs:
            number += 1
            unique = f"{slug}-{number}"
        slugs.add(unique)
    return slugs | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", raw))


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_every_link_leads_to_a_file_that_is_there(path: Path) -> None:
    broken = []
    for link in _LINK.findall(text_of(path)) + _REFERENCE.findall(text_of(path)):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue  # the world outside is not ours
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if (
            not target.is_relative_to(ROOT)
            or not target.exists()
            or (anchor and target.suffix == ".md" and anchor not in anchors(target))
        ):
            broken.append(link)
    assert broken == []


def test_a_link_to_nowhere_would_be_found() -> None:
    """The check checks itself: on a text with every form of a link."""
    text = 'See [a](x.md), ![b](<y z.png> "title") and [c][r].\n\n[r]: w.md#part\n'
    assert _LINK.findall(text)[0] == "x.md"
    assert _REFERENCE.findall(text) == ["w.md#part"]
