"""Prompt templates: Jinja2, sandboxed and strict, compiled once.

A template sees the fields of one document and nothing else: no files, no environment.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import SandboxedEnvironment

from batchyard.client.inputs.texts import read_text
from batchyard.client.problems import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.client.inputs.documents import Document

# Statements that give no text.
_SILENT = (nodes.Assign, nodes.AssignBlock, nodes.FromImport, nodes.Import, nodes.Macro)


@dataclass(frozen=True, slots=True)
class Outline:
    """What of a template is the same for every document, before and after the first variable.

    `name` is that variable, empty when there is none; `where` is its file and line.
    """

    before: str
    after: str
    name: str
    where: str


class Template:
    """A compiled template file."""

    def __init__(self, path: Path) -> None:
        """Read and compile `path`.

        Raises:
            InputError: it cannot be read, or is not a template (with the line).
        """
        self.path = path
        self._file = str(path)
        text = read_text(path)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        environment = self._environment = SandboxedEnvironment(
            undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
        )
        try:
            code = environment.compile(text, name=path.name, filename=self._file)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{path}:{error.lineno}: {error.message}") from None
        self._text = text
        self._template = environment.template_class.from_code(environment, code, {})

    def render(self, document: Document) -> str:
        """Return the text for one document.

        Raises:
            InputError: the template uses a field that the document does not have, or fails.
        """
        try:
            return self._template.render(document.fields)
        # A template is a program: it may raise whatever the values that it touches raise.
        except Exception as error:  # noqa: BLE001
            where = f"{self.path}:{self._line(error)}"
            hint = ""
            if isinstance(error, jinja2.UndefinedError):
                hint = f"; it has {', '.join(sorted(map(str, document.fields)))}"
            text = str(error) or type(error).__name__
            raise InputError(f"{where}: {text} (document {document.key}{hint})") from None

    @property
    def is_constant(self) -> bool:
        """Whether nothing of a document stands in it, so that its text is always the same."""
        return not meta.find_undeclared_variables(self._environment.parse(self._text))

    def outline(self) -> Outline:
        """Return what is constant in it; text within conditions and loops is not."""
        before, after, name, line = "", "", "", 0
        for node in self._environment.parse(self._text).body:
            for part in node.nodes if isinstance(node, nodes.Output) else [node]:
                if isinstance(part, nodes.TemplateData):
                    before, after = (before, after + part.data) if line else (
                        before + part.data, after
                    )  # fmt: skip
                elif not line and not isinstance(part, _SILENT):
                    used = part if isinstance(part, nodes.Name) else part.find(nodes.Name)
                    name = used.name if used is not None else "…"
                    line = part.lineno
        return Outline(before, after, name, f"{self.path}:{line}")

    def _line(self, error: Exception) -> int:
        """Return the line of the template in which `error` was raised."""
        line = 0
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._file:
                line = trace.tb_lineno
            trace = trace.tb_next
        return line
