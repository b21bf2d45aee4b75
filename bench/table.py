"""Print the tables of README.md and bench/README.md from the raw results, or write them there.

    python bench/table.py [--short | --write]

Medians, with the range of the runs; "ours is" compares medians of the same command, so of systems
that took turns in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from itertools import chain, groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BEGIN = "<!-- begin: python bench/table.py -->"
END = "<!-- end: python bench/table.py -->"
OURS = "batchyard"
SINK = "the stub alone"
IN_FLIGHT = 64
Table = Iterable[list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the one table of README.md")
    parser.add_argument("--write", action="store_true", help="into both documents")
    options = parser.parse_args()
    files = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    raw = sorted((file for file in files if "kind" in file.get("work", ())), key=_order)
    if options.write:
        replace(HERE / "README.md", long_text(raw))
        replace(HERE.parent / "README.md", short_text(raw))
    else:
        print(short_text(raw) if options.short else long_text(raw))


def replace(document: Path, text: str) -> None:
    """Put a text between the two marks of a document."""
    content = document.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{document} has no marks {BEGIN} and {END}")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def long_text(raw: list[dict[str, Any]]) -> str:
    parts = []
    titled = [(title(file["work"]), file) for file in raw]
    for name, group in groupby(titled, key=lambda pair: pair[0]):
        files = [file for _, file in group]
        _, head, _ = KINDS[files[0]["work"]["kind"]]
        parts += [f"### {name}\n", table(head, chain.from_iterable(map(rows_of, files))), ""]
        parts += [f"{about(file)}\n" for file in files]
    return "\n".join(parts)


def title(work: dict[str, Any]) -> str:
    text = KINDS[work["kind"]][0].format(**work)
    if "says_when" in work:
        text += ", retry-after told" if work["says_when"] else ", no retry-after"
    return text


def short_text(raw: list[dict[str, Any]]) -> str:
    text = table(["work", "beside", "durability of the other", "ours is"], short(raw))
    machines = " and ".join(sorted({file["machine"] for file in raw}))
    days = " to ".join(sorted({file["date"].partition(" ")[0] for file in raw}))
    commits = " and ".join(sorted({file["commit"] for file in raw}))
    loads = [run["load"] for file in raw for row in file["rows"] for run in row["runs"]]
    load = f"load {min(loads):.0f} to {max(loads):.0f}" if loads else "no runs"
    return f"{text}\n\n{machines}, {days}, {load}; batchyard at {commits}."


def table(head: list[str], rows: Table) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def about(file: dict[str, Any]) -> str:
    loads = [run["load"] for row in file["rows"] for run in row["runs"]]
    load = f", load {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    counts = sorted({len(row["runs"]) for row in file["rows"] if row["runs"]})
    number = " to ".join(map(str, counts))
    return (
        f"`{file['command']}`, {number} run{'s' if counts != [1] else ''}, {file['date']}, "
        f"{file['machine']}{load}; batchyard at {file['commit']}."
    )


def median(row: dict[str, Any], name: str) -> float:
    return float(statistics.median(run[name] for run in row["runs"]))


def spread(row: dict[str, Any], name: str, form: str, factor: float = 1.0) -> str:
    return told([run[name] * factor for run in row["runs"]], form)


def told(values: list[float], form: str) -> str:
    """Return the median of some runs, with their range where that says more."""
    texts = [f"{value:{form}}" for value in (statistics.median(values), min(values), max(values))]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} ({texts[1]} to {texts[2]})"


def times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def ours_of(file: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in file["rows"] if row["system"] == OURS)
    return found


def rows_of(file: dict[str, Any]) -> Table:
    """Yield the row of each system."""
    _, head, cells = KINDS[file["work"]["kind"]]
    for row in file["rows"]:
        yield cells(file, row) if row["runs"] else left_out(row, len(head))


def left_out(row: dict[str, Any], columns: int) -> list[str]:
    return [*_start(row), row["failure"] or "not run", *[""] * (columns - 4)]


def _start(row: dict[str, Any]) -> list[str]:
    return [_named(row), row["setting"], row["durability"]]


def runs(file: dict[str, Any], row: dict[str, Any]) -> list[str]:
    size, ours = file["work"]["requests"], ours_of(file)
    rates = dict(row, runs=[{"rate": size / run["seconds"]} for run in row["runs"]])
    ratio = median(row, "seconds") / median(ours, "seconds")
    return [
        *_start(row),
        spread(rates, "rate", ",.0f"),
        _share(file["work"], median(row, "seconds")),
        f"{median(row, 'cpu_s') / size * 1000:.2f}",
        f"{median(row, 'private_mb'):.0f}",
        f"{median(row, 'written_mb') / size * 1000:.1f}",
        "" if row["system"] == OURS else f"{times(ratio)} as fast",
    ]


def _share(work: dict[str, Any], seconds: float) -> str:
    """Tell how near a run is to the least time in which 64 slots can do it."""
    if not work["latency_ms"]:
        return ""
    if "ideal_s" in work:
        return f"{work['ideal_s'] / seconds:.0%}"
    least = math.ceil(work["requests"] / IN_FLIGHT) * work["latency_ms"] / 1000
    return f"{least / seconds:.0%}"


def limits(_: dict[str, Any], row: dict[str, Any]) -> list[str]:
    runs = row["runs"]
    halves = zip(*([phase["half"] for phase in run["phases"]] for run in runs), strict=True)
    followed = [math.inf if run["followed_s"] is None else run["followed_s"] for run in runs]
    return [
        *_start(row),
        spread(row, "used", ".0%"),
        *(told(list(half), ".0%") for half in halves),
        told(followed, ".1f").replace("inf", "never"),
        told([run["refused"] / run["calls"] for run in runs], ".1%"),
        spread(row, "errored", ",.0f"),
    ]


def faults(_: dict[str, Any], row: dict[str, Any]) -> list[str]:
    runs = row["runs"]
    return [
        _named(row),
        row["durability"],
        f"{spread(row, 'succeeded', ',.0f')} of {runs[0]['possible']:,}",
        spread(row, "lost", ",.0f"),
        told([run["calls"] / max(1, run["succeeded"]) for run in runs], ".3f"),
        spread(row, "seconds", ".1f"),
        spread(row, "usual_s", ".1f"),
        told([run["invalid"] - run["invalid_succeeded"] for run in runs], ".0f")
        + f" of {runs[0]['invalid']}",
    ]


def cancels(_: dict[str, Any], row: dict[str, Any]) -> list[str]:
    return [
        _named(row),
        row["durability"],
        spread(row, "acknowledged_s", ",.0f", 1000),
        spread(row, "seconds", ".2f"),
        *(
            spread(row, name, ",.0f")
            for name in ("kept", "paid_and_lost", "calls_after", "results")
        ),
    ]


def behinds(_: dict[str, Any], row: dict[str, Any]) -> list[str]:
    seconds = ("alone_s", "one_s", "small_s", "small_most_s")
    return [
        *_start(row),
        *(spread(row, name, ",.1f") for name in seconds),
        spread(row, "evenness", ".2f"),
        spread(row, "most_in_flight", ",.0f"),
    ]


def accepts(file: dict[str, Any], row: dict[str, Any]) -> list[str]:
    ours = ours_of(file)
    ratio = median(row, "seconds") / median(ours, "seconds")
    return [
        *_start(row),
        spread(row, "seconds", ".2f"),
        _first_call(row),
        f"{median(row, 'private_mb'):,.0f}",
        "" if row["system"] in {OURS, SINK} else f"{times(ratio)} as fast",
    ]


def _first_call(row: dict[str, Any]) -> str:
    """Tell when work begins; blank for what executes none."""
    if "first_call_s" not in row["runs"][0]:
        return ""
    if any(run["first_call_s"] is None for run in row["runs"]):
        return "none in time"
    return spread(row, "first_call_s", ".2f")


def kills(_: dict[str, Any], row: dict[str, Any]) -> list[str]:
    return [
        _named(row),
        row["durability"],
        spread(row, "sent_at_kill", ",.0f"),
        *(spread(row, name, ",.1f") for name in ("ready_s", "end_s")),
        *(spread(row, name, ",.0f") for name in ("missing", "doubled", "repeated_calls")),
    ]


def downloads(file: dict[str, Any], row: dict[str, Any]) -> list[str]:
    ours = ours_of(file)
    ratio = median(ours, "mb_per_s") / median(row, "mb_per_s")
    return [
        _named(row),
        row["setting"],
        spread(row, "mb_per_s", ",.0f"),
        f"{median(row, 'cpu_s'):.2f}",
        f"{max(run['above_idle_mb'] for run in row['runs']):.1f}",
        "" if row["system"] == OURS else f"{ratio:.2f} of it",
    ]


def readings(_: dict[str, Any], row: dict[str, Any]) -> list[str]:
    return [
        *_start(row),
        spread(row, "seconds", ".3f"),
        f"{median(row, 'mb_per_s'):,.0f}",
        f"{median(row, 'results_per_s'):,.0f}",
    ]


def short(files: list[dict[str, Any]]) -> Table:
    """Yield a row for each work and peer, in the setting in which the peer is fastest.

    Without the small ones of which there is a larger one.
    """
    largest = {_sort(file["work"]): file["work"]["requests"] for file in files}
    for file in files:
        work = file["work"]
        if work["kind"] not in SHORT or work["requests"] < min(SMALL, largest[_sort(work)]):
            continue
        ours = ours_of(file)
        best: dict[str, dict[str, Any]] = {}
        for row in sorted(_others(file), key=lambda row: median(row, "seconds")):
            best.setdefault(row["system"], row)
        for row in best.values():
            name = f"{_named(row)}, {row['setting']}"
            yield [SHORT[work["kind"]](work), name, row["durability"], _compared(work, ours, row)]
    yield from _killed([file for file in files if file["work"].get("at") == KILLED_AT])


def _sort(work: dict[str, Any]) -> tuple[str, int]:
    return work["kind"], work.get("latency_ms", 0)


def _others(file: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in file["rows"] if row["runs"] and row["system"] not in {OURS, SINK}]


def _compared(work: dict[str, Any], ours: dict[str, Any], row: dict[str, Any]) -> str:
    ratio = median(row, "seconds") / median(ours, "seconds")
    if work["kind"] == "download":
        return f"{ratio:.2f} times as fast"
    if work["kind"] == "accept":
        memory = median(row, "private_mb") / median(ours, "private_mb")
        return f"{times(ratio)} as fast, with 1/{memory:.0f} of the memory"
    cpu = median(row, "cpu_s") / max(median(ours, "cpu_s"), 0.01)
    return f"{times(ratio)} as fast, with 1/{cpu:.0f} of the processor time"


def _killed(files: list[dict[str, Any]]) -> Table:
    rows = [row for file in files for row in file["rows"] if row["runs"]]
    ours = next((median(row, "end_s") for row in rows if row["system"] == OURS), None)
    for row in rows:
        if ours is None or row["system"] == OURS:
            continue
        other = median(row, "end_s")
        result = f"done {ours:.1f} s after the kill, the other {other:,.0f} s"
        yield ["`kill -9` at half of a batch", _named(row), row["durability"], result]


def _named(row: dict[str, Any]) -> str:
    return row["system"] if row["system"] in {OURS, SINK} else f"{row['system']} {row['version']}"


def _order(file: dict[str, Any]) -> tuple[int, int, int, int, str]:
    work = file["work"]
    kind = list(KINDS).index(work["kind"])
    return (
        kind,
        work.get("latency_ms", 0),
        work.get("answer", 0),
        work["requests"],
        file["name"],
    )


SHORT: dict[str, Callable[[dict[str, Any]], str]] = {
    "run": lambda work: f"{work['requests']:,} requests, upstream {work['latency_ms']} ms",
    "spread": lambda work: (
        f"{work['requests']:,} requests, upstream {work['latency_ms']} ms, one in a hundred over "
        f"{work['p99_ms']:,} ms"
    ),
    "accept": lambda work: f"create, {work['requests']:,} requests, {work['bytes'] >> 20} MiB",
    "download": lambda work: f"results, {work['bytes'] / 1e9:.1f} GB",
}
KILLED_AT = 0.5
SMALL = 10_000
_FIRST = ["system", "setting", "durability"]
_RUN = [
    *_FIRST,
    "requests/s",
    "of ideal",
    "CPU s per 1,000",
    "private MB",
    "kB written for each",
    "ours is",
]
Cells = Callable[[dict[str, Any], dict[str, Any]], list[str]]
KINDS: dict[str, tuple[str, list[str], Cells]] = {
    "run": (
        "{requests:,} requests, upstream {latency_ms} ms",
        _RUN,
        runs,
    ),
    "spread": (
        "{requests:,} requests, upstream {latency_ms} ms (median), 1 % over {p99_ms:,} ms",
        _RUN,
        runs,
    ),
    "accept": (
        "Create, {requests:,} requests, {bytes:,} bytes",
        [*_FIRST, "seconds to 200", "s to the first call", "private MB", "ours is"],
        accepts,
    ),
    "download": (
        "Results, {bytes:,} bytes",
        ["system", "setting", "MB/s", "CPU s", "MB above idle, at most", "ours is"],
        downloads,
    ),
    "reading": (
        "Reading results, answers of {answer:,} bytes",
        ["system", "results", "durability", "seconds", "MB/s", "results/s"],
        readings,
    ),
    "kill": (
        "Killed at {at:.0%} of {requests:,} requests, upstream {latency_ms} ms",
        [
            "system",
            "durability",
            "sent at the kill",
            "s to ready",
            "s to the end",
            "missing",
            "doubled",
            "calls repeated",
        ],
        kills,
    ),
    "limits": (
        "A limit that moves: 50/s, 200/s, 20/s, {seconds:.0f} s each",
        [
            *_FIRST,
            "used of all",
            "of 50/s at last",
            "of 200/s",
            "of 20/s",
            "s until 200/s is used",
            "calls refused",
            "requests errored",
        ],
        limits,
    ),
    "faults": (
        "An upstream that fails: {requests:,} requests, {latency_ms} ms, time-out {timeout_s} s",
        [
            "system",
            "durability",
            "succeeded",
            "lost",
            "calls for each success",
            "s",
            "s without faults",
            "invalid ones told as errored",
        ],
        faults,
    ),
    "cancel": (
        "Canceled at {at:.0%} of {requests:,} requests, upstream {latency_ms} ms",
        [
            "system",
            "durability",
            "ms to the acknowledgement",
            "s to all results",
            "answers kept",
            "paid and lost",
            "calls begun after it",
            "results",
        ],
        cancels,
    ),
    "behind": (
        "Behind {requests:,} requests: one, then {smalls} batches of {small}; {latency_ms} ms",
        [
            *_FIRST,
            "s for one, alone",
            "s for one",
            "s for 50, median",
            "most",
            "evenness",
            "calls at once, at most",
        ],
        behinds,
    ),
}

if __name__ == "__main__":
    main()
