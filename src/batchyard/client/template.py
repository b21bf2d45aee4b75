"""Prompt templates: Jinja2, sandboxed and strict, compiled once.

A template sees the fields of one document and nothing else: no files, no environment.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from batchyard.client.problems import InputError
from batchyard.client.rows import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from batchyard.client.documents import Document


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
        environment = SandboxedEnvironment(
            undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
        )
        try:
            code = environment.compile(text, name=path.name, filename=self._file)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{path}:{error.lineno}: {error.message}") from None
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

    def _line(self, error: Exception) -> int:
        """Return the line of the template in which `error` was raised."""
        line = 0
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._file:
                line = trace.tb_lineno
            trace = trace.tb_next
        return line
