"""`batchyard diff`: two runs over the same inputs, beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchyard.cli import render
from batchyard.cli.exits import guarded
from batchyard.cli.status import Json, opened
from batchyard.price import dollars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchyard.client.diff import Pair, Side, Sums
    from batchyard.client.results.receipt import Receipt

First = Annotated[Path, typer.Argument(metavar="A", help="Output folder of a run.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="Output folder of another.")]
Key = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Show where the answers for this document differ, by line."),
]

_NAMED = 10
_CELL_CHARS = 30  # two of them and the label fit in 80 columns
_HEAD, _TAIL = 9, 20  # what is shown of a longer one


def diff(first: First, second: Second, key: Key = None, as_json: Json = False) -> None:
    """Compare two runs over the same inputs.

    Answers by document, structured ones by field, tokens and cost.
    """
    with guarded():
        from batchyard.client import diff as comparing  # noqa: PLC0415 - quick start-up

        with (
            comparing.Side(*opened(first)) as a,
            comparing.Side(*opened(second)) as b,
        ):
            if key is not None:
                _one(a, b, key, as_json=as_json)
                return
            sums = comparing.Sums()
            differing: list[Pair] = []
            for pair in comparing.compare(a, b, sums):
                if as_json:
                    render.emit({"event": "document", **_shape(pair)})
                elif pair.what == "different" and len(differing) < _NAMED:
                    differing.append(pair)
            if as_json:
                render.emit({"event": "summary", **_summary(a, b, sums)})
            else:
                _print(a, b, sums, differing)


def _one(a: Side, b: Side, key: str, *, as_json: bool) -> None:
    from batchyard.client import diff as comparing  # noqa: PLC0415
    from batchyard.client.problems import InputError  # noqa: PLC0415
    from batchyard.errors import shown  # noqa: PLC0415

    found = comparing.lines(a, b, key)
    if found is None:
        raise InputError(f"neither {a.files.out} nor {b.files.out} has an outcome of {shown(key)}")
    lines = list(found)
    if as_json:
        render.emit({"key": key, "diff": lines})
        return
    if not lines:
        render.say(f"{key}: the answers are the same")
    for line in lines:
        render.say(line.expandtabs(4))


def _shape(pair: Pair) -> dict[str, object]:
    return {
        "key": pair.key,
        "what": pair.what,
        "a": pair.a,
        "b": pair.b,
        "fields": pair.fields,
        "other_input": pair.other_input,
    }


def _summary(a: Side, b: Side, sums: Sums) -> dict[str, object]:
    return {
        **{str(what): count for what, count in sums.counts.items()},
        "other_inputs": sums.other_inputs,
        "fields": {
            name: {"documents": each.documents, "equal": each.equal, "percent": each.percent}
            for name, each in sums.fields.items()
        },
        "a": _side(a),
        "b": _side(b),
    }


def _side(side: Side) -> dict[str, object]:
    made = side.sums()
    cost = _cost(made)
    return {
        "path": str(side.files.out),
        "model": None if side.state.config is None else side.state.config.model,
        "is_finished": side.state.finished_us is not None,
        "documents": side.state.documents,
        "collected": made.documents,
        "saved": made.saved,
        "input_tokens": _tokens(made, "input"),
        "output_tokens": _tokens(made, "output"),
        "basis": made.basis,
        "paid_micros": made.paid_micros,
        "list_micros": made.list_batch_micros,
        "per_document_micros": _each(cost, made.documents),
    }


def _print(a: Side, b: Side, sums: Sums, differing: Sequence[Pair]) -> None:
    made = a.sums(), b.sums()
    sides = tuple(zip((a, b), made, strict=True))
    costs = [_cost(each) for each in made]
    rows = [
        ("", [f"{name}  {side.files.out}" for name, (side, _) in zip("AB", sides, strict=True)]),
        ("model", [side.state.config.model if side.state.config else "" for side, _ in sides]),
        ("documents", [_documents(side, each) for side, each in sides]),
        ("saved", [f"{each.saved:,}" for each in made]),
        ("input tokens", [f"{_tokens(each, 'input'):,}" for each in made]),
        ("output tokens", [f"{_tokens(each, 'output'):,}" for each in made]),
        ("cost", [_money(cost) + _basis(each) for cost, each in zip(costs, made, strict=True)]),
        (
            "per document",
            [_money(_each(cost, each.documents)) for cost, each in zip(costs, made, strict=True)],
        ),
    ]
    for label, cells in rows:
        first, second = (_cut(cell) for cell in cells)
        render.say(f"{label:<{render.LABEL_CHARS}}{first:<{_CELL_CHARS}}  {second}".rstrip())
    render.say()
    render.fitted(_counts(sums))
    if sums.other_inputs:
        noun = "document" if sums.other_inputs == 1 else "documents"
        render.fitted(
            f"{sums.other_inputs:,} {noun} had another input in the one than in the other"
        )
    if sums.fields:
        render.say()
        width = max(len("field"), *(len(_cut(name)) for name in sums.fields))
        render.say(f"{'field':<{width}}  {'equal':>9}  {'of':>9}  agreement")
        for name, each in sums.fields.items():
            counts = f"{each.equal:>9,}  {each.documents:>9,}  {each.percent:>7.1f} %"
            render.say(f"{_cut(name):<{width}}  {counts}")
    if differing:
        render.say()
        _list(a, b, sums, differing)


def _list(a: Side, b: Side, sums: Sums, differing: Sequence[Pair]) -> None:
    render.say("different")
    for pair in differing:
        parts = []
        if pair.a != pair.b:
            parts.append(f"{pair.a}, {pair.b}")
        if pair.fields:
            parts.append(", ".join(pair.fields))
        render.fitted(f"  {pair.key}" + (f": {'; '.join(parts)}" if parts else ""))
    more = sums.counts["different"] - len(differing)
    if more:
        render.say(f"  and {more:,} more; --json lists all")
    import shlex  # noqa: PLC0415 - once, at the end

    names = " ".join(shlex.quote(str(side.files.out)) for side in (a, b))
    example = shlex.quote(differing[0].key)
    render.fitted(f"one of them by line: `{render.program()} diff {names} --key {example}`")


def _counts(sums: Sums) -> str:
    both, counts = sums.both, sums.counts
    share = f" ({100 * counts['same'] / both:.1f} %)" if both else ""
    parts = [
        f"{both:,} in both: {counts['same']:,} same{share}, {counts['different']:,} different",
        f"only in A {counts['only_a']:,}",
        f"only in B {counts['only_b']:,}",
    ]
    return " · ".join(parts)


def _documents(side: Side, made: Receipt) -> str:
    if made.documents == side.state.documents:
        return f"{made.documents:,}"
    return f"{made.documents:,} of {side.state.documents:,} so far"


def _tokens(made: Receipt, kind: str) -> int:
    sums = made.models.values()
    if kind == "output":
        return sum(each.output_tokens for each in sums)
    return sum(
        each.input_tokens
        + each.cache_read_tokens
        + each.cache_write_5m_tokens
        + each.cache_write_1h_tokens
        for each in sums
    )


def _cost(made: Receipt) -> int | None:
    """Return what is compared: what was paid, or list prices where nothing is charged."""
    return made.list_batch_micros if made.basis == "simulated" else made.paid_micros


def _basis(made: Receipt) -> str:
    return " (simulated)" if made.basis == "simulated" else ""


def _each(cost: int | None, documents: int) -> int | None:
    return None if cost is None or not documents else round(cost / documents)


def _money(micros: int | None) -> str:
    return "unknown" if micros is None else dollars(micros)


def _cut(text: str) -> str:
    shown = render.safe(text)
    return shown if len(shown) <= _CELL_CHARS else shown[:_HEAD] + "…" + shown[-_TAIL:]
