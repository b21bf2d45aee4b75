"""The cache report of an ended batch: what was read and saved, and why a group could not hit."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import pytest

from batchyard.server import cache_report
from batchyard.testing import Emulator
from helpers_upstream import Upstream, message, refuse
from helpers_yard import BATCHES, HEADERS, QUICK, Yard, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers_upstream import Exchange

MODEL = "claude-opus-5-5"
LONG = "The yard keeps what it was given and answers when it is asked to. " * 60
FIVE = {"type": "ephemeral"}


class Client:
    """A client of the emulator, which answers from a simulated cache."""

    def __init__(self, emulator: Emulator) -> None:
        self.url = emulator.url
        self._at = urlsplit(emulator.url).netloc
        self._emulator = emulator

    def call(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self._at, timeout=60)
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, HEADERS | headers)
        response = connection.getresponse()
        found = response.status, json.loads(response.read())
        connection.close()
        return found

    def run(self, requests: list[dict[str, Any]]) -> str:
        """Create a batch, let it end, and return its id."""
        made = [{"custom_id": f"r{n}", "params": each} for n, each in enumerate(requests)]
        status, batch = self.call("POST", BATCHES, {"requests": made})
        assert status == 200, batch
        for _ in range(20):
            self._emulator.advance(60)
            _, now = self.call("GET", f"{BATCHES}/{batch['id']}")
            if now["processing_status"] == "ended":
                return str(batch["id"])
        raise AssertionError("the batch does not end")

    def report(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        status, report = self.call("GET", f"{BATCHES}/{self.run(requests)}/cache")
        assert status == 200, report
        return report


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Emulator(latency=1.0, words=5) as emulator:
        yield Client(emulator)


def text(words: str, control: object = None) -> dict[str, Any]:
    return {"type": "text", "text": words} | ({} if control is None else {"cache_control": control})


def params(system: Any, question: Any = "Why?", **fields: Any) -> dict[str, Any]:
    made = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": question}]}
    return made | {"system": system} | fields


def test_a_group_that_hits_and_what_it_saved(client: Client) -> None:
    hour = {"type": "ephemeral", "ttl": "1h"}
    report = client.report(
        [params([text(f"one {LONG}", FIVE)], f"Q{n}") for n in range(8)]
        + [params([text(f"two {LONG}", hour)], f"Q{n}") for n in range(4)]
        + [params(LONG, "unmarked")]
    )
    assert (report["type"], report["requests"], report["marked"]) == ("message_batch_cache", 13, 12)
    assert (report["succeeded"], report["hits"], report["writes"]) == (12, 10, 2)
    one, two = report["groups"]
    assert (one["requests"], one["hits"], one["writes"], one["ttl"]) == (8, 7, 1, "5m")
    assert (two["requests"], two["hits"], two["writes"], two["ttl"]) == (4, 3, 1, "1h")
    assert one["reason"] is one["explanation"] is None
    assert one["example"] == "r0"
    tokens = one["tokens"]
    prefix = tokens["written_5m"]
    assert prefix > 500
    assert tokens == {
        "cacheable": 8 * prefix, "read": 7 * prefix, "written_5m": prefix, "written_1h": 0,
    }  # fmt: skip
    assert one["hit_rate"] == 0.875
    assert two["tokens"]["written_1h"] == prefix
    # In a batch, Opus 5.5 costs $2 a million tokens: reads a twentieth of it, writes 1.25 and 2.
    for group, writes in ((one, 1.25), (two, 2.0)):
        reads = group["requests"] - 1
        saved = prefix * 2.0 * (reads * (1 - 0.05) + (1 - writes))
        assert group["saved_micros"] == pytest.approx(saved, abs=12)
    assert report["saved_micros"] == one["saved_micros"] + two["saved_micros"]
    assert report["tokens"]["read"] == one["tokens"]["read"] + two["tokens"]["read"]
    assert report["has_more"] is False


def _varying_mark() -> list[dict[str, Any]]:
    return [params(f"V {LONG}", [text(f"Document {n}. {LONG}", FIVE)]) for n in range(4)]


def _tool(words: str) -> list[dict[str, Any]]:
    return [{"name": "t", "description": words, "input_schema": {"type": "object"}}]


def _cases() -> dict[str, list[dict[str, Any]]]:
    return {
        "breakpoint_on_varying_block": _varying_mark(),
        "too_short": [params([text("Be brief.", FIVE)], f"Q{n}") for n in range(3)],
        "tools_differ": [
            params([text(f"T {LONG}", FIVE)], tools=_tool(f"number {n}")) for n in range(3)
        ],
        "system_differs": [params([text(f"S{n} {LONG}", FIVE)]) for n in range(3)],
        "messages_differ": [
            params("M", [text(f"M{n}"), text(LONG, FIVE)]) for n in range(3)
        ],
        "alone": [params([text(f"A {LONG}", FIVE)]), params("x")],
        "no_answers": [params([text(f"N {LONG}", FIVE)], max_tokens=0) for _ in range(2)],
    }  # fmt: skip


@pytest.mark.parametrize("reason", list(_cases()))
def test_why_a_group_could_not_hit(client: Client, reason: str) -> None:
    requests = _cases()[reason]
    report = client.report(requests)
    marked = [each for each in requests if "cache_control" in json.dumps(each)]
    (group,) = report["groups"]
    assert group["reason"] == reason, group
    assert group["explanation"]
    assert (group["requests"], group["hits"]) == (len(marked), 0)
    assert report["hit_rate"] in {None, 0.0}
    if reason == "too_short":
        assert "512" in group["explanation"]
        assert (report["saved_micros"], report["tokens"]["cacheable"]) == (0, 0)
    elif reason != "no_answers":
        assert report["saved_micros"] < 0, "writing what nobody reads costs more"


async def _caches(exchange: Exchange) -> None:
    """Answer with usage as of an upstream that writes to a cache, and never reads from it."""
    name, body = exchange.call.name, message(exchange.call.prompt)
    written = b'"cache_creation_input_tokens": %d'
    if name.startswith("wrote"):
        await exchange.reply(200, body.replace(written % 0, written % 900))
    elif name.startswith("plain"):
        await exchange.reply(200, body)
    else:
        await refuse(exchange, 400, "")


ELSEWHERE: dict[str, tuple[list[str], int, str | None]] = {
    "each wrote": (["wrote-1", "wrote-2", "wrote-3"], 3, "never_read"),
    "one wrote, and the others failed": (["wrote-4", "refused-1", "refused-2"], 1, None),
    "none wrote or read": (["plain-1", "plain-2"], 0, "not_cached"),
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    data = tmp_path_factory.mktemp("elsewhere") / "data"
    with Upstream(_caches) as upstream, Yard(data, upstream.url, bounds=QUICK) as yard:
        yield yard


@pytest.mark.parametrize(("prompts", "writes", "reason"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_why_a_group_did_not_hit_at_an_upstream_that_never_reads(
    elsewhere: Yard, prompts: list[str], writes: int, reason: str | None
) -> None:
    system = [text(LONG, FIVE)]
    batch = elsewhere.create([request(prompt, system=system) for prompt in prompts])
    elsewhere.wait_ended(batch["id"])
    (group,) = elsewhere.get(f"{BATCHES}/{batch['id']}/cache").json()["groups"]
    assert (group["requests"], group["hits"], group["writes"]) == (len(prompts), 0, writes)
    assert group["reason"] == reason
    assert bool(group["explanation"]) == bool(reason)


def test_every_reason_has_a_case() -> None:
    met = {reason for *_, reason in ELSEWHERE.values()} | set(_cases())
    assert met - {None} == set(get_args(cache_report.Reason))


def test_a_shared_prefix_counts_though_each_request_marks_more(client: Client) -> None:
    report = client.report(
        [params([text(f"B {LONG}", FIVE)], [text(f"{n} {LONG}", FIVE)]) for n in range(5)]
    )
    (group,) = report["groups"]
    assert (group["requests"], group["hits"], group["reason"]) == (5, 4, None)


def test_the_price_of_a_model_that_is_not_known_is_not_made_up(client: Client) -> None:
    requests = [params([text(f"U {LONG * 2}", FIVE)], f"Q{n}", model="mine") for n in range(3)]
    report = client.report(requests)
    assert report["saved_micros"] is None
    assert report["groups"][0]["saved_micros"] is None
    assert report["groups"][0]["hits"] == 2


def test_the_hundred_largest_groups_are_told(client: Client) -> None:
    report = client.report(
        [params([text(f"G{n} {LONG[:600]}", FIVE)], f"Q{k}") for n in range(101) for k in range(2)]
        + [params([text("G7 " + LONG[:600], FIVE)], "more")]
    )
    assert len(report["groups"]) == 100
    assert report["has_more"] is True
    assert report["groups"][0]["requests"] == 3
    assert report["marked"] == 203


def test_without_a_mark_there_is_nothing_to_tell(client: Client) -> None:
    report = client.report([params("x"), params("y")])
    assert (report["marked"], report["groups"], report["hit_rate"]) == (0, [], None)
    assert report["saved_micros"] == 0


def test_a_batch_that_runs_or_is_not_there_has_no_report(yard: Yard, upstream: Upstream) -> None:
    batch = yard.create([request("cache-1|hold:cache")])
    path = f"{BATCHES}/{batch['id']}/cache"
    answer = yard.get(path)
    assert answer.status == 400
    assert "has not ended" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    upstream.gate("cache").open()
    yard.wait_ended(batch["id"])
    answer = yard.get(path)
    assert answer.status == 200
    assert answer.json()["billing"] == "standard"
    foreign = yard.get(path, **{"anthropic-workspace-id": "wrkspc_other"})
    assert foreign.status == 404
    assert yard.request("DELETE", f"{BATCHES}/{batch['id']}").status == 200
    assert yard.get(path).status == 404


# The command -------------------------------------------------------------------------------------


def _command(*arguments: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "batchyard", "status", *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC")}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_shows_the_report_to_people_and_programs(client: Client) -> None:
    short = [params([text("Be brief.", FIVE)], f"Q{n}") for n in range(3)]
    hits = [params([text(f"cli {LONG}", FIVE)], f"Q{n}") for n in range(4)]
    batch_id = client.run([*hits, *short])
    code, out, err = _command("--cache", batch_id, "--base-url", client.url)
    assert (code, err) == (0, "")
    assert f"{batch_id}: 7 requests, 7 with cache_control" in out
    assert re.search(r"read +[\d,]+ tokens +75\.0%", out)
    assert re.search(r"\n +4 +3 +75\.0% +\$0\.00\d+ +claude-opus-5-5, 5m, r0\n", out)
    assert "no hit: the prefix has" in out
    code, out, _ = _command("--cache", batch_id, "--json", ANTHROPIC_BASE_URL=client.url)
    _, report = client.call("GET", f"{BATCHES}/{batch_id}/cache")
    assert code == 0
    assert json.loads(out) | {"type": "message_batch_cache"} == report


def test_the_id_of_a_batch_alone_is_enough_to_say_how_far_it_is(client: Client) -> None:
    batch_id = client.run([params([text("Be brief.", FIVE)], "Q")])
    asked = (batch_id, "--base-url", client.url)
    code, out, err = _command(*asked)
    assert (code, err) == (0, "")
    assert out.startswith(f"{batch_id}: 1 of 1 done")
    assert out == _command("--why", *asked)[1]


class _Elsewhere(BaseHTTPRequestHandler):
    """Another server of the API, which knows no such path."""

    def do_GET(self) -> None:
        body = b'{"type":"error","error":{"type":"not_found_error","message":"Not found"}}'
        self.send_response(404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_the_command_says_what_is_wrong(client: Client) -> None:
    code, _, err = _command("--cache", "msgbatch_none", "--base-url", client.url)
    assert (code, "not found" in err) == (3, True)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        code, _, err = _command("--cache", "msgbatch_none", "--base-url", url)
        server.shutdown()
    assert (code, "is not a batchyard server" in err) == (2, True)
    code, _, err = _command("--base-url", client.url)
    assert (code, "--base-url goes with a batch" in err) == (2, True)
