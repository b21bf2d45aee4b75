"""Guess the tokens of a text by what its characters are, without a tokenizer.

Six counts and a weight for each. The weights are set for text of many kinds and checked on none of
yours: the answer is shown as an estimate with its spread, and never used for what was paid.
"""

from __future__ import annotations

import re

SPREAD_PERCENT = 25  # for one document far more, for hundreds together about this

_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = b"0123456789"
_SPACES = b" \t\r\n\v\f"
# Ideographs, kana, hangul, and the full-width forms that go with them.
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")

# Tokens for 1,000 characters of each kind.
_LETTER, _CJK_CHAR, _DIGIT, _PUNCTUATION, _SPACE, _OTHER = 240, 1_050, 480, 560, 60, 500
# Newer tokenizers give about 30 % more tokens for the same text, but not for CJK.
# Source: the provider's pricing page, note on Claude 4.7 and later.
_OLD_TOKENIZER = re.compile(r"claude-([a-z]+-)?(3(-|$)|4(-[1-6])?(-20\d{6})?$)")
_NEW_FACTOR_PERCENT = 130


def tokens(text: str, model_id: str) -> int:
    """Return an estimate of the tokens of `text` for a model, at least 1."""
    ascii_bytes = text.encode("ascii", "ignore")
    total = len(ascii_bytes)
    letters = total - len(ascii_bytes.translate(None, _LETTERS))
    digits = total - len(ascii_bytes.translate(None, _DIGITS))
    spaces = total - len(ascii_bytes.translate(None, _SPACES))
    wide = len(text) - total
    cjk = len(_CJK.findall(text)) if wide else 0
    weighted = (
        letters * _LETTER
        + digits * _DIGIT
        + spaces * _SPACE
        + (total - letters - digits - spaces) * _PUNCTUATION
        + (wide - cjk) * _OTHER
    )
    if not _OLD_TOKENIZER.match(model_id):
        weighted = weighted * _NEW_FACTOR_PERCENT // 100
    return max(1, (weighted + cjk * _CJK_CHAR) // 1_000)
