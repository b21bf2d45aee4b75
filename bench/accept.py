"""How long the largest batch takes to be accepted: the yard, LiteLLM's pass-through and AIBrix.

    python bench/accept.py [--requests 100000] [--rounds 5]

100,000 requests, 246 MiB, the same body. The yard validates and stores it durably. The pass-through
hands it on to a service that is there already: here the stub, which reads and forgets it. AIBrix
takes the same requests as files, three since it refuses over 100 MiB, and looks into them later.
The stub alone is the floor: what it takes to send and read so many bytes.

Systems that execute batches are also started before an upstream that notes when its first call
came: that is how long it takes until the work begins, for AIBrix with the three batches created.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yard
from peers import aibrix, litellm, record
from peers.ours import Yard
from peers.system import PeerError, Started, fresh_folder, sampled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from peers.system import HttpService

BATCHES = "/v1/messages/batches"
FILES = 3  # of AIBrix, which refuses more than 100 MiB in one
SIZE = 2_650  # bytes of a request, near the most that 256 MB hold of 100,000
UNANSWERED_S = 600.0  # the first calls are out until the system is ended
FIRST_CALL_S = 120.0  # longer is not waited for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    body = yard.body(options.requests, SIZE)
    ours = Yard()
    executor, files = litellm.Executor(), aibrix.AIBrix()
    rows = {
        "ours": record.Row(ours.name, ours.version, "defaults", ours.durability),
        "pass": record.Row(
            "LiteLLM pass-through", executor.version, "defaults, one worker", "stores nothing"
        ),
        "upload": record.Row(
            files.name, files.version, f"upload of {FILES} files, not looked into", files.durability
        ),
        "sink": record.Row("the stub alone", ours.version, "-", "stores nothing"),
    }
    parts = _files(body)
    forms = [aibrix.form(part) for part in parts]
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(yard.stub())
        folder = Path(stack.enter_context(fresh_folder()))
        proxied = litellm.pass_through(sink, folder)
        proxy = _enter(stack, rows["pass"], executor.missing(), proxied)
        place = Path(stack.enter_context(fresh_folder()))
        store = _enter(stack, rows["upload"], files.missing(), files.start(sink, place))
        for _ in range(options.rounds):
            # An address that refuses connections: nothing is dispatched while we measure.
            with fresh_folder() as data, ours.start(9, Path(data)) as started:
                run = _create(started, BATCHES, [body])
            first = _first_call_s(ours, lambda started: started.read("POST", BATCHES, body))
            rows["ours"].runs.append(run | {"first_call_s": first})
            rows["sink"].runs.append(_create(Started([], sink), BATCHES, [body]))
            if proxy is not None:
                key = f"Bearer {litellm.KEY}"
                run = _create(proxy, f"/anthropic{BATCHES}", [body], authorization=key)
                rows["pass"].runs.append(run)
            if store is not None:
                run = _create(store, "/v1/files", forms, content_type=aibrix.KIND)
                first = _first_call_s(
                    files, lambda started: [files.create_one(started, part) for part in parts]
                )
                rows["upload"].runs.append(run | {"first_call_s": first})
    about = {"kind": "accept", "requests": options.requests, "bytes": len(body)}
    print(f"raw: {record.write(f'accept-{options.requests}', about, list(rows.values())).name}")


def _enter(
    stack: contextlib.ExitStack,
    row: record.Row,
    reason: str | None,
    start: contextlib.AbstractContextManager[Started],
) -> Started | None:
    """Start a system, unless there is a reason not to; note in its row why it is not there."""
    row.failure = reason
    if reason is None:
        try:
            return stack.enter_context(start)
        except PeerError as error:
            row.failure = str(error)
    return None


def _files(body: bytes) -> list[bytes]:
    """Return the same requests as files of the other dialect."""
    call = {"method": "POST", "url": "/v1/chat/completions"}
    lines = [
        json.dumps(
            {"custom_id": request["custom_id"]} | call | {"body": request["params"]},
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
        + b"\n"
        for request in json.loads(body)["requests"]
    ]
    size = -(-len(lines) // FILES)
    return [b"".join(lines[at : at + size]) for at in range(0, len(lines), size)]


def _create(
    started: Started, path: str, bodies: Sequence[bytes], **headers: str
) -> dict[str, float]:
    with sampled(started) as samples:
        cpu, begun = started.cpu_s(), time.perf_counter()
        answers = [started.request("POST", path, body, **headers) for body in bodies]
        seconds = time.perf_counter() - begun
        cpu = started.cpu_s() - cpu
    if any(
        each.get("type", each.get("object")) not in {"message_batch", "file"} for each in answers
    ):
        raise PeerError(f"{path}: {answers}")
    print(f"{path:<36} {seconds:6.2f} s  {max(samples) / 1e6:6.0f} MB", flush=True)
    return {
        "seconds": round(seconds, 3),
        "cpu_s": round(cpu, 2),
        "private_mb": round(max(samples) / 1e6, 1),
        "idle_mb": round(samples[0] / 1e6, 1),
        "load": os.getloadavg()[0],
    }


def _first_call_s(system: HttpService, create: Callable[[Started], object]) -> float | None:
    """Return the seconds from the first byte sent until a call reaches the upstream."""
    with (
        fresh_folder() as data,
        yard.stub(UNANSWERED_S) as upstream,
        system.start(upstream, Path(data)) as started,
    ):
        begun = time.monotonic()
        create(started)
        while (at_s := yard.told(upstream, "most")["first_s"]) is None:
            if time.monotonic() > begun + FIRST_CALL_S:
                return None
            time.sleep(0.05)
    print(f"{system.name + ', first call':<36} {at_s - begun:6.2f} s", flush=True)
    return round(at_s - begun, 3)


if __name__ == "__main__":
    main()
