"""A process that has loaded the server and forks one for each request: a start without its imports.

    python zygote.py <descriptor of a Unix socket>

A request is a JSON object with `argv` and `environment`, together with three descriptors: for the
standard output and error of the server, and for what becomes of it: its pid, then how it ended, a
line each. The server is the child of a process that does nothing but wait for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

import uvloop

from batchyard.cli import render
from batchyard.cli.main import main
from batchyard.server import config, place, run

LOADED = (uvloop, render, config, place, run)
MESSAGE_BYTES_MAX = 65_536


def serve(argv: list[str], environment: dict[str, str], output: int, log: int) -> None:
    """Become a server."""
    empty = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((empty, output, log)):
        os.dup2(descriptor, number)
    os.closerange(3, 64)
    os.environ.update(environment)
    sys.argv = ["batchyard", *argv]
    main()


def nurse(argv: list[str], environment: dict[str, str], output: int, log: int, told: int) -> None:
    """Have a server for a child, and tell what becomes of it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        serve(argv, environment, output, log)
        return
    os.close(output)
    os.write(told, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def listen(requests: socket.socket) -> None:
    """Take requests until the other side has gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the nurses
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 3)
        if not message:
            return
        if not os.fork():
            asked = json.loads(message)
            requests.close()
            nurse(asked["argv"], asked["environment"], *descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


if __name__ == "__main__":
    listen(socket.socket(fileno=int(sys.argv[1])))
