"""The probe against servers over real HTTP: a yard, a right one, and ones with one fault each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from batchyard.cli import probe_table
from batchyard.probe import http, run
from helpers_ports import Port
from helpers_probe import (
    BATCHES,
    KEY,
    Answer,
    Call,
    RightServer,
    breaks,
    differing,
    probed,
    put,
    session,
    turn,
    when,
)
from helpers_upstream import DEADLINE_S
from helpers_yard import Yard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Changes = Callable[[RightServer], None]

IDS = {point.title: point.id for point in run.POINTS}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC", "BATCHYARD"))}
    return subprocess.run(
        [sys.executable, "-m", "batchyard", "probe", *arguments],
        env=clean | {"PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


# A server that is right --------------------------------------------------------------------------


def test_nothing_differs_at_a_server_that_keeps_the_contract() -> None:
    with RightServer() as server:
        findings = probed(server.url)
        assert differing(findings) == {}
        assert {f.reason for f in findings if f.outcome == "not run"} == {
            "there are fewer than 20 batches"
        }
        assert server.batches == {}, "what the probe made is gone"
        assert len(server.deleted) == 5


def test_reading_only_makes_nothing_and_asks_what_needs_nothing() -> None:
    with RightServer() as server:
        findings = probed(server.url, may_create=False)
        assert differing(findings) == {}
        assert sum(f.outcome == "holds" for f in findings) >= 50
        assert server.batches == {}
        assert server.deleted == []


def test_reading_only_looks_at_a_batch_that_is_there() -> None:
    with RightServer() as server:
        asked = session(server.url)
        asked.post({"requests": [{"custom_id": "a", "params": {}}]})
        findings = probed(server.url, may_create=False)
        assert differing(findings) == {}
        held = {f.point.title for f in findings if f.outcome == "holds"}
        assert "expires_at is created_at + 24 h, to the microsecond" in held


# Servers that are no servers ---------------------------------------------------------------------


@contextmanager
def raw_server(reply: bytes | None) -> Iterator[str]:
    """Answer every connection with these bytes and close it; None holds it and says nothing."""
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if reply is None:
                held.append(connection)
                continue
            with connection, suppress(OSError):
                connection.recv(65_536)
                connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE_S)
            for connection in held:
                connection.close()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"\x16\x03\x01 this is no HTTP\r\n\r\n", "the answer is not HTTP"),
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "cut after 4 bytes"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "cut after 0 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, "the answer is not HTTP"),
        (None, "no whole answer within 0.3 s"),
    ],
)
def test_what_is_no_http_server_cannot_be_reached(reply: bytes | None, said: str) -> None:
    with raw_server(reply) as url:
        done = command(url, "--timeout", "0.3")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"batchyard: {url} cannot be reached: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_sends_a_byte_now_and_then_meets_the_deadline_of_the_call() -> None:
    """No single read of it ever times out."""
    stop = threading.Event()

    def drip(listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                while not stop.wait(0.02):
                    connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        asked = session(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5)
        with pytest.raises(http.NoAnswer, match=r"no whole answer within 0\.5 s"):
            asked.get()
        stop.set()
        thread.join(DEADLINE_S)


def test_a_server_without_tls_cannot_be_reached_with_it() -> None:
    with raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        done = command(url.replace("http:", "https:"))
    assert done.returncode == 4
    assert "cannot be reached: TLS failed: " in done.stderr


def test_a_closed_port_cannot_be_reached() -> None:
    with Port() as nobody:
        done = command(nobody.url)
    assert done.returncode == 4
    assert done.stderr == f"batchyard: {nobody.url} cannot be reached: Connection refused\n"


@pytest.mark.parametrize("seed", range(8))
def test_json_of_any_shape_is_a_difference_and_no_crash(seed: int) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    words = [
        "id", "type", "error", "message", "data", "has_more", "first_id", "last_id", "result",
        "request_counts", "processing", "succeeded", "processing_status", "created_at",
        "expires_at", "ended_at", "results_url", "custom_id", "usage", "request_id",
    ]  # fmt: skip
    leaves = [
        None, True, 0, -1, 1.5, "", "ended", "in_progress", "errored", "msgbatch_1",
        "2026-11-22T00:00:00Z", "2026-13-99T99:99:99.000000Z", "http://[", "/../x", "\ud800",
    ]  # fmt: skip

    def value(depth: int) -> Any:
        kind = random.random()
        if depth == 0 or kind < 0.3:
            return random.choice(leaves)
        if kind < 0.5:
            return [value(depth - 1) for _ in range(random.randrange(4))]
        return {random.choice(words): value(depth - 1) for _ in range(random.randrange(9))}

    def fault(_server: RightServer, call: Call, answer: Answer) -> None:
        answer.status = random.choice([200, 200, 200, 404])
        body = {word: value(2) for word in words} if random.random() < 0.7 else value(3)
        answer.body = b"\n".join(json.dumps(body).encode() for _ in range(random.randrange(1, 3)))

    with RightServer(fault) as server:
        asked = session(server.url)
        findings = run.ask(asked, may_create=True, wait_s=0)
        assert len(findings) == len(run.POINTS)
        assert len(differing(findings)) > 50
        for finding in findings:
            probe_table.event(finding)


def test_a_server_that_dies_is_not_asked_to_the_end() -> None:
    def dies(server: RightServer, _call: Call, answer: Answer) -> None:
        if len(server.calls) > 60:
            breaks(b"")(answer)

    with RightServer(dies) as server:
        done = command(server.url, ANTHROPIC_API_KEY=KEY)
        assert len(server.calls) < 80
    assert done.returncode == 1
    assert "not run: the server stopped answering" in done.stdout
    assert "left: msgbatch_01" in done.stderr
    assert "Traceback" not in done.stderr


# The command -------------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_point_and_a_sum() -> None:
    with RightServer() as server:
        done = command(server.url, ANTHROPIC_API_KEY=KEY)
        assert server.batches == {}
    number = len(run.POINTS)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith((" ✓", " ·"))]
    assert len(rows) == number
    assert done.stdout.endswith(f"\n\n{number - 1} of {number} hold, 1 not run\n")
    assert "makes up to 7 batches with up to 25 requests at http://127.0.0.1" in done.stderr
    assert "list price as batches: $0.000420 at most" in done.stderr
    assert "deleted 5 of the 5 batches that were made" in done.stderr
    assert KEY not in done.stdout + done.stderr


def test_a_difference_is_shown_with_the_request_that_shows_it() -> None:
    fault = when(lambda c, _: c.query.get("limit") == "1001", turn(418, "teapot", "\x1b[2Jno"))
    with RightServer(fault) as server:
        done = command(server.url, ANTHROPIC_API_KEY=KEY)
        at = done.stdout.index(" ~ ")
        row, expected, got, curl, *_ = done.stdout[at:].splitlines()
        assert done.returncode == 0, "a recommendation does not fail"
        assert row.endswith("limit=1001: 400 with the text in the same style  (recommended only)")
        words = "400 invalid_request_error: limit: Input should be less than or equal to 1000"
        assert expected.split(maxsplit=1) == ["expected", f"{words}  [recommended]"]
        assert got.split(maxsplit=1) == ["got", r"418 teapot: \x1b[2Jno"]
        assert '-H "x-api-key: $ANTHROPIC_API_KEY"' in curl
        assert "1 differs (1 recommended only)" in done.stdout
        if shutil.which("curl"):
            again = subprocess.run(
                ["sh", "-c", curl], env=os.environ | {"ANTHROPIC_API_KEY": KEY},
                capture_output=True, timeout=DEADLINE_S, check=True,
            )  # fmt: skip
            assert again.stdout.startswith(b"HTTP/1.1 418")
            assert server.calls[-1].headers["x-api-key"] == KEY


def test_a_difference_in_what_is_documented_is_exit_code_1_and_json_tells_it() -> None:
    fault = when(lambda c, a: c.is_results and a.status == 200, put(content_type="text/plain"))
    with RightServer(fault) as server:
        done = command(server.url, "--json", ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["id"] for event in events] == [point.id for point in run.POINTS]
    (failing,) = [event for event in events if event["outcome"] == "differs"]
    path = failing["request"].split()[2]
    assert failing == {
        "id": IDS["they are application/x-jsonl"],
        "section": "results: the call",
        "title": "they are application/x-jsonl",
        "source": "observed",
        "outcome": "differs",
        "fails": True,
        "expected": "content-type: application/x-jsonl",
        "got": "text/plain",
        "request": f'curl -isS {path} -H "x-api-key: $ANTHROPIC_API_KEY" '
        "-H 'anthropic-version: 2023-06-01'",
    }


def test_the_key_is_not_shown_when_a_server_repeats_it() -> None:
    fault = when(lambda c, _: c.query.get("limit") == "0", turn(400, "x", f"you sent {KEY}"))
    with RightServer(fault) as server:
        done = command(server.url, "--no-create", ANTHROPIC_API_KEY=KEY)
    assert "400 x: you sent $ANTHROPIC_API_KEY" in done.stdout
    assert KEY not in done.stdout + done.stderr


def test_a_key_that_is_refused_is_said_at_once() -> None:
    with RightServer() as server:
        done = command(server.url, ANTHROPIC_API_KEY="sk-another-key")
        assert len(server.calls) == 2, "both forms were tried, and no more"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "batchyard: the key in ANTHROPIC_API_KEY is refused: "
        "401 authentication_error: API key is invalid.\n"
    )


def test_a_server_that_knows_only_bearer_keys_is_asked_with_them() -> None:
    fault = when(
        lambda c, _: "x-api-key" in c.headers, turn(401, "authentication_error", "use Bearer")
    )
    with RightServer(fault) as server:
        found = differing(probed(server.url))
    assert set(found) == {
        "x-api-key with version 2023-06-01 is accepted",
        "x-api-key goes with version 2026-10-21 too",
        # The rest is asked under the other version, where the parameters are gone.
        "sampling parameters are fine under version 2023-06-01",
    }


def test_keep_leaves_the_batches() -> None:
    with RightServer() as server:
        done = command(server.url, "--keep", ANTHROPIC_API_KEY=KEY)
        assert done.returncode == 0
        # One was deleted to see what deleting does.
        assert len(server.batches) == 4
        assert all(name in done.stderr for name in server.batches)


def test_who_leaves_while_it_waits_leaves_nothing_behind() -> None:
    with RightServer() as server:
        server.looks, server.ends_unseen = 1_000_000, True
        process = subprocess.Popen(
            [sys.executable, "-m", "batchyard", "probe", server.url],
            env=os.environ | {"ANTHROPIC_API_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert any("waiting for" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, out) == (130, "")
        assert "deleted 5 of the 5 batches that were made" in err
        assert "Traceback" not in err
        assert server.batches == {}


def test_what_should_have_been_refused_is_removed_even_when_nothing_may_be_made() -> None:
    with RightServer() as server:
        server.knows_duplicates = False
        done = command(server.url, "--no-create", ANTHROPIC_API_KEY=KEY)
        assert server.batches == {}
        assert len(server.deleted) == 1
    assert done.returncode == 1
    assert "deleted 1 of the 1 batches that were made" in done.stderr


# A server on another machine: to the probe, every host but localhost, 127.0.0.1 and ::1 is one.


@pytest.fixture
def foreign() -> Iterator[RightServer]:
    with RightServer(host="127.0.0.2") as server:
        yield server


def test_a_server_on_another_machine_may_not_take_any_key(foreign: RightServer) -> None:
    def open_(_server: RightServer, call: Call, answer: Answer) -> None:
        if answer.status == 401 and "x-api-key" in call.headers:
            answer.status, answer.body = 200, b'{"data":[]}'

    foreign.fault = open_
    found = differing(probed(foreign.url, may_create=False))
    assert list(found) == ["a wrong key: 401 authentication_error"]


def test_nothing_is_made_at_another_machine_unless_it_is_asked_for(foreign: RightServer) -> None:
    done = command(foreign.url, ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 0
    assert "(not run: needs --create)" in done.stdout
    assert done.stderr == ""
    assert foreign.batches == {}
    assert foreign.deleted == []
    sent = [call for call in foreign.calls if call.method == "POST" and call.path == BATCHES]
    assert sent, "what must be refused is sent"
    for call in sent:
        assert b"claude-haiku" not in call.body, "nothing that could run"


def test_batches_at_another_machine_are_asked_for(foreign: RightServer) -> None:
    done = command(foreign.url, "--create", ANTHROPIC_API_KEY=KEY)
    assert (done.returncode, done.stdout) == (2, "")
    assert "$0.000420 at most" in done.stderr
    assert "nothing was made: there is nobody to ask, and --yes is not given" in done.stderr
    assert foreign.batches == {}
    assert all(call.method == "GET" for call in foreign.calls)


def test_batches_at_another_machine_are_made_with_yes(foreign: RightServer) -> None:
    done = command(foreign.url, "--create", "--yes", ANTHROPIC_API_KEY=KEY)
    assert done.returncode == 0, done.stdout
    assert len(foreign.deleted) == 5


def test_a_model_without_a_price_is_said_to_have_none(foreign: RightServer) -> None:
    done = command(foreign.url, "--create", "--model", "mine", ANTHROPIC_API_KEY=KEY)
    assert "list price as batches: unknown" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.2:9"], "there is no API key: set ANTHROPIC_API_KEY"),
        (["127.0.0.1:9"], "is not a base URL"),
        (["ftp://127.0.0.1"], "is not a base URL"),
        (["http://"], "is not a base URL"),
        (["http://127.0.0.1:99999"], "is not a base URL"),
        (["http://user:secret@127.0.0.1"], "may hold no query and no password"),
        (["http://127.0.0.1/\n"], "is not a base URL"),
        (["http://127.0.0.1", "--timeout", "0"], "--timeout"),
        ([], "Missing argument"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], said: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


# The yard ----------------------------------------------------------------------------------------

# Points that a yard cannot be asked, and why.
NOT_AT_A_YARD = {
    "a wrong key: 401 authentication_error": "this server takes any key on loopback",
    "an unknown workspace: 404 with the known text": "this server takes any key on loopback",
    "20 batches at most unless `limit` says otherwise": "there are fewer than 20 batches",
}


def test_every_point_holds_at_a_yard(tmp_path: Path) -> None:
    """Two slots and a slow model, so that a batch can be canceled before all of it was sent."""
    with Yard(tmp_path / "data", "simulated:?latency=0.7", slots=2) as yard:
        done = command(yard.url, "--json")
        events = [json.loads(line) for line in done.stdout.splitlines()]
        differs = {e["title"]: e for e in events if e["outcome"] == "differs"}
        not_run = {e["title"]: e["reason"] for e in events if e["outcome"] == "not_run"}
        assert differs == {}
        # On a busy machine a batch may end before it is deleted as a canceling one.
        not_run.pop("canceling: 400 too", None)
        assert not_run == NOT_AT_A_YARD
        assert (done.returncode, len(events)) == (0, len(run.POINTS))
        assert yard.get(BATCHES).json()["data"] == []
        assert "Traceback" not in yard.read_log()


def test_a_quick_yard_ends_before_some_points_can_be_asked_and_none_of_them_differs(
    tmp_path: Path,
) -> None:
    with Yard(tmp_path / "data", "simulated:") as yard:
        done = command(yard.url, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    differ = {e["title"]: e for e in events if e["outcome"] == "differs"}
    # It may end between the question whether it is canceling and the delete.
    differ.pop("canceling: 400 too", None)
    assert differ == {}
    assert len(events) == len(run.POINTS)
