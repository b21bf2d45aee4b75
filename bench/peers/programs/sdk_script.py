"""What a user writes who has no batch service: official client, semaphore, a file of answers.

Run by `script.py`: it prints a line when it is ready, then does the work of each line it reads.

    python sdk_script.py BASE_URL IN_FLIGHT
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import anthropic


async def work(source: Path, target: Path, base_url: str, in_flight: int) -> None:
    requests = json.loads(source.read_bytes())["requests"]
    gate = asyncio.Semaphore(in_flight)
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key="any") as client:
        with target.open("w") as file:

            async def one(request: dict) -> None:
                async with gate:
                    message = await client.messages.create(**request["params"])
                line = {"custom_id": request["custom_id"], "message": message.to_dict(mode="json")}
                file.write(json.dumps(line) + "\n")

            await asyncio.gather(*(one(request) for request in requests))


def main() -> None:
    base_url, in_flight = sys.argv[1], int(sys.argv[2])
    print("ready", flush=True)
    for line in sys.stdin:
        source, target = line.split()
        asyncio.run(work(Path(source), Path(target), base_url, in_flight))
        print("done", flush=True)


main()
