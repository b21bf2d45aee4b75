"""The emulator inside the process of a test: a thread with a yard, and handles to turn it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import uvloop

from batchyard import limits
from batchyard.emulator import script as scripts
from batchyard.emulator.run import Emulation, emulate
from batchyard.errors import ConfigError
from batchyard.server import place

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from batchyard.emulator.machine import Machine

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Emulator:
    """A Message Batches API in this process, on a free port of the loopback address.

    Use it in a `with` block, or call `start` and `close`. Its clock runs as fast as the machine's,
    or `speed` times that, and `advance` turns it. It may be used from any thread but its own.
    """

    def __init__(  # noqa: PLR0913 - the settings, by keyword
        self,
        *,
        script: str | Path | None = None,
        seed: int | None = None,
        speed: float = 1.0,
        latency: str | float = 0.0,
        words: int = 180,
        slots: int = 64,
        fixtures: bool = False,
        requests_per_minute: int = limits.REQUESTS_PER_MINUTE_DEFAULT,
        queued_requests: int = limits.QUEUED_REQUESTS_DEFAULT,
    ) -> None:
        """Describe an emulator.

        Args:
            script: what becomes of which request or call: the name of a `.toml` file, or TOML.
            seed: another seed, other answers; the script's, or 0, if None.
            speed: seconds of its clock in a second of the machine.
            latency: what an answer takes of its clock: seconds, or such as `30s`, `2h`.
            words: typical length of an answer.
            slots: requests that are answered at once, for each model.
            fixtures: what the test suites of the official SDKs expect.
            requests_per_minute: calls of a workspace to the batch endpoints.
            queued_requests: requests of a workspace in batches that have not ended.

        Raises:
            ConfigError: the script has a mistake, or a setting is out of its range.
        """
        self._what = Emulation(
            data=Path(),  # made at the start
            script=_read(script),
            seed=seed,
            speed=speed,
            latency=_seconds(latency),
            words=words,
            slots=slots,
            fixtures=fixtures,
            requests_per_minute=requests_per_minute,
            queued_requests=queued_requests,
        )
        self._data: Path | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._url = ""
        self._machine: Machine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start it; return when it answers."""
        if self._thread is not None:
            raise RuntimeError("this emulator has been started before; make another one")
        self._data = Path(tempfile.mkdtemp(prefix="batchyard-"))
        self._what = replace(self._what, data=self._data)
        self._thread = threading.Thread(target=self._run, name="batchyard-emulator", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def close(self) -> None:
        """End it, and remove what it stored. Safe to repeat."""
        if self._thread is not None:
            if self._loop is not None and self._leaving is not None and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._leaving.set)
            self._thread.join()
        if self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)

    @property
    def url(self) -> str:
        """The `base_url` of clients."""
        self._running()
        return self._url

    @property
    def now(self) -> datetime:
        """The time of its clock."""
        return _EPOCH + timedelta(microseconds=self._running().clock.now_us())

    def advance(self, duration: str | float) -> None:
        """Turn its clock; return when all that this brings about has happened.

        Args:
            duration: seconds, or such as `25h`, `90m`, `1h30m`, `30d`.

        Raises:
            InvalidRequest: not a duration.
        """
        self._call(self._running().advance(duration))

    def settle(self) -> None:
        """Wait until it has done all that it can do before time passes."""
        self._call(self._running().settle())

    def follow(self, script: str | Path) -> None:
        """Replace the script; its counts start anew.

        Args:
            script: a file, or the text of one.

        Raises:
            ConfigError: the script has a mistake.
        """
        machine, found = self._running(), _read(script)
        self._call(_soon(lambda: machine.follow(found)))

    def pay_in(self, *, requests: int | None = None, usd: float | None = None) -> None:
        """Pay into an account that a script's `[credit]` has opened.

        Raises:
            InvalidRequest: the script says nothing of credit, or counts it otherwise.
        """
        machine = self._running()
        self._call(_soon(lambda: machine.pay_in(requests=requests, usd=usd)))

    def _running(self) -> Machine:
        if self._machine is None:
            raise RuntimeError("this emulator has not been started")
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError("this emulator has ended; make another one")
        return self._machine

    def _call(self, work: Coroutine[object, object, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _run(self) -> None:
        try:
            with place.lock(self._what.data):
                uvloop.run(self._main())
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leaving = asyncio.Event()
        await emulate(self._what, leaving=self._leaving, tell=self._tell)

    def _tell(self, url: str, machine: Machine) -> None:
        self._url, self._machine = url, machine
        self._ready.set()


def _read(script: str | Path | None) -> scripts.Script:
    if script is None:
        return scripts.Script()
    if isinstance(script, Path) or (script.endswith(".toml") and "\n" not in script):
        return scripts.load(Path(script))
    return scripts.parse(script)


def _seconds(latency: str | float) -> float:
    try:
        return scripts.seconds_of(latency)
    except ValueError as error:
        raise ConfigError(f"latency: {error}") from None


async def _soon(work: Callable[[], T]) -> T:
    return work()
