"""`batchyard emulate` as a process, and what the pytest plugin costs those who do not use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from helpers_upstream import DEADLINE_S
from helpers_yard import Yard

if TYPE_CHECKING:
    from collections.abc import Iterator


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "batchyard", "emulate", *arguments]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    process = subprocess.Popen(
        command("--port", "0", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("BATCHYARD")},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=DEADLINE_S)
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


def create(url: str) -> Any:
    params = {
        "model": "claude-haiku-4-5",
        "max_tokens": 60,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    with anthropic.Anthropic(base_url=url, api_key="any") as client:
        return client.messages.batches.create(requests=[{"custom_id": "a", "params": params}])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_removes_its_state(number: int) -> None:
    with running("--latency", "80000") as (process, ready):
        assert ready["pid"] == process.pid
        create(ready["url"])
        assert Path(ready["data"]).is_dir()
        process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        assert errors == ""
        assert not Path(ready["data"]).exists()


def test_state_that_is_kept_is_there_at_the_next_start(tmp_path: Path) -> None:
    data = tmp_path / "state"
    with running("--data", str(data)) as (process, ready):
        batch = create(ready["url"])
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE_S)
    with (
        running("--data", str(data)) as (_, ready),
        anthropic.Anthropic(base_url=ready["url"], api_key="any") as client,
    ):
        assert client.messages.batches.retrieve(batch.id).id == batch.id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--speed", "0"), "speed"),
        (("--speed", "1e9"), "speed"),
        (("--host", "0.0.0.0"), "loopback"),
        (("--script", "missing.toml"), "missing.toml"),
        (("--seed", "-1"), "--seed"),
        (("--latency", "-1"), "--latency"),
        (("--models", "missing.toml"), "missing.toml"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = subprocess.run(
        command("--port", "0", *arguments),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_two_emulators_do_not_share_a_data_directory(tmp_path: Path) -> None:
    data = str(tmp_path / "state")
    with running("--data", data):
        second = subprocess.run(
            command("--port", "0", "--data", data),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert second.returncode == 3
        assert "in use" in second.stderr


def test_batchyard_testing_imports_no_test_library_and_the_plugin_no_server() -> None:
    code = """
import sys
import batchyard.testing
batchyard.testing.Emulator, batchyard.testing.ManualClock
found = {"pytest", "unittest", "hypothesis"} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)
    code = """
import sys
import batchyard.testing.pytest_plugin
found = {"uvicorn", "starlette", "msgspec", "batchyard.emulator"} & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)


def test_the_example_of_the_fixture_runs_as_a_user_would_run_it(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "test_batches.py"
    (tmp_path / example.name).write_text(example.read_text(encoding="utf-8"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


class _Shown(Yard):
    """A yard before the emulator, as the docs start it, but for ports and folders."""

    def __init__(self, data: Path, url: str, *, has_key: bool) -> None:
        text = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text(encoding="utf-8")
        block = text.partition("### Behind a yard")[2].split("```")[1]
        emulate, serve = block.strip().splitlines()
        assert emulate == "batchyard emulate --port 18700 &"
        words = serve.split()
        self.variable, _, key = words[0].partition("=")
        assert words[words.index("--upstream") + 1] == "emu=http://127.0.0.1:18700"
        super().__init__(data, url, environment={self.variable: key} if has_key else None)

    def command(self) -> list[str]:
        return [word.replace("up=", "emu=") for word in super().command()]


@pytest.mark.parametrize("has_key", [True, False])
def test_a_yard_in_front_of_it_wants_the_key_that_the_docs_show(
    tmp_path: Path, has_key: bool
) -> None:
    with running() as (_, ready), _Shown(tmp_path / "y", ready["url"], has_key=has_key) as yard:
        batch = create(yard.url)
        if has_key:
            assert yard.wait_ended(batch.id)["request_counts"]["succeeded"] == 1
            return
        told = yard.wait_progress(batch.id, lambda progress: progress["paused"])
        refused = "HTTP 401 authentication_error"
        why = f"no key for upstream emu: set {yard.variable} ({refused})"
        assert list(told["paused"].values()) == [why]
        assert why in yard.read_log()
