"""A fake server, a clock that only waiting moves, and runs against them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from batchyard.client.api import Api
from batchyard.client.asked import config_of
from batchyard.client.inputs.documents import files
from batchyard.client.inputs.template import Template
from batchyard.client.planning.plan import Settings, make
from batchyard.client.running import folder, journal
from batchyard.client.running.pipeline import Pipeline
from client.fake_api import FakeApi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batchyard.client.results.receipt import Receipt
    from batchyard.client.running.updates import Update


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "BATCHYARD_CRASH_AT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def server() -> Iterator[FakeApi]:
    api = FakeApi()
    yield api
    api.close()


@pytest.fixture
def paid() -> Iterator[FakeApi]:
    """A yard that charges the price of a batch."""
    api = FakeApi(is_yard=True, billing="batch", follows_time=True)
    yield api
    api.close()


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three documents and a prompt in the folder of now, and a key; see `run_documents`."""
    (tmp_path / "docs").mkdir()
    for name in ("a.md", "b.md", "c.md"):
        (tmp_path / "docs" / name).write_text(f"text of {name}")
    (tmp_path / "p.j2").write_text("About {{ text }}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("BATCHYARD_TEST_HURRY", "50")
    return tmp_path


@dataclass
class WaitingClock:
    """Stands still, except when somebody waits; the server's time goes along."""

    server: FakeApi
    elapsed_s: float = 0.0

    def now_us(self) -> int:
        return int(self.server.now.timestamp() * 1_000_000)

    def monotonic_s(self) -> float:
        return self.elapsed_s

    async def sleep(self, seconds: float) -> None:
        self.pause(seconds)

    def pause(self, seconds: float) -> bool:
        self.elapsed_s += seconds
        self.server.now += timedelta(seconds=seconds)
        return False


@dataclass
class Bench:
    """A folder of documents, an output folder, and runs of them."""

    path: Path
    server: FakeApi
    clock: WaitingClock
    updates: list[Update] = field(default_factory=list)
    pause: Callable[[float], bool] | None = None
    retries: int = 3
    budget_micros: int | None = None
    approved: tuple[int, int] | None = (10**9, 10**9)
    params: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.docs = self.path / "docs"
        (self.docs / "sub").mkdir(parents=True)
        for name in ("a.md", "b.md", "sub/c.md"):
            (self.docs / name).write_text(f"text of {name}")
        self.prompt = self.path / "report.md.j2"
        self.prompt.write_text("Report on {{ name }}: {{ text }}")
        self.out = self.path / "reports"
        self.files = folder.Files(self.out)

    def plan(
        self, shard_requests: int = 100, model: str = "claude-opus-4-8", max_tokens: int = 100
    ):
        settings = Settings(
            model=model, max_tokens=max_tokens, shard_requests=shard_requests, params=self.params
        )
        documents = files(str(self.docs)).read(outside=self.out)
        return make(documents, Template(self.prompt), None, settings)

    def writer(self, on_orphan: journal.OrphanPolicy = "wait", **options) -> folder.Journal:
        """Open the journal, beginning the run if there is none."""
        self.out.mkdir(exist_ok=True)
        writer = folder.Journal(self.files, self.clock)
        if not writer.state.run:
            plan = self.plan(**options)
            config = config_of(
                plan,
                prompt=self.prompt,
                system=None,
                base_url=self.server.url,
                local=False,
                upstreams=(),
            )
            folder.start(writer, plan, config, approved=self.approved)
        terms = journal.Terms(
            budget_micros=self.budget_micros, retries=self.retries, on_orphan=on_orphan
        )
        writer.record(terms)
        return writer

    def pipeline(self, writer: folder.Journal, *, grace_s: float = 120.0) -> Pipeline:
        pause = self.pause or self.clock.pause
        api = Api(self.server.url, "test-key", pause=pause, now_us=self.clock.now_us)
        return Pipeline(
            writer,
            api,
            clock=self.clock,
            pause=pause,
            tell=self.updates.append,
            grace_s=grace_s,
        )

    def run(self, *, grace_s: float = 120.0, **options) -> Receipt:
        writer = self.writer(**options)
        try:
            return self.pipeline(writer, grace_s=grace_s).run()
        finally:
            writer.close()

    def reports(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.out)): path.read_text()
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and ".batchyard" not in path.parts and path.suffix == ".md"
        }


@pytest.fixture
def bench(tmp_path: Path, server: FakeApi) -> Bench:
    return Bench(tmp_path, server, WaitingClock(server))
