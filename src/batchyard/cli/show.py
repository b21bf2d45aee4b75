"""`batchyard show`: one document of a run, from the prompt to the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from batchyard.cli import render
from batchyard.cli.exits import guarded
from batchyard.cli.status import Folder, Json, opened
from batchyard.price import dollars

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from batchyard.client.one_document import OneDocument, Try

Key = Annotated[
    str,
    typer.Argument(help="Key of the document, as in errors.jsonl, or a custom_id."),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Print the line of results as received, and nothing else.")
]

_PROMPT = ("system", "messages")
_VALUE_CHARS_MAX = 200  # of a parameter; tools and schemas are longer
_STATES = {
    "planned": "not sent yet",
    "intended": "sent; the answer of the server is not known",
    "created": "at the server",
    "ended": "ended; the results are not here yet",
    "downloaded": "the results are here, not looked at yet",
    "withdrawn": "canceled before it was sent",
}


def show(folder: Folder, key: Key, raw: Raw = False, as_json: Json = False) -> None:
    """Show one document: prompt, parameters, answer, cost."""
    with guarded():
        from batchyard.client import one_document  # noqa: PLC0415 - quick start-up
        from batchyard.client.problems import InputError  # noqa: PLC0415

        files, state = opened(folder)
        found = one_document.look(files, state, key)
        if raw:
            if found.result is None:
                raise InputError(f"there is no result of {key} yet: {_stands(found.last)}")
            stream = render.stream()
            stream.write(found.result.rstrip(b"\n") + b"\n")
            stream.flush()
        elif as_json:
            render.emit(_shape(found))
        else:
            from batchyard.client.results import closing  # noqa: PLC0415

            _print(found, has_files=closing.has_files(state))


def _shape(found: OneDocument) -> dict[str, object]:
    outcome = found.last.outcome
    return {
        "key": found.key,
        "custom_id": found.last.entry.custom_id,
        "status": None if outcome is None else outcome.class_,
        "reason": None if outcome is None else outcome.reason,
        "model": None if outcome is None else outcome.model,
        "usage": None if outcome is None else outcome.usage,
        "cost_micros": found.cost_micros,
        "batch": found.last.shard.batch,
        "same_as": None if outcome is None else outcome.same_as,
        "tries": [
            {
                "shard": each.shard.index,
                "round": each.shard.round,
                "batch": each.shard.batch,
                "custom_id": each.entry.custom_id,
                "status": None if each.outcome is None else each.outcome.class_,
                "cost_micros": each.cost_micros,
            }
            for each in found.tries
        ],
        "text": found.text,
        "params": None if found.params is None else msgspec.Raw(found.params),
        "result": None if found.result is None else msgspec.Raw(found.result.strip()),
    }


def _print(found: OneDocument, *, has_files: bool) -> None:
    render.table(_facts(found, has_files=has_files))
    if found.params is None:
        render.table([("prompt", "not known: the batch was made elsewhere")])
    else:
        params = msgspec.json.decode(found.params)
        render.table(_parameters(params))
        if params.get("system"):
            _section("system", _content(params["system"]))
        for message in params.get("messages", ()):
            title = "prompt" if message.get("role") == "user" else str(message.get("role"))
            _section(title, _content(message.get("content")))
    if found.result is not None:
        line = msgspec.json.decode(found.result)
        result = line.get("result", {})
        message = result.get("message")
        if message is not None:
            _section("answer", _content(message.get("content")))
        elif result.get("error"):
            _section("error", [_json(result["error"])])


def _facts(found: OneDocument, *, has_files: bool) -> Iterator[tuple[str, str]]:
    last = found.last
    outcome = last.outcome
    yield "document", found.key
    yield "status", _stands(last)
    if outcome is not None and outcome.reason:
        yield "reason", outcome.reason
    if outcome is not None and outcome.same_as:
        yield "shared", f"the request of {outcome.same_as}, which carries the usage and the cost"
    yield "request", ", ".join(filter(None, [last.entry.custom_id, last.shard.batch]))
    if len(found.tries) > 1:
        words = [each.outcome.class_ if each.outcome else _stands(each) for each in found.tries]
        yield "tries", f"{len(words)}: {', '.join(words)}"
    if outcome is not None and outcome.output and has_files:
        yield "report", outcome.output
    if outcome is None or not outcome.is_answered:
        return
    if outcome.model:
        yield "model", outcome.model
    usage = outcome.usage
    if usage is not None:
        cached = usage.cache_read_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
        parts = [f"input {usage.input_tokens:,}", f"output {usage.output_tokens:,}"]
        parts += [f"cached {cached:,}"] if cached else []
        yield "tokens", " · ".join(parts)
    cost = found.cost_micros
    word = "not known" if cost is None else dollars(cost)
    if last.shard.billing == "simulated":
        word = "nothing: the model is simulated"
    yield "cost", word + (" for all tries" if len(found.tries) > 1 and cost else "")


def _stands(last: Try) -> str:
    if last.outcome is not None:
        return last.outcome.class_
    return _STATES.get(last.shard.phase, str(last.shard.phase))


def _parameters(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    label = "parameters"
    for name, value in params.items():
        if name in _PROMPT:
            continue
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        if len(text) > _VALUE_CHARS_MAX:
            text = text[:_VALUE_CHARS_MAX] + f"… ({len(text):,} characters)"
        yield label, f"{name}: {text}"
        label = ""


def _section(title: str, blocks: Iterable[str]) -> None:
    render.say()
    render.say(title)
    for block in blocks:
        for line in block.expandtabs(4).splitlines() or [""]:
            render.fitted(f"  | {line}")


def _content(content: object) -> Iterator[str]:
    """Yield what the blocks of a message say, for people."""
    if isinstance(content, str):
        yield content
        return
    for block in content if isinstance(content, list) else []:
        yield from _block(block) if isinstance(block, dict) else [str(block)]


def _block(block: Mapping[str, Any]) -> Iterator[str]:
    kind = str(block.get("type"))
    match kind:
        case "text":
            yield str(block.get("text", ""))
            for number, citation in enumerate(block.get("citations") or (), 1):
                yield f"[{number}] {_citation(citation)}"
        case "thinking":
            yield f"[thinking]\n{block.get('thinking', '')}\n[end of thinking]"
        case "redacted_thinking":
            yield "[thinking, redacted by the server]"
        case "image" | "document":
            yield f"[{kind}{_source(block.get('source'))}]"
        case "tool_use" | "server_tool_use" | "mcp_tool_use":
            what = "tool call" if kind == "tool_use" else kind.replace("_", " ")
            yield f"[{what} {block.get('name', '')}]\n{_json(block.get('input'))}"
        case "tool_result":
            yield "[tool result]"
            yield from _content(block.get("content"))
        case _:
            yield f"[{kind}]\n{_json({k: v for k, v in block.items() if k != 'type'})}"


def _citation(citation: Mapping[str, Any]) -> str:
    """Return where a quotation is from, and the quotation."""
    parts = [
        str(citation[name]) for name in ("document_title", "title", "url") if citation.get(name)
    ]
    for name, word in (("start_page_number", "page"), ("start_char_index", "character")):
        if citation.get(name) is not None:
            parts.append(f"{word} {citation[name]}")
    where = ", ".join(dict.fromkeys(parts)) or str(citation.get("type"))
    return f"{where}: “{citation.get('cited_text', '')}”"


def _source(source: object) -> str:
    if not isinstance(source, dict):
        return ""
    data = source.get("data")
    size = f", {len(data):,} characters of {source.get('type')}" if isinstance(data, str) else ""
    what = source.get("media_type") or source.get("url") or source.get("file_id") or ""
    return f" {what}{size}"


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
