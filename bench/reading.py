"""How fast results are read: as bytes, after a cut, by the official SDK, and beside other systems.

    python bench/reading.py [--requests 100000] [--answer 700] [--rounds 5] [--alone]

Other systems have 1,000 results, and so has the yard beside them. Of many more, the yard's are read
as bytes, as bytes that break off at half and go on from there, and by the official SDK, which makes
objects of each. The server is on one core, the reader on the other. `--alone` leaves the other
systems out.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yard
from anthropic import Anthropic
from peers import record
from peers.ours import Yard
from peers.services import SERVICES
from peers.system import PeerError, fresh_folder
from peers.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from peers.system import HttpService, Started

FEW = 1_000
ANSWER = 700
PIECE_BYTES = 1 << 20


class Results:
    """The results of one batch, and ways to read them; each raises PeerError if some are lost."""

    def __init__(self, system: HttpService, started: Started, work: Work) -> None:
        batches = system.create(started, system.prepare(work))
        paths = [path for batch in batches for path in system.results(started, batch)]
        if len(paths) != 1:
            raise PeerError(f"{len(paths)} files of results")
        self.batch, self._path = batches[0], paths[0]
        self._started, self._headers = started, system.headers()
        self.count = work.size
        whole = started.read("GET", self._path, **self._headers)
        system.check(work, whole)
        self.size = len(whole)

    def as_bytes(self) -> None:
        self._complete(sum(self._pieces()))

    def cut(self) -> None:
        """Read half, break off, and ask for the rest."""
        got = 0
        for piece in self._pieces():
            got += piece
            if got >= self.size // 2:
                break
        self._complete(got + sum(self._pieces(range=f"bytes={got}-")))

    def typed(self) -> None:
        url = f"http://127.0.0.1:{self._started.port}"
        client = Anthropic(base_url=url, api_key="any", default_headers=self._headers)
        with client:
            kinds = [each.result.type for each in client.messages.batches.results(self.batch)]
        if kinds != ["succeeded"] * self.count:
            raise PeerError(f"{len(kinds)} results by the SDK")

    def _pieces(self, **headers: str) -> Iterator[int]:
        """Read and forget; yield the size of each piece."""
        into = bytearray(PIECE_BYTES)
        with self._started.open(self._path, **self._headers, **headers) as response:
            while size := response.readinto(into):
                yield size

    def _complete(self, got: int) -> None:
        if got != self.size:
            raise PeerError(f"{got} bytes came, not {self.size}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--answer", type=int, default=ANSWER, help="bytes of an answer's text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="only the yard")
    options = parser.parse_args()
    rows: list[record.Row] = []
    about = {"kind": "reading", "requests": options.requests, "answer": options.answer}
    with yard.stub(0.0, "--answer", str(options.answer)) as upstream:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        for make in () if options.alone else SERVICES.values():
            rows += measured(make(), upstream, FEW, options.rounds, {"as bytes": Results.as_bytes})
        ways = {
            "as bytes": Results.as_bytes,
            "as bytes, cut at half": Results.cut,
            "by the official SDK": Results.typed,
        }
        rows += measured(Yard(), upstream, options.requests, options.rounds, ways)
    name = "reading" if options.answer == ANSWER else f"reading-{options.answer}"
    print(f"raw: {record.write(name, about, rows).name}")


def measured(
    system: HttpService,
    upstream: int,
    count: int,
    rounds: int,
    ways: Mapping[str, Callable[[Results], None]],
) -> list[record.Row]:
    """Let a system do the work, and read its results in each of the ways, in turns."""
    rows = {
        way: record.Row(system.name, system.version, f"{count:,}, {way}", system.durability)
        for way in ways
    }
    failure = system.missing()
    if failure is None:
        try:
            with fresh_folder() as folder, system.start(upstream, Path(folder)) as started:
                results = Results(system, started, Work(count))
                for _ in range(rounds):
                    for way, read in ways.items():
                        rows[way].runs.append(_timed(results, read))
                        print(system.name, rows[way].setting, rows[way].runs[-1], flush=True)
        except PeerError as error:
            failure = str(error)[-500:]
    for row in rows.values():
        row.failure = None if row.runs else failure
    return list(rows.values())


def _timed(results: Results, read: Callable[[Results], None]) -> dict[str, float]:
    begun = time.perf_counter()
    read(results)
    seconds = time.perf_counter() - begun
    return {
        "seconds": round(seconds, 5),
        "results_per_s": round(results.count / seconds),
        "mb_per_s": round(results.size / seconds / 1e6, 1),
        "load": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    main()
