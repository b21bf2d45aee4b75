"""Run the command line many times quickly: a process that has imported it forks for each run.

What is run is the command itself, in a process of its own that can be killed; only the imports,
two thirds of its time, are shared. It waits a twentieth of the time between two polls or tries, and
for a batch that may still turn up, or whatever part `BATCHYARD_TEST_HURRY` says. With
`BATCHYARD_TEST_ALARM=0.3` it is ended after that many seconds, wherever it is, without a chance to
do anything; its exit code is `-signal.SIGALRM` then. Tests of start-up, signals and terminals start
it anew instead.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.fake_api import FakeApi

OPTIONS = ["docs", "--prompt", "p.j2", "--model", "claude-opus-4-8", "--max-tokens", "50",
           "--out", "reports", "--sample", "0", "--yes"]  # fmt: skip
HURRY = {"BATCHYARD_TEST_HURRY": "20"}

_PROGRAM = """
import importlib, json, os, pkgutil, signal, sys, threading
import batchyard.cli.main, batchyard.client
from batchyard.client.running import watching
from batchyard.client.running.session import Session

for package in (batchyard.cli, batchyard.client):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

def hurry(times):
    whole = threading.Event.wait
    threading.Event.wait = lambda event, timeout=None: whole(event, timeout and timeout / times)
    Session.__init__.__kwdefaults__["grace_s"] /= times
    for name in ("INTERVAL_S", "INTERVAL_MAX_S", "INTERVAL_S_PER_REQUEST"):
        setattr(watching, name, getattr(watching, name) / times)  # what is due goes by the clock
    backoff = watching.backoff
    watching.backoff = lambda failures: backoff(failures) / times

for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in enumerate(("/dev/null", call["out"], call["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(call["cwd"])
        os.environ.clear()
        os.environ.update(call["env"])
        sys.argv[:] = ["batchyard", *call["arguments"]]
        sys.stdin = open(os.devnull)
        signal.setitimer(signal.ITIMER_REAL, float(call["env"].get("BATCHYARD_TEST_ALARM", "0")))
        hurry(float(call["env"].get("BATCHYARD_TEST_HURRY", "1")))
        batchyard.cli.main.main()
    else:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)
"""


@cache
def _forking() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.communicate)  # the end of its input ends it
    return process


def batchyard(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder and environment of now, without input."""
    process = _forking()
    assert process.stdin is not None
    assert process.stdout is not None
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        call = {
            "arguments": arguments,
            "env": HURRY | os.environ | environment,
            "cwd": str(Path.cwd()),
            "out": str(out),
            "err": str(err),
        }
        process.stdin.write(json.dumps(call) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def run_documents(server: FakeApi, *more: str) -> subprocess.CompletedProcess[str]:
    """Run over the documents of the fixture of that name."""
    return batchyard("run", *OPTIONS, "--base-url", server.url, *more)
