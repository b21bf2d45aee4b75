"""What the simulated model writes, and how it counts tokens."""

from __future__ import annotations

import pytest

from batchyard.upstream.simulated.draw import Draw
from batchyard.upstream.simulated.prompt import read_prompt
from batchyard.upstream.simulated.text import NOTICE, compose
from batchyard.upstream.simulated.tokens import estimate, fit

README = """# widget

[![badge](https://img.example.com/b.svg)](https://example.com)

Widget is a small library that turns gears into sprockets without any lathe.

## Installation

    pip install widget

## Usage

Call the gears function. Gears and sprockets meet in the middle; gears always win.

## License

MIT
"""
SHAPE = """## Overview
(one sentence)
## Stack
(technologies)
## Rating
(1-10, with reasons)
"""
ENDS_WITH_SHAPE = f"Analyse this project.\n\nREADME:\n{README}\nUse this structure:\n{SHAPE}"
STARTS_WITH_SHAPE = f"Write a report with these sections:\n{SHAPE}\nREADME:\n{README}"
IN_TAGS = f"Use these headings:\n{SHAPE}\n<document>\n{README}\n</document>"
CHINESE = """请对以下开源项目进行深度分析,输出结构化报告:
项目名称:齿轮库
README 内容:
# 齿轮库

齿轮库可以把齿轮变成链轮,不需要任何机床。齿轮与链轮在中间相遇。

请按以下结构输出分析报告:
## 项目概览
(一句话描述项目核心功能)
## 潜在风险与局限
(技术债、维护风险)
## 综合推荐指数
(1-10 分,附理由)
"""


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


@pytest.mark.parametrize("prompt", [ENDS_WITH_SHAPE, STARTS_WITH_SHAPE, IN_TAGS])
def test_the_answer_has_the_headings_asked_for_and_not_those_of_the_document(prompt: str) -> None:
    text = compose(prompt, "", Draw(1), 180)
    assert headings(text) == ["## Overview", "## Stack", "## Rating"]


@pytest.mark.parametrize("prompt", [ENDS_WITH_SHAPE, STARTS_WITH_SHAPE, IN_TAGS])
def test_the_answer_quotes_the_document_and_its_frequent_words(prompt: str) -> None:
    text = compose(prompt, "", Draw(1), 180)
    assert "Widget is a small library that turns gears into sprockets" in text
    assert "gears" in dict(read_prompt(prompt, "").words)


@pytest.mark.parametrize("prompt", [ENDS_WITH_SHAPE, STARTS_WITH_SHAPE, IN_TAGS])
def test_a_rating_stands_under_its_heading(prompt: str) -> None:
    text = compose(prompt, "", Draw(1), 180)
    assert "/10 (simulated)" in text.partition("## Rating")[2]
    assert "/10 (simulated)" not in text.partition("## Rating")[0]


def test_every_section_holds_sentences() -> None:
    text = compose(ENDS_WITH_SHAPE, "", Draw(1), 10)
    for section in text.split("## ")[1:]:
        assert section.count(".") >= 1


def test_a_chinese_prompt_gets_chinese_sections() -> None:
    text = compose(CHINESE, "", Draw(1), 180)
    assert headings(text) == ["## 项目概览", "## 潜在风险与局限", "## 综合推荐指数"]
    assert text.startswith("[Simulated answer: no model was called.")
    assert "齿轮库可以把齿轮变成链轮" in text
    assert "/10 (simulated)" in text.partition("综合推荐指数")[2]


def test_a_structure_in_the_system_prompt_is_followed() -> None:
    text = compose("A plain document about gears.", f"Use these headings:\n{SHAPE}", Draw(1), 60)
    assert headings(text) == ["## Overview", "## Stack", "## Rating"]


def test_a_structure_in_a_code_block_is_followed() -> None:
    prompt = f"Summarise.\n\n{README}\nUse this template:\n```markdown\n{SHAPE}```\n"
    assert headings(compose(prompt, "", Draw(1), 60)) == ["## Overview", "## Stack", "## Rating"]


@pytest.mark.parametrize("prompt", ["", "hi", "Summarise this.\n\n" + README, "#", "# ", "<a>\n"])
def test_any_prompt_gets_paragraphs(prompt: str) -> None:
    text = compose(prompt, "", Draw(1), 60)
    assert text.startswith(NOTICE)
    assert len(text.split("\n\n")) >= 2


def test_a_rating_is_given_without_headings_too() -> None:
    assert compose("Rate it from 1 to 10.", "", Draw(1), 60).endswith("/10 (simulated)")
    assert "(simulated)" not in compose("Say something.", "", Draw(1), 60)


@pytest.mark.parametrize("words", [50, 180, 1000])
def test_an_answer_is_about_as_long_as_set(words: int) -> None:
    lengths = [len(compose(README, "", Draw(seed), words).split()) for seed in range(40)]
    assert 0.75 * words < sum(lengths) / len(lengths) < 1.35 * words
    assert len(set(lengths)) > 10


def test_a_huge_prompt_is_read_at_its_ends_only() -> None:
    document = "Gears are turning all day long here. " * 20_000
    prompt = f"README:\n{document}\n\nUse this structure:\n{SHAPE}"
    text = compose(prompt, "", Draw(1), 60)
    assert headings(text) == ["## Overview", "## Stack", "## Rating"]
    assert "gears" in text


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0, 0),
        ("a", 1, 1),
        ("The quick brown fox jumps over the lazy dog.", 9, 13),
        ("齿轮库可以把齿轮变成链轮", 10, 14),
        ("1234567890", 3, 6),
        ("Привет, мир", 4, 7),
        ("안녕하세요", 4, 6),
        ("🎉🎉", 3, 6),
    ],
)
def test_tokens_are_believable_for_each_script(text: str, least: int, most: int) -> None:
    assert least <= estimate(text) <= most


def test_a_cut_text_is_the_longest_prefix_that_fits() -> None:
    text = ENDS_WITH_SHAPE + CHINESE
    for tokens in (0, 1, 7, 100, estimate(text), 10_000):
        kept = fit(text, tokens)
        assert text.startswith(kept)
        assert estimate(kept) <= tokens
        assert kept == text or estimate(text[: len(kept) + 1]) > tokens
