"""Prompt templates."""

from pathlib import Path

import pytest

from batchyard.client.inputs.documents import Document
from batchyard.client.inputs.template import Template
from batchyard.client.problems import InputError


def document(**fields: object) -> Document:
    return Document("sub/a.md", {"text": "hello", "name": "a"} | fields, "", "a.md")


def template(tmp_path: Path, text: str) -> Template:
    path = tmp_path / "p.j2"
    path.write_text(text)
    return Template(path)


def test_fields_are_filled_in_and_nothing_else_is_changed(tmp_path: Path):
    rendered = template(tmp_path, "<b>{{ name }}</b> {{ text }}\n").render(document(text="a < b"))

    assert rendered == "<b>a</b> a < b\n"


def test_an_unknown_field_names_line_document_and_what_there_is(tmp_path: Path):
    with pytest.raises(InputError, match=r"p\.j2:2: 'txt' is undefined \(document sub/a\.md; it "
                                         r"has name, text\)"):  # fmt: skip
        template(tmp_path, "one\n{{ txt }}").render(document())


def test_a_syntax_error_names_its_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"p\.j2:3: "):
        template(tmp_path, "one\ntwo\n{% if %}")


def test_an_error_of_the_template_names_its_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"p\.j2:2: .*division by zero"):
        template(tmp_path, "one\n{{ 1 / 0 }}").render(document())


@pytest.mark.parametrize(
    "text",
    [
        "{{ text.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10**9) | list }}",
    ],
)
def test_a_template_reaches_nothing_but_its_document(tmp_path: Path, text: str):
    with pytest.raises(InputError):
        template(tmp_path, text).render(document())


def test_the_prompt_of_the_example_fits_a_text_file():
    path = Path(__file__).parents[2] / "examples" / "report.md.j2"

    rendered = Template(path).render(document())

    assert "hello" in rendered
    assert "## Overall rating" in rendered
