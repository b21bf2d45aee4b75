"""A PostgreSQL server of its own on loopback, from the programs that the machine has."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from helpers_ports import Port

_PLACES = "/usr/lib/postgresql/*/bin"
_DEADLINE_S = 120.0
_PR_SET_PDEATHSIG = 1


def programs() -> Path:
    """Return the folder of `initdb` and `postgres`: the newest that is there."""
    found = sorted(Path("/").glob(_PLACES.lstrip("/") + "/initdb"), key=_version)
    if found:
        return found[-1].parent
    named = shutil.which("initdb")
    assert named, "these tests need PostgreSQL: tests/store/get-postgres installs it"
    return Path(named).resolve().parent


def _version(path: Path) -> float:
    return float(path.parts[-3])


class Postgres:
    """A cluster in a folder of its own, which goes with it."""

    def __init__(self, **settings: str) -> None:
        self._settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="batchyard-postgres-"))
        self._port = Port()  # of this server also while it is killed
        self.port = self._port.number
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._user = _unprivileged() if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._run("initdb", "-D", str(self._data), "-U", "batchyard", "-A", "trust", "-E", "UTF8",
                  "--no-locale", "--no-sync")  # fmt: skip

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database."""
        return f"postgresql://batchyard@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
        } | self._settings
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(programs() / "postgres"), "-D", str(self._data), "-p", str(self.port), *flags],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder,
                user=self._user, start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self._process is not None
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill the server with all its children, at once."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        for child in _session(self._process.pid):
            os.kill(child, signal.SIGKILL)
        self._process.wait()
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def create(self, database: str) -> str:
        """Make an empty database and return its address."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)

    def stop(self) -> None:
        """Stop it, and remove what it wrote."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self._port.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """Return what the server has said."""
        return (self.folder / "log").read_text(errors="replace")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs() / program), *arguments],
            check=True, stdout=subprocess.DEVNULL, cwd=self.folder, user=self._user,
        )  # fmt: skip


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _unprivileged() -> str:
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _session(leader: int) -> list[int]:
    """Return the processes of a session: its children have groups of their own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and stat.parent.name != str(leader):
            found.append(int(stat.parent.name))
    return found
