"""What a run of many documents takes: from a Parquet file, through a yard, to a file for each.

    python bench/run.py [--documents 20000] [--shard-size 10000] [--write]

A real yard with the simulated model, which answers at once, on loopback; the run is a process of
its own. Prints the seconds of each stage, its processor time, the peak of its memory, and how many
files it wrote. `--write` keeps the raw result in bench/results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import raw
import yard

TEXT = "A line of a document, 项目说明, that somebody wrote. " * 20
STAGES = {
    "planned": "plan: read, render, check, price",
    "begun": "begin: bodies and journal on disk",
    "created": "create the batches",
    "ended": "wait for the answers",
    "downloaded": "download the results",
    "collected": "reports and outcomes",
    "finished": "tables, audit record, receipt",
}


def documents(path: Path, count: int) -> None:
    """Write a Parquet file of documents that are all different."""
    import pyarrow  # noqa: PLC0415 - the data extra
    import pyarrow.parquet  # noqa: PLC0415

    ids = [f"doc-{number:06}" for number in range(count)]
    texts = [f"Number {number}. {TEXT}" for number in range(count)]
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "text": texts}), path)


def work(folder: Path, url: str, shard_size: int) -> None:
    """Be the run: time its stages, and print them as JSON."""
    from batchyard import Run, files  # noqa: PLC0415 - the run process only
    from batchyard.client.running import journal  # noqa: PLC0415

    seconds = dict.fromkeys(STAGES, 0.0)
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage] += now - last
        last = now

    job = Run(
        folder / "reports",
        docs=files(str(folder / "documents.parquet")),
        prompt=folder / "prompt.j2",
        model="claude-opus-4-8",
        max_tokens=4_000,
        retries=0,
        base_url=url,
        api_key="bench",
        shard_size=shard_size,
    )
    plan = job.plan(sample=0)
    lap("planned")
    kinds = {
        journal.Started: "begun", journal.Created: "created", journal.Ended: "ended",
        journal.Downloaded: "downloaded", journal.Collected: "collected",
        journal.Finished: "finished",
    }  # fmt: skip
    from batchyard.client.running import folder as folders  # noqa: PLC0415

    record = folders.Journal.record

    def timed(self: folders.Journal, event: journal.Event) -> None:
        record(self, event)
        if type(event) in kinds:
            lap(kinds[type(event)])

    folders.Journal.record = timed  # type: ignore[method-assign] # measures, changes nothing
    with job:
        job.submit(plan)
        count = sum(1 for _ in job)
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak, busy = yard.peak_rss("self"), used.ru_utime + used.ru_stime
    print(json.dumps({"seconds": seconds, "peak": peak, "busy": busy, "documents": count}))


def main() -> None:
    """Measure a run and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--shard-size", type=int, default=10_000)
    raw.add_write(parser)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(Path(given.work[0]), given.work[1], given.shard_size)
        return
    with (
        tempfile.TemporaryDirectory(prefix="batchyard-bench-") as name,
        yard.yard("simulated=simulated:?latency=0") as server,
    ):
        folder = Path(name)
        documents(folder / "documents.parquet", given.documents)
        (folder / "prompt.j2").write_text("Report on {{ id }}: {{ text }}")
        url = f"http://127.0.0.1:{server.port}"
        command = [sys.executable, __file__, "--work", name, url]
        command += ["--shard-size", str(given.shard_size)]
        state = {"XDG_STATE_HOME": str(folder / "state")}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | state)  # noqa: PLW1510
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout)
        written = sum(1 for path in (folder / "reports").rglob("*") if path.is_file())
    print(f"\na run of {found['documents']:,} documents from a Parquet file\n")
    print("| stage | seconds |\n|---|---|")
    for stage, text in STAGES.items():
        print(f"| {text} | {found['seconds'][stage]:.1f} |")
    print(f"| together | {sum(found['seconds'].values()):.1f} |")
    print(f"\nprocessor time of the run {found['busy']:.1f} s")
    print(f"peak memory {found['peak'] / 1e6:,.0f} MB, {written:,} files")
    if given.write:
        about = {"documents": given.documents, "shard_size": given.shard_size}
        stages = {stage: round(seconds, 3) for stage, seconds in found["seconds"].items()}
        run = {
            "seconds": round(sum(found["seconds"].values()), 3),
            "stages_s": stages,
            "cpu_s": round(found["busy"], 2),
            "peak_mb": round(found["peak"] / 1e6, 1),
            "files": written,
            "load": raw.load(),
        }
        raw.keep(f"documents-{given.documents}", about, runs=[run])


if __name__ == "__main__":
    main()
