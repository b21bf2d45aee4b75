"""What is different when the same command comes again: options one by one, documents by content.

Pure. A document is the same when its rendered request is, whatever was edited to get there: a
comment in a template changes nothing, and nothing is paid twice for it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from batchyard.errors import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from batchyard.client.planning.plan import Plan
    from batchyard.client.running.folder import DocumentEntry
    from batchyard.client.running.journal import Config

Allow = Literal["prompt", "model", "options", "input", "server"]
ALLOWS: tuple[Allow, ...] = ("prompt", "model", "options", "input", "server")
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Drift:
    """One option that is another than it was, and what allows it; None: only `--fresh` does."""

    text: str
    allow: Allow | None
    is_move: bool = field(default=False, compare=False)
    """Whether it is the address of the server, and nothing else of the run."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The documents of a command beside those of the run in its folder.

    `new`, `changed` and `removed` are keys; `same` counts the documents that are as they were. Of
    the changed ones `edited` have another content; the others only another request, because of an
    option.
    """

    new: Sequence[str] = ()
    changed: Sequence[str] = ()
    removed: Sequence[str] = ()
    same: int = 0
    edited: frozenset[str] = frozenset()

    @property
    def to_send(self) -> frozenset[str]:
        """Return the documents that the run does not have like this."""
        return frozenset({*self.new, *self.changed})

    def lines(self) -> list[str]:
        """Return a line for each kind of change."""
        edited = [key for key in self.changed if key in self.edited]
        others = [key for key in self.changed if key not in self.edited]
        kinds = (
            ("new document", "new documents", self.new, ""),
            ("changed document", "changed documents", edited, ""),
            ("document with another request", "documents with another request", others, ""),
            ("removed document", "removed documents", self.removed, "; what they have is kept"),
        )
        return [
            f"{_count(len(keys), one, several)}: {_some(keys)}{more}"
            for one, several, keys, more in kinds
            if keys
        ]


def compare(entries: Iterable[DocumentEntry], plan: Plan, *, is_same_command: bool) -> Changes:
    """Compare the documents of a plan with those of a run.

    Args:
        entries: of the run, in the order in which they were sent.
        plan: of the command that comes now.
        is_same_command: whether all options are as they were. Runs of earlier versions did not
            note what was sent: then equal fields make an equal request.
    """
    contents: dict[str, str] = {}
    requests: dict[str, str] = {}
    for entry in entries:
        contents[entry.key] = entry.sha256
        if entry.request:
            requests[entry.key] = entry.request
    new, changed, edited, same = [], [], set[str](), 0
    keys = set()
    for request in plan.requests:
        for document in request.documents():
            keys.add(document.key)
            if document.key not in contents:
                new.append(document.key)
                continue
            is_same = is_same_command and contents[document.key] == document.sha256
            if document.key in requests:
                is_same = requests[document.key] == request.digest
            if is_same:
                same += 1
            else:
                changed.append(document.key)
                if contents[document.key] != document.sha256:
                    edited.add(document.key)
    removed = sorted(contents.keys() - keys)
    return Changes(sorted(new), sorted(changed), removed, same, frozenset(edited))


def drift(before: Config, after: Config) -> list[Drift]:
    """Return what was asked for otherwise, of all that changes what is sent, or where to."""
    found = []
    if before.prompt_sha256 != after.prompt_sha256:
        found.append(Drift(f"the prompt {after.prompt} has another text", "prompt"))
    if before.system_sha256 != after.system_sha256:
        found.append(Drift("the system prompt has another text", "prompt"))
    options: tuple[tuple[str, object, object, Allow | None], ...] = (
        ("--model", before.model, after.model, "model"),
        ("--max-tokens", before.max_tokens, after.max_tokens, "options"),
        ("--beta", before.betas, after.betas, "options"),
        ("--override", before.override, after.override, "options"),
        ("--cache", before.cache, after.cache, "options"),
        ("--suffix", before.suffix, after.suffix, None),
        ("--name", before.name, after.name, None),
        ("--local", before.local, after.local, "server"),
    )
    found += [
        Drift(f"{name} was {_option(old)} and is {_option(new)}", allow)
        for name, old, new, allow in options
        if old != new
    ]
    if before.base_url != after.base_url and before.local == after.local:
        found.append(Drift(moved_text(before, after.base_url), "server", is_move=True))
    found += _params(before.params, after.params)
    if before.schema != after.schema:
        found.append(Drift("the schema of the answers is another one", "options"))
    if after.upstreams and before.upstreams != after.upstreams:
        was, now = _option(before.upstreams), _option(after.upstreams)
        found.append(Drift(f"--upstream was {was} and is {now}", "server"))
    return found


def moved_text(before: Config, base_url: str | None) -> str:
    """Return what people read of a server that is at another address."""
    return f"the server was {_option(before.base_url)} and is {_option(base_url)}"


def stay_text(batches: int) -> str:
    """Return why a run with batches at its server does not go to another, and what to do."""
    return (
        f"{_count(batches, 'batch', 'batches')} of the run {'is' if batches == 1 else 'are'} at "
        "the first and would be lost from sight: collect them there, or, if it is the same server "
        "under another address, --allow-server-change"
    )


def refused(
    found: Iterable[Drift],
    changes: Changes,
    allow: Collection[str],
    *,
    is_finished: bool,
    at_server: int = 0,
) -> list[str]:
    """Return a line for everything that is not allowed, with what would allow it.

    New documents need no leave, nor does the removal of some: nothing is lost by it. An edit of the
    templates that changes no request needs none either, nor nearly anything when there is nothing
    to send. A run that has nothing at its server may go on at another one.

    Args:
        found: options that are others.
        changes: the documents.
        allow: kinds of change that need no further leave.
        is_finished: whether the run is.
        at_server: batches that are, or may be, at the server of the run and are not collected.
    """
    lines: list[str] = []
    found = list(found)
    if is_finished and not changes.to_send:
        # What is written already has its names, and nothing is sent that could have others.
        return [f"{each.text}, and the reports are written" for each in found if each.allow is None]
    for each in found:
        if each.is_move and not is_finished:
            if at_server and "server" not in allow:
                lines.append(f"{each.text}; {stay_text(at_server)}")
            continue
        if each.allow == "prompt" and not changes.changed and is_finished:
            continue
        if each.allow is None or not is_finished:
            lines.append(each.text)
        elif each.allow not in allow:
            lines.append(f"{each.text} (--allow-{each.allow}-change)")
    is_explained = any(each.allow in {"prompt", "model", "options"} for each in found)
    if not is_finished:
        return lines + changes.lines()
    if changes.changed and not is_explained and "input" not in allow:
        text = f"{_count(len(changes.changed), 'changed document')}: {_some(changes.changed)}"
        lines.append(f"{text} (--allow-input-change)")
    elif lines:
        lines += changes.lines()
    return lines


def names(entries: Iterable[DocumentEntry], plan: Plan, changes: Changes) -> dict[str, str]:
    """Return the output name of every document that is sent now.

    A changed document keeps the name of its report, which is replaced. A new one whose name another
    document has, be it a removed one whose report is kept, gets a few digits of a hash.
    """
    earlier: dict[str, str] = {}
    taken: set[str] = set()
    for entry in entries:
        earlier[entry.key] = entry.output
        taken.add(_folded(entry.output))
    found = {}
    for request in plan.requests:
        for document in request.documents():
            if document.key not in changes.to_send:
                continue
            output = earlier.get(document.key, document.output)
            if document.key not in earlier and _folded(output) in taken:
                digest = hashlib.sha256(document.key.encode("utf-8", "surrogatepass")).hexdigest()
                head = output.removesuffix(plan.settings.suffix)
                output = f"{head}~{digest[:8]}{plan.settings.suffix}"
            found[document.key] = output
    return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _params(before: Mapping[str, object], after: Mapping[str, object]) -> list[Drift]:
    return [
        Drift(
            f"{name} was {_value(before, name)} and is {_value(after, name)}",
            "options",
        )
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _value(params: Mapping[str, object], name: str) -> str:
    return shown(str(params[name]), 60) if name in params else "not given"


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_NAMED]) + (", …" if len(keys) > _NAMED else "")


def _count(number: int, noun: str, several: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def _option(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "not given"
    if isinstance(value, bool):
        return "given" if value else "not given"
    return "not given" if value is None else str(value)
