"""The process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from crash.checking import written_lines
from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, Yard, assert_answered, poll, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_upstream import Upstream


def refused(yard: Yard) -> tuple[int, str]:
    """Run a yard that must not start; return its exit code and what it said."""
    done = subprocess.run(
        yard.command(), capture_output=True, timeout=DEADLINE_S, check=False, text=True
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_the_first_line_tells_where_it_is(upstream: Upstream, tmp_path: Path) -> None:
    data = tmp_path / "new" / "data dir?#%"
    (tmp_path / "new").mkdir()
    with Yard(data, upstream.url) as yard:
        endpoint = data / "server.json"
        assert json.loads(endpoint.read_bytes())["url"] == yard.url
        assert yard.get(BATCHES).status == 200
        for path in (data, data / "segments", data / "spool"):
            assert path.stat().st_mode & 0o077 == 0
        assert (data / "ledger.db").stat().st_mode & 0o077 == 0
        assert yard.stop() == 0
    assert not endpoint.exists()


def test_a_data_directory_belongs_to_one_process(upstream: Upstream, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Yard(data, upstream.url) as first:
        assert first.process is not None
        pid = first.process.pid
        batch = first.create([request("mine|hold:mine")])
        upstream.wait_calls("mine", 1)
        code, said = refused(Yard(data, upstream.url))
        assert code == 3
        assert f"in use by another batchyard process (pid {pid})" in said
        # The first goes on as if nothing had been.
        upstream.gate("mine").open()
        first.wait_ended(batch["id"])
    assert upstream.counts["mine"] == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--upstream", "nonsense"], "give NAME=URL"),
        (["--upstream", "up=ftp://x"], "an http or https URL, simulated: or vllm: is allowed"),
        (["--upstream", "UP=http://x"], "upstream name"),
        (["--upstream", "up=http://u:p@x"], "no user or password in the URL"),
        (["--upstream", "up=http://x:99999"], "http://x:99999 is not a URL: Port out of range"),
        (["--upstream", "up=http://a..b"], "upstream up: http://a..b is not a URL: "),
        (["--upstream", f"up=http://{'a' * 64}.b"], "label empty or too long"),
        ([], "no upstream is configured"),
        (["--upstream", "up=http://x", "--host", "0.0.0.0"], "only loopback addresses are allowed"),
        (["--upstream", "up=http://x", "--port", "70000"], "a number from 0 to 65535 is allowed"),
        (["--config", "/nonexistent.toml"], "cannot read /nonexistent.toml"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_settings_are_refused_with_code_2(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    yard = Yard(tmp_path / "data", "http://unused")
    command = [*yard.command()[:4], "--data", str(tmp_path / "data"), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False, text=True)
    assert done.returncode == 2
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert ":p@" not in done.stderr, "a password was shown"


def test_a_ledger_of_another_program_is_refused_and_left_alone(
    upstream: Upstream, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "ledger.db").write_bytes(b"something else, of some length, that is no database" * 50)
    before = (data / "ledger.db").read_bytes()
    code, said = refused(Yard(data, upstream.url))
    assert code == 2
    assert "not a ledger" in said
    assert (data / "ledger.db").read_bytes() == before


def test_a_person_at_a_terminal_is_told_the_base_url(upstream: Upstream, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        Yard(tmp_path / "data", upstream.url).command(),
        stdin=subprocess.DEVNULL, stdout=follower, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(follower)
    with os.fdopen(leader, encoding="utf-8") as terminal, process:
        url = json.loads(terminal.readline())["url"]
        process.terminate()
        _, said = process.communicate(timeout=DEADLINE_S)
    assert f"\nready: base_url is {url}; Ctrl-C ends it\n" in said
    assert process.returncode == 0


def test_a_port_that_is_taken_is_refused(upstream: Upstream, tmp_path: Path) -> None:
    yard = Yard(tmp_path / "data", upstream.url)
    command = yard.command()
    command[command.index("--port") + 1] = str(upstream.port)
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False, text=True)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{upstream.port}: Address already in use" in done.stderr
    assert "; --port takes another, 0 a free one" in done.stderr
    assert not yard.data.exists(), "nothing is left of a start that failed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_calls_in_flight_end(
    upstream: Upstream, tmp_path: Path, number: signal.Signals
) -> None:
    """They are recorded; nothing new is sent; the next start sends only the rest."""
    name = f"drain-{number.name}"
    prompts = [f"{name}-{n}|hold:{name}" for n in range(600)]
    with Yard(tmp_path / "data", upstream.url, slots=5) as yard:
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls(name, 5)
        yard.signal(number)
        poll(lambda: "leaving" in yard.read_log(), yard.read_log)
        upstream.gate(name).open()
        assert yard.wait() == 0
        assert "Traceback" not in yard.read_log()
        assert upstream.number(name) == 5

        yard.start()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
    assert upstream.number(name) == 600, "a call was repeated"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_signal_at_the_start_ends_it_at_once(
    tmp_path: Path, role: str, number: signal.Signals
) -> None:
    """By a handler of its own: the first process of a container would not notice else."""
    environment = {key: value for key, value in os.environ.items() if "BATCHYARD" not in key}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(DEADLINE_S)
        ledger = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/yard"
        stores = ["--ledger", ledger, "--segments", "s3://bucket/yard", "--data", str(tmp_path)]
        others = ["--role", role, "--port", "0", "--upstream", "sim=simulated:"]
        process = subprocess.Popen(
            [sys.executable, "-m", "batchyard", "serve", *stores, *others],
            env=environment | {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        )
        try:
            with closing(silent.accept()[0]):  # it waits for its ledger
                process.send_signal(number)
                assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()


def test_requests_that_wait_for_a_retry_do_not_hold_up_the_end(
    upstream: Upstream, tmp_path: Path
) -> None:
    prompts = ["waiting-1|429:900,message", "waiting-2"]
    with Yard(tmp_path / "data", upstream.url) as yard:
        batch = yard.create([request(prompt) for prompt in prompts])
        yard.wait_progress(batch["id"], lambda progress: progress["results"] == 1)
        assert yard.stop() == 0
        yard.start()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
    assert upstream.counts["waiting-2"] == 1


def test_streams_of_progress_and_idle_connections_do_not_hold_up_the_end(
    upstream: Upstream, tmp_path: Path
) -> None:
    bounds = {"server.run:CLOSE_S": 1_000, "server.run:_LEAVE_MAX_S": 20}
    with Yard(tmp_path / "data", upstream.url, bounds=bounds) as yard:
        batch = yard.create([request("watched|429:900,message")])
        with closing(yard.connect()) as idle, closing(yard.connect()) as watching:
            idle.request("GET", BATCHES, headers=HEADERS)
            assert idle.getresponse().read()
            headers = HEADERS | {"accept": "text/event-stream"}
            watching.request("GET", f"{BATCHES}/{batch['id']}/progress", headers=headers)
            stream = watching.getresponse()
            assert stream.readline() == b"event: progress\n"
            yard.signal(signal.SIGTERM)
            assert b"in_progress" in stream.read(), "it is whole, not cut"
            assert yard.wait() == 0


def test_a_second_signal_ends_it_at_once_and_loses_nothing(
    upstream: Upstream, tmp_path: Path
) -> None:
    prompts = ["second-1|hold:second", "second-2"]
    with Yard(tmp_path / "data", upstream.url) as yard:
        batch = yard.create([request(prompt) for prompt in prompts])
        poll(lambda: written_lines(yard) == 1, yard.read_log)
        yard.signal(signal.SIGTERM)
        poll(lambda: "leaving" in yard.read_log(), yard.read_log)
        yard.signal(signal.SIGTERM)
        assert yard.wait() == 1
        upstream.gate("second").open()
        yard.start()
        yard.wait_ended(batch["id"])
        assert_answered(yard.results(batch["id"]), prompts)
    assert (upstream.counts["second-1"], upstream.counts["second-2"]) == (2, 1)


def test_closing_standard_input_ends_a_yard_on_a_lifeline(
    upstream: Upstream, tmp_path: Path
) -> None:
    with Yard(tmp_path / "data", upstream.url, lifeline=True) as yard:
        assert yard.get(BATCHES).status == 200
        yard.close_input()
        assert yard.wait() == 0


def test_without_a_lifeline_standard_input_does_not_matter(
    upstream: Upstream, tmp_path: Path
) -> None:
    """Its standard input is /dev/null, which is at its end from the start."""
    with Yard(tmp_path / "data", upstream.url) as yard:
        batch = yard.create([request("no-lifeline")])
        yard.wait_ended(batch["id"])


def test_leftovers_of_creates_that_never_were_are_removed(
    upstream: Upstream, tmp_path: Path
) -> None:
    with Yard(tmp_path / "data", upstream.url) as yard:
        batch = yard.create([request("owned")])
        yard.wait_ended(batch["id"])
        owned = yard.files()
        assert yard.stop() == 0
        spread = hashlib.sha256(b"msgbatch_01leftover").hexdigest()[:2]
        leftover = yard.data / "segments" / spread / "msgbatch_01leftover"
        (leftover / "r").mkdir(parents=True)
        (leftover / ".requests.0123").write_bytes(b"half")
        yard.start()
        assert yard.files() == owned
        assert_answered(yard.results(batch["id"]), ["owned"])


def test_a_batch_of_an_upstream_that_was_taken_out_goes_to_the_next(
    upstream: Upstream, tmp_path: Path
) -> None:
    """The name of the upstream in the configuration changes between two starts."""
    prompts = ["renamed-1|hold:renamed"]
    yard = Yard(tmp_path / "data", upstream.url)
    with yard:
        batch = yard.create([request(prompt) for prompt in prompts])
        upstream.wait_calls("renamed", 1)
    upstream.gate("renamed").open()
    command = [part.replace("up=", "other=", 1) for part in yard.command()]
    renamed = Yard(tmp_path / "data", upstream.url)
    renamed.command = lambda: command  # type: ignore[method-assign]
    with renamed:
        renamed.wait_ended(batch["id"])
        assert_answered(renamed.results(batch["id"]), prompts)
