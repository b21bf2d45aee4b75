"""Processes that share a PostgreSQL database and a bucket, each in a role of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from helpers_yard import QUICK, Yard, has_more

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from helpers_postgres import Postgres
    from helpers_s3 import S3

# Leases that end soon and polls that come often, so that a test need not wait for them. Nobody is
# away, or slow enough to lose a lease, because a busy machine stops one process for a moment.
SHORT = QUICK | {
    "limits:LEASE_US": 7_000_000,
    "limits:RENEW_INTERVAL_S": 0.2,
    "limits:SHARED_RENEW_INTERVAL_S": 0.4,
    "limits:SHARED_POLL_S": 0.1,
    "limits:IDLE_POLL_S": 0.2,
    "limits:SHARED_KEEPER_INTERVAL_S": 0.3,
    "limits:OBJECTS_SYNC_INTERVAL_S": 0.5,
    "limits:LEDGER_AWAY_WAIT_S": 6.0,
    "limits:LEDGER_IDLE_S": 1.0,
    "limits:SLOTS_DIVIDED_MIN": 2,
}


class Member(Yard):
    """One process of a fleet."""

    def __init__(
        self,
        root: Path,
        name: str,
        role: str,
        upstream: str,
        shared: Mapping[str, str],
        bounds: Mapping[str, object] = SHORT,
    ) -> None:
        environment = {**shared, "BATCHYARD_ROLE": role}
        super().__init__(root / name, upstream, slots=16, bounds=bounds, environment=environment)
        self.role = role

    def wait_ready(self) -> Self:
        if self.role != "worker":
            return super().wait_ready()
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline() if has_more(self.process.stdout) else b""
        assert line, f"the worker did not start: {self.read_log()[-4_000:]}"
        hello = json.loads(line)
        assert (hello["role"], hello["pid"]) == ("worker", self.process.pid)
        return self


class Fleet:
    """Two APIs and two workers on one database and one bucket."""

    def __init__(self, root: Path, upstream: str, postgres: Postgres, s3: S3, name: str) -> None:
        self.postgres = postgres
        shared = self.shared = s3.environment | {
            "BATCHYARD_LEDGER": postgres.create(name),
            "BATCHYARD_SEGMENTS": s3.url(name),
        }
        self.apis = [Member(root, f"api{n}", "api", upstream, shared) for n in range(2)]
        self.workers = [Member(root, f"worker{n}", "worker", upstream, shared) for n in range(2)]

    @property
    def members(self) -> list[Member]:
        return [*self.apis, *self.workers]

    def start(self) -> None:
        """Start those that do not run, all at once: they also make the tables at the same time."""
        missing = [member for member in self.members if member.process is None]
        for member in missing:
            member.launch()
        for member in missing:
            member.wait_ready()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            if member.process is not None:
                member.kill()
