"""The names of reports by a template of the user: strict, sandboxed, safe, all different."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from batchyard.client.problems import InputError
from batchyard.client.results.outputs import RESERVED, clean, folded, without_suffix
from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.client.inputs.documents import Document

_CODE = re.compile(r"\{[{%#].*?[}%#]\}", re.DOTALL)


def names_by(template: str, documents: Sequence[Document]) -> list[str]:
    """Return the path of each report below the output folder, as a template gives it.

    The template sees the fields of the document, and `key`, `name` and `stem` of its key. What no
    file may be called is replaced, as everywhere; a name for two documents is refused.

    Raises:
        InputError: no template, a field is missing, or a name is empty, reserved, or that of two.
    """
    where = f"--name {shown(template)}"
    written = _CODE.sub("x", template)  # what documents bring in is made safe instead
    if written.startswith("/") or ".." in written.split("/"):
        raise InputError(f"{where}: names are below the output folder, without .. and no / first")
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"{where}: {error.message}") from None
    names = [_named(compiled, document, where) for document in documents]
    owners: dict[str, str] = {}
    for name, document in zip(names, documents, strict=True):
        owner = owners.setdefault(folded(name), document.key)
        if owner != document.key:
            raise InputError(
                f"{where}: {shown(owner)} and {shown(document.key)} would both be {shown(name)}"
            )
    for name in names:
        folders = (name[:at] for at, char in enumerate(name) if char == "/")
        for each in folders:
            if folded(each) in owners:
                raise InputError(f"{where}: {shown(each)} would be a report and a folder")
    return names


def _named(compiled: jinja2.Template, document: Document, where: str) -> str:
    last = document.key.rpartition("/")[2]
    fields = {"name": last, "stem": without_suffix(last, is_row=document.is_row)}
    try:
        text = compiled.render({**fields, **document.fields, "key": document.key})
    # A template is a program: it may raise whatever the values that it touches raise.
    except Exception as error:  # noqa: BLE001
        raise InputError(f"{where}: {error} (document {shown(document.key)})") from None
    if not text.strip(" ./"):
        raise InputError(f"{where}: {shown(document.key)} would be called nothing")
    name = clean(text.strip())
    if folded(name) in RESERVED:
        raise InputError(
            f"{where}: {shown(document.key)} would be called {shown(name)}, a file of the run"
        )
    return name
