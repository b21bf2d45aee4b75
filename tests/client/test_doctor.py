"""What `doctor` finds on a machine and at a server, and what it never says."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batchyard.client import doctor
from client.commands import batchyard

if TYPE_CHECKING:
    from batchyard.client.doctor import Finding
    from client.fake_api import FakeApi

SECRET = "sk-ant-secret-0123456789"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def findings(url: str | None, out: Path | None = None) -> dict[str, Finding]:
    return {each.name: each for each in doctor.examine(out, base_url=url)}


def test_a_healthy_yard_is_ok_in_every_line(server: FakeApi):
    server.is_yard, server.now = True, datetime.now(UTC)

    done = batchyard("doctor", "reports", "--base-url", server.url)

    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"ok"}
    for said in (
        "batchyard 0.", "Python 3.", "anthropic SDK", "can be written", "key           accepted",
        "a batchyard server", "clock         within", "reports holds no run yet",
    ):  # fmt: skip
        assert said in done.stdout
    assert not Path("reports").exists(), "nothing is written"
    assert [call.method for call in server.calls] == ["GET"]


def test_the_key_is_never_shown(server: FakeApi):
    server.fail("list", 401)

    for options in ([], ["--json"]):
        done = batchyard("doctor", "--base-url", server.url, *options)
        assert SECRET not in done.stdout + done.stderr


def test_a_refused_key_fails_with_what_to_do(server: FakeApi):
    server.fail("list", 401)

    done = batchyard("doctor", "--base-url", server.url)

    assert done.returncode == 3
    [line] = [x for x in done.stdout.splitlines() if x.startswith("FAIL")]
    assert line.startswith("FAIL  key           refused: 401")
    assert "is it the key of this server" in line


def test_without_a_key_the_server_is_looked_at_all_the_same(
    server: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ANTHROPIC_API_KEY")

    found = findings(server.url)

    assert found["key"].level == "FAIL"
    assert found["base URL"].level == "ok"


@pytest.mark.parametrize("key", ["k\n", " k", "k\x00"])
def test_a_key_with_white_space_fails_without_a_call(
    server: FakeApi, monkeypatch: pytest.MonkeyPatch, key: str
):
    findings_ = list(doctor._server(server.url, key))  # no environment holds a NUL

    assert findings_[-1].level == "FAIL"
    assert "white space or characters" in findings_[-1].text
    assert server.calls == []


def test_nobody_at_the_address_fails_with_what_to_do():
    found = findings("http://127.0.0.1:9")

    assert found["base URL"].level == "FAIL"
    assert "batchyard serve" in found["base URL"].remedy
    assert "key" not in found, "nobody has looked at the key"


@pytest.mark.parametrize(
    ("fault", "check", "level"),
    [(404, "base URL", "FAIL"), (500, "base URL", "warn"), (429, "base URL", "warn")],
)
def test_what_a_server_answers_is_told_apart(server: FakeApi, fault: int, check: str, level: str):
    server.fail("list", fault)

    assert findings(server.url)[check].level == level


def test_a_redirect_fails(server: FakeApi):
    server.redirect = "http://127.0.0.1:9/elsewhere"

    assert "redirects" in findings(server.url)["base URL"].text


def test_a_clock_that_is_wrong_is_a_warning(server: FakeApi):
    server.now = datetime.now(UTC) + timedelta(hours=1)

    found = findings(server.url)["clock"]

    assert found.level == "warn"
    assert "behind the server's" in found.text
    seconds = int(found.text.partition(" s ")[0].replace(",", ""))
    assert 3_500 <= seconds <= 3_600, "a little passes while it is found out"


def test_a_results_url_elsewhere_is_a_warning(server: FakeApi):
    assert findings(server.url)["results"].level == "ok"
    server.accept([{"custom_id": "a", "params": {"model": "m"}}])

    found = findings(server.url)["results"]

    assert found.level == "warn"
    assert "http://203.0.113.1:80" in found.text


def test_a_folder_that_cannot_be_written_fails(server: FakeApi, tmp_path: Path):
    (tmp_path / "file").write_text("")

    assert findings(server.url, tmp_path / "file" / "x")["folder"].level == "FAIL"
    assert findings(server.url, tmp_path / "new" / "deep")["folder"].level == "ok"


@pytest.mark.parametrize(
    ("url", "no_proxy", "said"),
    [
        ("https://api.example", "", "proxy.example:3128 is used for api.example"),
        ("https://api.example", "example", "not used for api.example (NO_PROXY)"),
        ("http://127.0.0.1:9", "", "not used for this machine"),
    ],
)
def test_proxy_variables_are_named_without_their_password(
    monkeypatch: pytest.MonkeyPatch, url: str, no_proxy: str, said: str
):
    monkeypatch.setenv("ALL_PROXY", f"http://user:{SECRET}@proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)

    found = doctor._proxy(url)

    assert said in found.text
    assert SECRET not in found.text


def test_few_open_files_are_found_in_a_process_of_its_own(server: FakeApi):
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100));"
        "from batchyard.client import doctor; print(doctor._descriptors())"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "level='warn'" in done.stdout
    assert "ulimit -n 1024" in done.stdout


def test_a_damaged_journal_fails_and_json_is_one_object_a_line(server: FakeApi, tmp_path: Path):
    (tmp_path / "reports" / ".batchyard").mkdir(parents=True)
    (tmp_path / "reports" / ".batchyard" / "journal.jsonl").write_text("nonsense\n")

    done = batchyard("doctor", "reports", "--base-url", server.url, "--json")

    assert done.returncode == 3
    lines = {x["check"]: x for x in map(json.loads, done.stdout.splitlines())}
    assert lines["run"]["level"] == "FAIL"
    assert lines["key"]["level"] == "ok"
