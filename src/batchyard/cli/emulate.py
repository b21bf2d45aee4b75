"""`batchyard emulate`: a yard for tests, with a simulated model and a clock that can be turned."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from batchyard import limits

Host = Annotated[str, typer.Option(help="Address to listen on; a loopback one.")]
Port = Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65_535)]
Speed = Annotated[float, typer.Option(help="Seconds of its clock in a second; up to a million.")]
Script = Annotated[Path | None, typer.Option(help="What becomes of which request or call, TOML.")]
Seed = Annotated[
    int | None, typer.Option(help="Another seed, other answers; the script's, or 0.", min=0)
]
Latency = Annotated[float, typer.Option(help="Seconds that an answer takes.", min=0, max=86_400)]
Words = Annotated[int, typer.Option(help="Typical length of an answer.", min=1, max=100_000)]
Slots = Annotated[
    int, typer.Option(help="Requests answered at once, for each model.", min=1, max=100_000)
]
PerMinute = Annotated[int, typer.Option(help="Calls of a workspace to the batch endpoints.", min=1)]
Queued = Annotated[int, typer.Option(help="Requests of a workspace in open batches.", min=1)]
Models = Annotated[
    Path | None,
    typer.Option(help="Table of models, added to the packaged one.", envvar="BATCHYARD_MODELS"),
]
Fixtures = Annotated[
    bool, typer.Option("--fixtures", help="What the test suites of the official SDKs expect.")
]
Data = Annotated[Path | None, typer.Option(help="Keep the state here; gone at the end otherwise.")]
Lifeline = Annotated[bool, typer.Option("--lifeline", help="End when standard input closes.")]


def emulate(  # noqa: PLR0913, PLR0917 - the options of the command
    host: Host = "127.0.0.1",
    port: Port = 8787,
    speed: Speed = 1.0,
    script: Script = None,
    seed: Seed = None,
    latency: Latency = 0.0,
    words: Words = 180,
    slots: Slots = 64,
    requests_per_minute: PerMinute = limits.REQUESTS_PER_MINUTE_DEFAULT,
    queued_requests: Queued = limits.QUEUED_REQUESTS_DEFAULT,
    models: Models = None,
    fixtures: Fixtures = False,
    data: Data = None,
    lifeline: Lifeline = False,
) -> None:
    """Emulate the Message Batches API: nothing is called, nothing costs, time can be turned."""
    from batchyard.cli import render  # noqa: PLC0415 - `--help` starts without the server
    from batchyard.emulator import script as scripts  # noqa: PLC0415
    from batchyard.emulator.process import serve  # noqa: PLC0415
    from batchyard.emulator.run import Emulation  # noqa: PLC0415
    from batchyard.errors import BatchyardError, DataDirectoryInUse  # noqa: PLC0415

    os.umask(0o077)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        with tempfile.TemporaryDirectory(prefix="batchyard-") as temporary:
            serve(
                Emulation(
                    data=data or Path(temporary),
                    host=host,
                    port=port,
                    speed=speed,
                    seed=seed,
                    latency=latency,
                    words=words,
                    slots=slots,
                    script=scripts.Script() if script is None else scripts.load(script),
                    fixtures=fixtures,
                    requests_per_minute=requests_per_minute,
                    queued_requests=queued_requests,
                    models=models,
                ),
                lifeline=lifeline,
                announce=render.ready,
            )
    except DataDirectoryInUse as error:
        render.complain(error.message)
        raise typer.Exit(3) from None
    except BatchyardError as error:
        render.complain(error.message)
        raise typer.Exit(2) from None
