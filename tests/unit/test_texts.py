"""Bytes to text: known or declared encodings only."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.client.inputs.texts import NotDecodable, decode, known_encoding, read_text
from batchyard.client.problems import InputError


@given(st.text(), st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]))
def test_a_byte_order_mark_says_what_follows(text: str, encoding: str):
    assert decode(text.encode(encoding), "x") == text


@given(st.text().filter(lambda text: not text.startswith("\ufeff")))
def test_utf8_needs_no_mark(text: str):
    assert decode(text.encode(), "x") == text


@pytest.mark.parametrize(
    "head",
    [
        '<?xml version="1.0" encoding="iso-8859-1"?>\n<p>',
        "<html><head><meta charset=latin-1></head>",
        '<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1">',
        "# -*- coding: latin-1 -*-\n",
        "#!/usr/bin/python\n# vim: set fileencoding=latin-1 :\n",
    ],
)
def test_text_that_declares_its_encoding_is_read_by_it(head: str):
    assert decode((head + "grüße").encode("latin-1"), "x") == head + "grüße"


@pytest.mark.parametrize(
    "head", ["", "<meta charset=nonsense>", "<meta charset=utf-8>", "# coding: base64\n"]
)
def test_what_is_not_declared_is_refused_with_its_place(head: str):
    data = head.encode() + b"gr\xfc\xdfe"
    offset = len(head) + 2

    with pytest.raises(NotDecodable, match=rf"x is not UTF-8: byte {offset} is 0xfc"):
        decode(data, "x")


def test_a_declaration_that_does_not_hold_is_refused():
    with pytest.raises(NotDecodable, match="x is not ASCII"):
        decode(b"# coding: ascii\n\xfc", "x")


def test_an_encoding_that_is_named_is_taken_strictly():
    assert decode("日本".encode("shift_jis"), "x", known_encoding("Shift_JIS")) == "日本"
    with pytest.raises(NotDecodable, match="x is not SHIFT_JIS"):
        decode(b"\xff\xff", "x", known_encoding("shift-jis"))


@pytest.mark.parametrize("name", ["nonsense", "base64", "rot13", "", "utf-8\0"])
def test_an_encoding_that_is_none_is_refused(name: str):
    with pytest.raises(InputError, match="--encoding is"):
        known_encoding(name)


def test_a_cut_character_at_the_end_is_named(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("aü".encode()[:-1])

    with pytest.raises(NotDecodable, match=r"a\.txt is not UTF-8: byte 1 is 0xc3"):
        read_text(tmp_path / "a.txt")


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"a\.txt cannot be read: No such file"):
        read_text(tmp_path / "a.txt")
