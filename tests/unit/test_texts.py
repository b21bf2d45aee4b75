"""Bytes to text: known or declared encodings only."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard import limits
from batchyard.client.inputs.texts import NotDecodable, decode, known_encoding, lines, read_text
from batchyard.client.problems import InputError


# A mark of UTF-16 and a NUL together are that of UTF-32.
@given(
    st.text().filter(lambda text: not text.startswith("\0")),
    st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]),
)
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


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252", "gb18030",
             "shift_jis", "iso2022_jp", "utf-7"]  # fmt: skip


def outcome(read: Callable[[], str]) -> str:
    try:
        return read()
    except NotDecodable as error:
        return error.message


@settings(deadline=None)
@given(st.data())
def test_lines_are_those_of_the_text_and_what_does_not_fit_is_told_alike(data: st.DataObject):
    written = data.draw(st.sampled_from(ENCODINGS))
    text = data.draw(st.text(alphabet="aü日\r\n# coding:latin-1\n", max_size=40))
    content = text.encode(written, "replace") + data.draw(st.binary(max_size=2))
    content = content[: data.draw(st.integers(0, len(content)))]
    named = data.draw(st.sampled_from([None, *ENCODINGS]))
    parts = data.draw(st.integers(1, 5))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MIB", parts)  # what is read at a time
        found = outcome(lambda: "".join(lines(io.BytesIO(content), "x", named, "\n")))

    assert found == outcome(lambda: decode(content, "x", named))


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" * 100_000)
    with path.open("rb") as file:
        text = lines(file, "a.jsonl", None, "\n")
        next(text)
        path.write_bytes(b"\xff" * 300_000)

        with pytest.raises(InputError, match=r"a\.jsonl was changed while it was read"):
            list(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"a\.txt cannot be read: No such file"):
        read_text(tmp_path / "a.txt")
