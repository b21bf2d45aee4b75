"""Look at a prompt the way a hurried reader does: which structure is asked for, what is it about?

Guesses, by rules that are cheap; a wrong guess makes a stranger answer, never a failure. Only the
first characters of a long prompt are looked at, and its end.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

_SAMPLE_CHARS = 6_000  # of the document, for its words
_SEEN_CHARS = 20_000  # of a prompt, at each end, for its structure
_NEAR_CHARS = 300  # headings further apart do not belong together
_TAIL_CHARS = 600  # a structure this close to the end was put there on purpose
_HINT_CHARS = 160
_HEADINGS_MAX = 40
_FIRST_CHARS = 160
_WORDS_KEPT = 12

_HEADING = re.compile(r"^(#{1,6})[ \t]+(\S[^\n]*)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CUE = re.compile(
    r"structure|heading|section|outline|template|format|following|as follows|report"
    r"|结构|結構|格式|章节|章節|标题|標題|大纲|如下|以下",
    re.IGNORECASE,
)
_RATING = re.compile(
    r"\b1\s*(?:-|\u2013|\u2014|~|\bto\b|到|至)\s*10\b|out of (?:10|ten)\b|/\s?10\b", re.IGNORECASE
)
_RATING_HEADING = re.compile(
    r"rating|score|recommend|verdict|评分|評分|指数|指數|推荐|推薦",
    re.IGNORECASE,
)
_TAG = re.compile(r"^<([A-Za-z][\w-]*)[^>\n]*>[ \t]*$", re.MULTILINE)
_HAN = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"[a-z][a-z-]{3,23}")
# Runs of Han characters between the commonest function words.
_HAN_WORD = re.compile(
    r"[^\W\da-zA-Z_的了和是在与及或等对将为中上下不有这那个一以并可被从到也而]{2,4}"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。!?]")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_LABEL = (":", "\uff1a", "---")  # of a part of its own, such as "README:"
_CUE_ENDS = (":", "\uff1a", ".", "\u3002")
_NOT_PROSE = ("#", "!", "[", "<", "|", "`", "-", "*", "=", ">", "..", ":", "{")

_STOP = frozenset(
    {
        "about", "after", "also", "because", "been", "before", "being", "between", "both",
        "could", "does", "done", "each", "else", "even", "every", "from", "have", "here",
        "high", "http", "https", "into", "just", "like", "made", "make", "many", "more", "most",
        "much", "must", "need", "only", "other", "over", "please", "same", "should", "some",
        "such", "than", "that", "their", "them", "then", "there", "these", "they", "this",
        "those", "through", "under", "using", "very", "want", "well", "were", "what", "when",
        "where", "which", "while", "will", "with", "within", "without", "would", "your",
        "yours", "badge", "html", "github", "href", "image", "shields", "target",
    }
)  # fmt: skip


class Section(NamedTuple):
    """One heading that the answer is to have."""

    line: str
    hint: str

    def wants_rating(self) -> bool:
        """Whether this is the section for a rating, if one is asked for at all."""
        return bool(_RATING.search(self.hint) or _RATING_HEADING.search(self.line))


@dataclass(frozen=True, slots=True)
class Reading:
    """What a prompt asks for and is about."""

    sections: tuple[Section, ...]
    wants_rating: bool
    chinese: bool
    first_sentence: str
    word_count: int
    words: tuple[tuple[str, int], ...]
    """The most frequent words and how often each occurs, in the part that was looked at."""


@dataclass(slots=True)
class _Group:
    """Headings that stand together."""

    start: int
    end: int
    level: int
    cued: bool
    lines: list[str]
    hints: list[str]


def read_prompt(user: str, system: str) -> Reading:
    """Read the last user message, and the system prompt for a structure that the former lacks."""
    head, tail = _ends(user)
    group, text = _structure(tail), tail
    if (group is None or not group.cued) and head is not tail:
        group, text = _structure(head), head
    document = _document(text if head is tail else head, group if head is tail else None)
    if group is None and "#" in system:
        groups = _groups(system[:_SEEN_CHARS])
        group = max(groups, key=lambda each: (each.cued, len(each.lines))) if groups else None
    headings = "".join(group.lines) if group else ""
    sample = headings or user[:500]
    chinese = len(_HAN.findall(sample)) * 5 > len(sample)
    around = text.replace(document, "").strip() or text  # all of it may be instructions
    instructions = around + system[:_SEEN_CHARS]
    wants_rating = _RATING.search(instructions) is not None
    excerpt = document[:_SAMPLE_CHARS]
    return Reading(
        sections=tuple(map(Section, group.lines, group.hints)) if group else (),
        wants_rating=wants_rating,
        chinese=chinese,
        first_sentence=_first_sentence(excerpt),
        word_count=excerpt.count(" ") + 1,
        words=_frequent(excerpt, chinese=chinese),
    )


def _ends(user: str) -> tuple[str, str]:
    """Return the beginning and the end of a prompt, the same object when it is short."""
    if len(user) <= 2 * _SEEN_CHARS:
        return user, user
    return user[:_SEEN_CHARS], user[-_SEEN_CHARS:]


def _structure(text: str) -> _Group | None:
    """Return the headings that the prompt asks for; the document may well have its own."""
    if "#" not in text:
        return None
    groups = _groups(text)
    cued = [group for group in groups if group.cued]
    if cued:
        return cued[-1] if len(text) - cued[-1].end < _TAIL_CHARS else cued[0]
    # One that nothing announces shows itself by having hints at most under its headings.
    bare = [group for group in groups if len(group.lines) > 1 and all(map(_is_hint, group.hints))]
    if not bare:
        return None
    return bare[-1] if len(text) - bare[-1].end < _TAIL_CHARS else bare[0]


def _groups(text: str) -> list[_Group]:
    fenced = _fenced(text)
    groups: list[_Group] = []
    for match in _HEADING.finditer(text):
        if any(start <= match.start() < end for start, end in fenced):
            continue
        before = _line_before(text, match.start())
        cued = _announces(before)
        level = len(match[1])
        last = groups[-1] if groups else None
        if last is not None:
            gap = text[last.end : match.start()]
            apart = len(gap) > _NEAR_CHARS or level < last.level or before.endswith(_LABEL)
            if not (apart or cued or len(last.lines) >= _HEADINGS_MAX):
                last.hints[-1] = gap.strip()
                last.lines.append(match[0].rstrip())
                last.hints.append("")
                last.end = match.end()
                continue
            last.hints[-1] = gap.partition("\n\n")[0].strip()[:_HINT_CHARS]
        line = match[0].rstrip()
        groups.append(_Group(match.start(), match.end(), level, cued, [line], [""]))
    if groups:
        rest = text[groups[-1].end :]
        groups[-1].hints[-1] = rest.partition("\n\n")[0].strip()[:_HINT_CHARS]
        groups[-1].end += len(rest.partition("\n\n")[0])
    return groups


def _announces(line: str) -> bool:
    """Whether headings that follow `line` are the ones to write."""
    return line.endswith(_CUE_ENDS) and line[:1] != "#" and _CUE.search(line[-120:]) is not None


def _fenced(text: str) -> list[tuple[int, int]]:
    """Return the spans of code, but for a code block that was announced as the structure."""
    if "```" not in text:
        return []
    return [
        match.span()
        for match in _FENCE.finditer(text)
        if not _announces(_line_before(text, match.start()))
    ]


def _line_before(text: str, position: int) -> str:
    """Return the last line with something on it before `position`, fences passed over."""
    end = position
    while end > 0:
        start = text.rfind("\n", 0, end - 1) + 1
        line = text[start:end].strip()
        if line and not line.startswith("```"):
            return line
        end = start
    return ""


def _is_hint(text: str) -> bool:
    return not text or (len(text) <= _HINT_CHARS and text.startswith(("(", "(", "[", "<", "{")))


def _document(text: str, group: _Group | None) -> str:
    """Return the part of the prompt that is to be worked on."""
    region = text
    if group is not None:
        region = max(text[: group.start], text[group.end :], key=len)
    for opening in _TAG.finditer(region):
        end = region.rfind(f"</{opening[1]}>")
        if end - opening.end() > len(region) // 2:
            return region[opening.end() : end].strip()
    label = 0
    for match in re.finditer(r"[::][ \t]*$", region[:1_000], re.MULTILINE):
        start = region.rfind("\n", 0, match.start()) + 1
        if match.end() - start > 60 or len(region) - match.end() < len(region) // 2:
            break
        if region.count("\n", 0, start) > 9:
            break
        label = match.end()
    if label:
        return region[label:].strip()
    first, _, rest = region.partition("\n\n")
    return (rest if len(first) < 300 and len(rest) > len(first) else region).strip()


def _first_sentence(document: str) -> str:
    """Return the first line that reads like prose, up to its first full stop."""
    for raw in document.split("\n", 60)[:60]:
        line = raw.strip()
        if len(line) < 30 and not (len(line) > 9 and _HAN.search(line)):
            continue
        if not line.startswith(_NOT_PROSE):
            break
    else:
        line = " ".join(document[:_FIRST_CHARS].split())
    line = _LINK.sub(r"\1", line[: 4 * _FIRST_CHARS]).replace("`", "").replace('"', "'")
    end = _SENTENCE_END.search(line, 10)
    line = line[: end.end()] if end else line
    return line if len(line) <= _FIRST_CHARS else line[: _FIRST_CHARS - 1].rstrip() + "…"


def _frequent(excerpt: str, *, chinese: bool) -> tuple[tuple[str, int], ...]:
    """Return the most frequent words, ties in the order in which they appear."""
    counts: Counter[str] = Counter()
    if chinese:
        counts.update(_HAN_WORD.findall(excerpt))
    if not chinese or len(counts) < 3:
        counts.update(_WORD.findall(excerpt.lower()))
    for word in _STOP & counts.keys():
        del counts[word]
    return tuple(sorted(counts.items(), key=_descending)[:_WORDS_KEPT])


def _descending(item: tuple[str, int]) -> int:
    return -item[1]
