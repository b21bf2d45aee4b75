"""PDF files and images as content blocks."""

import base64
from pathlib import Path

import pytest

from batchyard.client.inputs.media import read_media
from batchyard.client.problems import InputError

FILES = {
    "a.pdf": (b"%PDF-1.7\n", "document", "application/pdf"),
    "a.PNG": (b"\x89PNG\r\n\x1a\n", "image", "image/png"),
    "a.jpg": (b"\xff\xd8\xff\xe0", "image", "image/jpeg"),
    "a.jpeg": (b"\xff\xd8\xff\xe0", "image", "image/jpeg"),
    "a.gif": (b"GIF89a", "image", "image/gif"),
    "a.webp": (b"RIFF\x01\x02\x03\x04WEBP", "image", "image/webp"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_becomes_the_block_of_its_kind_byte_for_byte(tmp_path: Path, name: str):
    beginning, kind, media_type = FILES[name]
    data = beginning + bytes(range(256))
    (tmp_path / name).write_bytes(data)

    block = read_media(tmp_path / name).block()

    assert block["type"] == kind
    assert block["source"]["media_type"] == media_type
    assert base64.b64decode(block["source"]["data"]) == data


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"\xff\xd8\xff")

    with pytest.raises(InputError, match=r"a\.png is not image/png: it begins with"):
        read_media(tmp_path / "a.png")


def test_a_file_that_changes_between_plan_and_request_is_noticed(tmp_path: Path):
    path = tmp_path / "a.gif"
    path.write_bytes(b"GIF89a")
    media = read_media(path)
    path.write_bytes(b"GIF87a")

    with pytest.raises(InputError, match=r"a\.gif changed while it was read"):
        media.block()


def test_the_pages_of_a_pdf_that_can_be_counted_are_what_it_costs(tmp_path: Path):
    pages = b"<< /Type /Pages >> " + b"<< /Type /Page >> << /Type/Page >> << /Type\n/Page /X 1 >>"
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\n" + pages)
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.7\n" + b"x" * 100_000)

    assert read_media(tmp_path / "a.pdf").tokens == 3 * 2_500
    assert read_media(tmp_path / "b.pdf").tokens == 3 * 2_500
