"""A few rendered prompts of a plan, for a person to look at before anything is paid.

Most failures of a run are failures of its template, and they are seen in no other place so early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchyard import wire
from batchyard.client.running import durable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batchyard.client.planning.plan import Plan, Request

PROMPTS = 5
_NAME_CHARS = 60


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model would read of one document; `note` says why this one is shown."""

    key: str
    note: str
    system: str
    text: str

    @property
    def whole(self) -> str:
        """Return both texts with their roles."""
        if not self.system:
            return self.text
        return f"[system]\n{self.system}\n\n[user]\n{self.text}"


def prompts(plan: Plan) -> list[Prompt]:
    """Return the first, the shortest, the longest and some between, at most five."""
    requests = plan.requests
    by_size = sorted(range(len(requests)), key=lambda index: len(requests[index].body))
    chosen = {0: "first"}
    for index, note in ((by_size[-1], "longest"), (by_size[0], "shortest")):
        chosen[index] = f"{chosen[index]}, {note}" if index in chosen else note
    for part in range(1, PROMPTS):
        if len(chosen) == min(PROMPTS, len(requests)):
            break
        chosen.setdefault(part * len(requests) // PROMPTS, "")
    rest = iter(range(len(requests)))
    while len(chosen) < min(PROMPTS, len(requests)):
        chosen.setdefault(next(rest), "")
    return [_prompt(requests[index], chosen[index]) for index in sorted(chosen)]


def write(folder: Path, plan: Plan) -> list[Path]:
    """Write the prompts in full, one file each, in place of those of an earlier plan."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, prompt in enumerate(prompts(plan), 1):
        safe = "".join(char if char.isalnum() or char in "-." else "_" for char in prompt.key)
        path = folder / f"{number}-{safe[:_NAME_CHARS]}.txt"
        durable.write(path, [prompt.whole.encode("utf-8", "replace"), b"\n"])
        written.append(path)
    for path in folder.iterdir():
        if path not in written and path.suffix == ".txt":
            path.unlink()
    return written


def _prompt(request: Request, note: str) -> Prompt:
    params: dict[str, Any] = wire.decode(request.params)
    text = "\n".join(_texts(params["messages"][0]["content"]))
    return Prompt(request.key, note, "".join(_texts(params.get("system") or "")), text)


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
        return
    parts: list[dict[str, Any]] = content if isinstance(content, list) else []
    for part in parts:
        yield part["text"] if part.get("type") == "text" else f"[{part.get('type')}]"
