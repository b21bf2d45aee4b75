"""Stands in for a pooler before PostgreSQL, in transaction mode: each has a session of its own.

Clients speak to it as to a server. When a transaction begins, its client is lent a session, never
the one that it had before; when it ends, the session is looked through for what it has left there,
emptied, and free for others.
"""

from __future__ import annotations

import contextlib
import select
import struct
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING

from helpers_relay import Relay

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

_HEAD = struct.Struct("!cI")
_ENCRYPTION = {80877103, 80877104}  # asked for before the start: TLS, GSSAPI
# What poolers pass on to their clients of a server's settings.
_TOLD = (b"client_encoding", b"DateStyle", b"TimeZone", b"standard_conforming_strings",
         b"server_version", b"integer_datetimes")  # fmt: skip
_LEFT = """
SELECT concat_ws(', ',
  (SELECT string_agg('prepared ' || name, ', ') FROM pg_prepared_statements),
  (SELECT string_agg('cursor ' || name, ', ') FROM pg_cursors WHERE name <> ''),
  (SELECT string_agg('listens ' || c, ', ') FROM pg_listening_channels() AS c),
  (SELECT string_agg('setting ' || name, ', ') FROM pg_settings WHERE source = 'session'),
  (SELECT string_agg('lock', ', ') FROM pg_locks
   WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
  (SELECT string_agg('table ' || relname, ', ') FROM pg_class
   WHERE relnamespace = pg_my_temp_schema()))
"""


class _Stream:
    """Messages of one side."""

    def __init__(self, side: socket.socket) -> None:
        self.socket = side
        self._data = b""

    def fill(self) -> None:
        """Receive something.

        Raises:
            OSError: nothing more comes.
        """
        more = self.socket.recv(65_536)
        if not more:
            raise ConnectionResetError
        self._data += more

    def messages(self) -> Iterator[bytes]:
        """Yield what is there whole, the type of each first."""
        while len(self._data) >= _HEAD.size:
            length = 1 + _HEAD.unpack_from(self._data)[1]
            if len(self._data) < length:
                return
            message, self._data = self._data[:length], self._data[length:]
            yield message

    def until_ready(self) -> list[bytes]:
        """Return the messages up to the one that says the server is ready."""
        found: list[bytes] = []
        while not found or found[-1][:1] != b"Z":
            self.fill()
            found += self.messages()
        return found

    def startup(self) -> bytes:
        """Return the first message of a client, which has no type."""
        while True:
            while len(self._data) < 8 or len(self._data) < struct.unpack("!I", self._data[:4])[0]:
                self.fill()
            length, code = struct.unpack("!II", self._data[:8])
            message, self._data = self._data[:length], self._data[length:]
            if code not in _ENCRYPTION:
                return message
            self.socket.sendall(b"N")


class _Session:
    """A session of the server."""

    def __init__(self, side: socket.socket, startup: bytes) -> None:
        self.stream = _Stream(side)
        side.sendall(startup)
        found = self.stream.until_ready()
        told = [m for m in found if m[:1] == b"S" and m[5:].startswith(_TOLD)]
        self.greeting = b"".join([found[0], *told, found[-1]])

    def ask(self, text: str) -> bytes:
        """Run a statement; return the first value of its first row."""
        data = text.encode() + b"\0"
        self.stream.socket.sendall(_HEAD.pack(b"Q", 4 + len(data)) + data)
        rows = [m for m in self.stream.until_ready() if m[:1] == b"D"]
        return rows[0][11:] if rows else b""


class Pooler(Relay):
    """A port that leads to another one, by few sessions for any number of clients."""

    def __init__(self, port: int, sessions: int = 2) -> None:
        super().__init__(port)
        self._most = sessions
        self._opened: Counter[bytes] = Counter()
        self._idle: dict[bytes, deque[_Session]] = {}
        self._changed = threading.Condition()
        self.transactions = 0
        """Those that have ended."""
        self.left: list[str] = []
        """What was found in a session after one."""

    def serve(self, client: socket.socket) -> None:
        stream = _Stream(client)
        startup = stream.startup()
        last = self._lend(startup, None)
        self._take_back(startup, last)
        client.sendall(last.greeting)
        while True:
            stream.fill()
            asked = list(stream.messages())
            if asked and asked[0][:1] == b"X":
                return
            if asked:
                last = self._lend(startup, last)
                try:
                    answer = self._transact(stream, last.stream, asked)
                except OSError:
                    self._drop(startup, last)
                    raise
                self._take_back(startup, last)
                client.sendall(answer)

    def _transact(self, client: _Stream, server: _Stream, asked: list[bytes]) -> bytes:
        """Pass on what both say until the server is ready and in no transaction; return the rest.

        The rest is for the client when the session has been looked through.
        """
        answers_due, is_complete = 0, True
        while True:
            for message in asked:
                is_complete = message[:1] in (b"Q", b"S")
                answers_due += is_complete
            server.socket.sendall(b"".join(asked))
            asked = []
            ready = select.select([client.socket, server.socket], [], [])[0]
            if server.socket in ready:
                server.fill()
                told = list(server.messages())
                ends = [message for message in told if message[:1] == b"Z"]
                answers_due -= len(ends)
                if ends and ends[-1][5:] == b"I" and is_complete and not answers_due:
                    return b"".join(told)
                client.socket.sendall(b"".join(told))
            if client.socket in ready:
                client.fill()
                asked = list(client.messages())

    def _lend(self, startup: bytes, last: _Session | None) -> _Session:
        """Return a session that is not the last one of a client."""
        with self._changed:
            idle = self._idle.setdefault(startup, deque())
            while True:
                for session in idle:
                    if session is not last:
                        idle.remove(session)
                        return session
                if self._opened[startup] < self._most:
                    self._opened[startup] += 1
                    break
                self._changed.wait()
        return _Session(self.connect(), startup)

    def _take_back(self, startup: bytes, session: _Session) -> None:
        left = session.ask(_LEFT).decode()
        session.ask("DISCARD ALL")
        with self._changed:
            self.transactions += 1
            if left:
                self.left.append(left)
            self._idle[startup].append(session)
            self._changed.notify_all()

    def _drop(self, startup: bytes, session: _Session) -> None:
        with contextlib.suppress(OSError):
            session.stream.socket.close()
        with self._changed:
            self._opened[startup] -= 1
            self._changed.notify_all()
