"""The command line where the name `upstream.invalid` is not known while a file `switch` exists.

    python unresolved_serve.py <switch> '{"limits:BACKOFF_BASE_S": 0.01}' serve …

Without the file the name is that of this machine. No name server is asked. The event loop resolves
names outside of Python, so that it is the call which needs the name that fails, as it does then.
"""

from __future__ import annotations

import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import uvloop

SWITCH = Path(sys.argv.pop(1))
real = uvloop.Loop.create_connection


async def create_connection(
    loop: uvloop.Loop, make: Any, host: str, *rest: Any, **named: Any
) -> Any:
    if host == "upstream.invalid":
        if SWITCH.exists():
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        host = "127.0.0.1"
    return await real(loop, make, host, *rest, **named)


uvloop.Loop.create_connection = create_connection  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).parents[1] / "helpers_serve.py"), run_name="__main__")
