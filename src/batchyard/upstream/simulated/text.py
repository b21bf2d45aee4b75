"""Write the prose of a simulated answer: plainly no model's work, and yet about the document.

Knows sentences, in English and Chinese. What they state about the document is counted, not
invented; the rest says what a model would do there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchyard.upstream.simulated.prompt import read_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.upstream.simulated.draw import Draw
    from batchyard.upstream.simulated.prompt import Reading, Section

NOTICE = "[Simulated answer: no model was called.]"
NOTICE_ZH = "[Simulated answer: no model was called. 模拟回答,未调用任何模型。]"

# {a} is at least as frequent as {b}, and {b} as {c}; {n} is how often {a} occurs.
_SENTENCES = (
    "By count ({n}), {a} comes up at least as often as {b}.",
    "At this point a model would weigh {a} against {b}.",
    "The words {a}, {b} and {c} are among the most frequent of the document.",
    "A reader will want to know how {a} and {b} depend on each other.",
    "Nothing here was checked; this sentence only shows where a finding on {a} would stand.",
    "The terms {a} and {c} look like the place to start.",
    "Among the first {words} words or so, {a} was counted {n}-fold.",
    "A real answer would quote the passage on {b} here and say what follows from it.",
    "It is worth comparing {a} with {c} before drawing a conclusion.",
    "Between {a} and {b} the document spends most of its repeated words.",
    "What is said of {c} would need a second source.",
    "This paragraph stands in for a judgement on {a}, {b} and {c}.",
)
_OPENING = "The document begins: “{first}”"
_SENTENCES_ZH = (
    "文中“{a}”出现 {n} 次,不少于“{b}”。",
    "真实模型会在这里权衡“{a}”与“{b}”。",
    "“{a}”、“{b}”和“{c}”都属于文中的高频词。",
    "读者会想了解“{a}”与“{b}”之间的关系。",
    "此处内容未经核实,仅表示关于“{a}”的结论将出现的位置。",
    "可以先从“{a}”和“{c}”入手。",
    "真实回答会在这里引用与“{b}”有关的原文并说明其含义。",
    "在得出结论之前,值得比较“{a}”与“{c}”。",
    "关于“{c}”的说法还需要其他来源佐证。",
    "本段代替对“{a}”、“{b}”和“{c}”的判断。",
)
_OPENING_ZH = "文档开头写道:“{first}”"
_HAN_PER_WORD = 2  # a Chinese answer of n words has about 2n characters
_PARAGRAPH_SENTENCES = 4
_FALLBACK = (("request", 1), ("question", 1), ("answer", 1))
_FALLBACK_ZH = (("请求", 1), ("问题", 1), ("回答", 1))

# Each with its length in words; the words put in hardly change it.
_COUNTED = tuple((each, each.count(" ") + 1) for each in _SENTENCES)
_COUNTED_ZH = tuple((each, len(each) // _HAN_PER_WORD) for each in _SENTENCES_ZH)


def compose(user: str, system: str, draw: Draw, words: int) -> str:
    """Return an answer of about `words` words.

    Args:
        user: text of the last user message.
        system: text of the system prompt.
        draw: decides everything that is not given.
        words: typical length; the answer has between 3/4 and 5/4 of it.
    """
    reading = read_prompt(user, system)
    target = max(1, words * (75 + draw.below(51)) // 100)
    rating = f"{4 + draw.below(6)}/10 (simulated)"
    parts = [NOTICE_ZH if reading.chinese else NOTICE]
    if reading.sections:
        parts += _sectioned(reading, rating, draw, target)
    else:
        parts += _paragraphs(_sentences(reading, draw, target), chinese=reading.chinese)
        if reading.wants_rating:
            parts.append(rating)
    return "\n\n".join(parts)


def _sectioned(reading: Reading, rating: str, draw: Draw, target: int) -> list[str]:
    sections = reading.sections
    rated = _rated(sections) if reading.wants_rating else -1
    parts = []
    for index, section in enumerate(sections):
        share = target * (index + 1) // len(sections) - target * index // len(sections)
        parts.append(section.line)
        if index == rated:
            parts.append(rating)
        sentences = _sentences(reading, draw, share, opening=index == 0)
        parts += _paragraphs(sentences, chinese=reading.chinese)
    return parts


def _rated(sections: Sequence[Section]) -> int:
    """Return the index of the section that the rating belongs to: the last one that fits."""
    for index in range(len(sections) - 1, -1, -1):
        if sections[index].wants_rating():
            return index
    return len(sections) - 1


def _sentences(reading: Reading, draw: Draw, target: int, *, opening: bool = True) -> list[str]:
    """Return sentences of about `target` words together, at least one."""
    chinese = reading.chinese
    templates = _COUNTED_ZH if chinese else _COUNTED
    words = reading.words
    if len(words) < len(_FALLBACK):
        words += _FALLBACK_ZH if chinese else _FALLBACK
    count = len(words)
    found: list[str] = []
    length = 0
    if opening and reading.first_sentence:
        found.append((_OPENING_ZH if chinese else _OPENING).format(first=reading.first_sentence))
        length += _length(found[0], chinese=chinese)
    step = luck = draw.below(1 << 30)
    while length < target or not found:
        step += 1 + luck % 3  # never the same sentence twice in a row
        template, template_length = templates[step % len(templates)]
        # One draw for three words and the next step: drawing costs as much as formatting.
        luck, first = divmod(draw.below(1 << 30), count - 2)
        luck, second = divmod(luck, count - first - 2)
        second += first + 1
        third = second + 1 + luck % (count - second - 1)
        a, n = words[first]
        b, c = words[second][0], words[third][0]
        found.append(template.format(a=a, b=b, c=c, n=n, words=reading.word_count))
        length += template_length
    return found


def _length(text: str, *, chinese: bool) -> int:
    return len(text) // _HAN_PER_WORD if chinese else text.count(" ") + 1


def _paragraphs(sentences: Sequence[str], *, chinese: bool) -> list[str]:
    glue = "" if chinese else " "
    return [
        glue.join(sentences[at : at + _PARAGRAPH_SENTENCES])
        for at in range(0, len(sentences), _PARAGRAPH_SENTENCES)
    ]
