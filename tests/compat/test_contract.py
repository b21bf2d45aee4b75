"""The API's contract, fact by fact: what `batchyard probe` cannot ask of a server it only meets.

A probe waits for no day to pass, fills no queue, and asks little of single parameters. Here time is
turned, the model follows a script, and each fact names its section. `test_probe.py` holds what the
probe asks.
"""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from helpers_clients import Emulator
from helpers_upstream import DEADLINE_S
from helpers_yard import BATCHES, HEADERS, Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Check = Callable[["World"], None]

NEW = {
    "authorization": "Bearer sk-test-key",
    "anthropic-version": "2026-10-21",
    "content-type": "application/json",
}
ODD_TEXT = "cr \r lf \n both \r\n next line \u0085 separators \u2028 \u2029 zero \0 end"
SCRIPT = f"""
[[request]]
custom_id = "slow-*"
outcome = "slow"
seconds = "100h"

[[request]]
custom_id = "refusal"
outcome = "refusal"
category = "cyber"

[[request]]
custom_id = "truncated"
outcome = "truncated"

[[request]]
custom_id = "pause"
outcome = "pause_turn"

[[request]]
custom_id = "odd"
outcome = "succeeded"
text = {json.dumps(ODD_TEXT)}
"""

OLD_MODEL, MODEL = "claude-haiku-4-5", "claude-opus-5-5"
ASK = [{"role": "user", "content": "Hello"}]
CITATION = {
    "type": "char_location",
    "cited_text": "a",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 1,
}
CITED = {"type": "text", "text": "a", "citations": [CITATION]}
DOCUMENT = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "a"},
}
TOOL = {"name": "look", "input_schema": {"type": "object"}}
TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}


def params(**other: object) -> dict[str, object]:
    return {"model": OLD_MODEL, "max_tokens": 50, "messages": ASK} | other


def requests(*names: str) -> list[dict[str, object]]:
    return [{"custom_id": name, "params": params()} for name in names]


def body(*names: str) -> dict[str, object]:
    return {"requests": requests(*names)}


def turns(*contents: object) -> list[dict[str, object]]:
    """Return messages whose roles take turns, the user's first."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": what} for i, what in enumerate(contents)]


# Parameters of single requests -------------------------------------------------------------------

INVALID, NOT_FOUND = "invalid_request_error", "not_found_error"
THINKING = (
    "is not supported for this model. "
    'Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'
)
NO_PREFILL = (
    "This model does not support assistant message prefill. "
    "The conversation must end with a user message."
)
NO_TOOL_RESULT = (
    "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: "
    "toolu_1. Each `tool_use` block must have a corresponding `tool_result` block in the next "
    "message."
)
THE_MOST = "which is the maximum allowed number of output tokens for"


@dataclass(frozen=True)
class Row:
    """What becomes of one request."""

    fact: str
    params: dict[str, object]
    error: tuple[str, str | None] | None = None
    """Type and text, None when the text is not known; None altogether when it succeeds."""


def unsupported(key: str) -> tuple[str, str]:
    return INVALID, f"`{key}` is not supported in the Message Batches API"


OLD_ROWS = (
    Row("3.2 stream: false is allowed", params(stream=False)),
    Row("3.2 speed: standard is allowed", params(speed="standard")),
    Row("3.2 speed: null is allowed", params(speed=None)),
    Row("3.2 speed: fast is not supported", params(speed="fast"), unsupported("speed")),
    Row("3.2 store is refused", params(store=True), (INVALID, None)),
    Row("3.2 a thread event is refused", params(previous_thread_event_id="x"), (INVALID, None)),
    Row("3.2 cache_hint is refused", params(cache_hint={}), (INVALID, None)),
    Row("3.2 context_hint is refused", params(context_hint={}), (INVALID, None)),
    Row("3.2 a research preview is refused", params(research_preview_2026_02="active"),
        (INVALID, None)),
    Row("3.2 a user profile cannot be billed",
        params(billing_policy={"type": "standard", "bill_to": "user_profile"}), (INVALID, None)),
    Row("3.2 a fallback credit token is accepted and ignored", params(fallback_credit_token="x")),
    Row("3.3 temperature is at most 1", params(temperature=1.5), (INVALID, None)),
    Row("3.3 metadata.user_id has at most 512 characters",
        params(metadata={"user_id": "x" * 513}), (INVALID, None)),
    Row("3.3 metadata.user_id of 512 characters passes", params(metadata={"user_id": "x" * 512})),
    Row("3.3 service_tier: auto is accepted", params(service_tier="auto")),
    Row("3.3 service_tier: batch cannot be asked for", params(service_tier="batch"),
        (INVALID, None)),
    Row("3.3 a thinking budget is at least 1024",
        params(max_tokens=4_000, thinking={"type": "enabled", "budget_tokens": 1_023}),
        (INVALID, None)),
    Row("3.3 a thinking budget is below max_tokens",
        params(max_tokens=2_000, thinking={"type": "enabled", "budget_tokens": 2_000}),
        (INVALID, None)),
    Row("3.3 a model's name has at most 256 characters", params(model="x" * 257),
        (INVALID, None)),
    Row("3.3 max_tokens is an integer", params(max_tokens="10"), (INVALID, None)),
    Row("3.3 an unknown type of block is refused", params(messages=turns([{"type": "blob"}])),
        (INVALID, None)),
    Row("3.3 turns of the same role are merged", params(messages=ASK + ASK)),
    Row("3.4 an unknown type of tool is refused",
        params(tools=[{"type": "web_search_19990101", "name": "web_search"}]), (INVALID, None)),
    Row("3.4 a custom tool needs a schema", params(tools=[{"name": "look"}]), (INVALID, None)),
    Row("3.5 thinking by hand on a new model",
        params(model=MODEL, max_tokens=4_000,
               thinking={"type": "enabled", "budget_tokens": 1_024}),
        (INVALID, f'"thinking.type.enabled" {THINKING}')),
    Row("3.5 adaptive thinking on an old model", params(thinking={"type": "adaptive"}),
        (INVALID, "adaptive thinking is not supported on this model")),
    Row("3.5 thinking that is always on cannot be disabled",
        params(model=MODEL, thinking={"type": "disabled"}),
        (INVALID, f'"thinking.type.disabled" {THINKING}')),
    Row("3.5 a forced tool on a new model",
        params(model=MODEL, tools=[TOOL], tool_choice={"type": "tool", "name": "look"}),
        (INVALID, 'tool_choice: type "tool" and "any" are not supported for this model.')),
    Row("3.5 a forced tool on Haiku 5.5 is allowed",
        params(model="claude-haiku-5-5", tools=[TOOL], tool_choice={"type": "any"})),
    Row("3.5 prefill on a new model", params(model=MODEL, messages=turns("a", "b")),
        (INVALID, NO_PREFILL)),
    Row("3.5 prefill on an old model is allowed", params(messages=turns("a", "b"))),
    Row("3.5 a tool_use without its result",
        params(messages=turns("a", [TOOL_USE], "b"), tools=[TOOL]),
        (INVALID, NO_TOOL_RESULT)),
    Row("3.5 sampling on a new model, away from its default",
        params(model=MODEL, temperature=0.5), (INVALID, None)),
    Row("3.5 sampling on a new model, at its default", params(model=MODEL, temperature=1)),
    Row("3.5 effort is unknown to Haiku 4.5", params(output_config={"effort": "low"}),
        (INVALID, None)),
    Row("3.5 a document in an assistant turn is refused under no older version",
        params(messages=turns("a", [DOCUMENT], "b"))),
    Row("3.5 a request for the user profile of its batch", params(user_profile_id="profile_1")),
    Row("3.5 a request for another user profile", params(user_profile_id="profile_2"),
        (INVALID, None)),
    Row("4.1 a refusal", params()),
    Row("4.1 a truncated answer", params()),
    Row("4.1 a paused turn", params()),
    Row("4.1 odd characters", params()),
)  # fmt: skip

NAMES = {
    "4.1 a refusal": "refusal",
    "4.1 a truncated answer": "truncated",
    "4.1 a paused turn": "pause",
    "4.1 odd characters": "odd",
}

NEW_ROWS = (
    Row("1.8 temperature is refused even at its default", params(temperature=1), (INVALID, None)),
    Row("1.8 top_p is refused even at its default", params(top_p=0.99), (INVALID, None)),
    Row("1.8 top_k is refused", params(top_k=0), (INVALID, None)),
    Row("1.8 citations in a search result of a user turn are refused",
        params(messages=turns([{"type": "search_result", "source": "s", "title": "t",
                                "content": [CITED]}])),
        (INVALID, None)),
    Row("1.8 empty citations in a user turn are fine",
        params(messages=turns([CITED | {"citations": []}]))),
    Row("1.8 citations may be asked for on a document",
        params(messages=turns([DOCUMENT | {"citations": {"enabled": True}}]))),
    Row("1.8 citations in an assistant turn are fine", params(messages=turns("a", [CITED], "b"))),
    Row("1.8 the beta of the create call allows 300,000 output tokens",
        params(model=MODEL, max_tokens=300_000)),
    Row("1.8 and not one more", params(model=MODEL, max_tokens=300_001),
        (INVALID, f"max_tokens: 300001 > 300000, {THE_MOST} {MODEL}")),
    Row("1.8 nor for a model that is not listed", params(max_tokens=300_000),
        (INVALID, f"max_tokens: 300000 > 64000, {THE_MOST} claude-haiku-4-5-20251001")),
)  # fmt: skip


# The world ---------------------------------------------------------------------------------------


@dataclass
class World:
    """A running emulator, and what was seen on the way."""

    server: Emulator
    results: dict[str, Any] = field(default_factory=dict)
    """The result of each row, by its fact."""
    lines: bytes = b""
    """The result lines of the rows under the older version."""
    quick: dict[str, Any] = field(default_factory=dict)
    """A batch that has ended."""
    open: dict[str, Any] = field(default_factory=dict)
    """A batch that does not end while the tests run."""
    days: dict[str, Answer] = field(default_factory=dict)
    """Answers about one batch whose requests never end, by the time that has passed."""

    def ask(self, method: str, path: str, data: bytes | None = None, **headers: str) -> Answer:
        return self.server.request(method, path, data, headers=HEADERS | headers)

    def error(self, answer: Answer) -> tuple[int, str, str]:
        """Return status, type and text of an error."""
        found = answer.json()
        assert list(found) == ["type", "error", "request_id"]
        assert found["request_id"] == answer.headers["request-id"]
        return answer.status, found["error"]["type"], found["error"]["message"]

    def turn(self, time: str) -> None:
        answer = self.server.post("/emulator/clock", {"advance": time})
        assert answer.status == 200, answer.body

    def run(self, rows: tuple[Row, ...], **headers: str) -> dict[str, Any]:
        """Make a batch of these rows and wait for its end; remember its results."""
        names = {row.fact: NAMES.get(row.fact, f"row-{i}") for i, row in enumerate(rows)}
        made = [{"custom_id": names[row.fact], "params": row.params} for row in rows]
        batch = self.server.create(made, **headers)
        ended = self.server.wait_ended(batch["id"])
        found = self.server.results(batch["id"])
        self.results |= {fact: found[name] for fact, name in names.items()}
        return ended


def tell_days(world: World) -> None:
    """Watch a batch whose requests never end, until its results are gone."""
    path = f"{BATCHES}/{world.server.create(requests('slow-1', 'slow-2'))['id']}"
    for time, passed in (("0h", "0 h"), ("23h", "23 h"), ("2h", "25 h"), ("27d", "28 d"),
                         ("24h", "29 d")):  # fmt: skip
        world.turn(time)
        world.days[passed] = world.ask("GET", path)
        world.days[f"results at {passed}"] = world.ask("GET", f"{path}/results")
    world.days["list"] = world.ask("GET", f"{BATCHES}?limit=1000")
    world.days["cancel"] = world.ask("POST", f"{path}/cancel", b"")
    world.days["delete"] = world.ask("DELETE", path)
    world.days["afterwards"] = world.ask("GET", path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("contract")
    script = root / "script.toml"
    script.write_text(SCRIPT, "utf-8")
    with Emulator(root / "data", "--script", str(script)) as server:
        found = World(server)
        tell_days(found)
        found.quick = found.run(OLD_ROWS, **{"anthropic-user-profile-id": "profile_1"})
        found.lines = found.ask("GET", f"{BATCHES}/{found.quick['id']}/results").body
        found.run(NEW_ROWS, **{"anthropic-version": "2026-10-21",
                               "anthropic-beta": "output-300k-2026-03-24"})  # fmt: skip
        found.open = server.create(requests("slow-1", "slow-2"))
        yield found
        assert "Traceback" not in server.read_log()
        assert "defect" not in server.read_log()


# The facts ---------------------------------------------------------------------------------------

FACTS: dict[str, Check] = {}


def fact(title: str) -> Callable[[Check], Check]:
    """Return a decorator that makes a function the check of one fact."""

    def add(check: Check) -> Check:
        assert title not in FACTS
        FACTS[title] = check
        return check

    return add


def of_row(row: Row) -> Check:
    def check(world: World) -> None:
        result = world.results[row.fact]
        if row.error is None:
            assert result["type"] == "succeeded", result
            return
        kind, text = row.error
        assert result["type"] == "errored", result
        error = result["error"]["error"]
        assert error["type"] == kind
        assert text in {None, error["message"]}
        assert error["details"] == {"error_visibility": "user_facing"}
        assert result["error"]["request_id"] is None, "nothing was called"

    return check


FACTS |= {row.fact: of_row(row) for row in (*OLD_ROWS, *NEW_ROWS)}


@fact("1.1 the older beta form passes through the whole life of a batch")
def _older_beta(world: World) -> None:
    # One client sends its value twice.
    beta = {"anthropic-beta": "message-batches-2024-09-24,message-batches-2024-09-24"}
    made = world.ask("POST", f"{BATCHES}?beta=true", json.dumps(body("a")).encode(), **beta)
    path = f"{BATCHES}/{made.json()['id']}"
    world.server.wait_ended(made.json()["id"])
    for method, target in (
        ("GET", f"{BATCHES}?limit=1&beta=true"),
        ("GET", f"{path}?beta=true"),
        ("GET", f"{path}/results?beta=true"),
        ("POST", f"{path}/cancel?beta=true"),
        ("DELETE", f"{path}?beta=true"),
    ):
        assert world.ask(method, target, **beta).status == 200, target


@fact("1.2 extra headers of the official clients change nothing")
def _extra_headers(world: World) -> None:
    extra = {
        "x-stainless-timeout": "NOT_GIVEN",
        "x-stainless-retry-count": "0",
        "x-stainless-async": "async:asyncio",
        "x-stainless-helper": "helper",
        "accept-language": "*",
        "sec-fetch-mode": "cors",
        "accept-encoding": "gzip, deflate",
    }
    assert world.ask("GET", f"{BATCHES}/{world.quick['id']}", **extra).status == 200


@fact("1.2 cancel with a length of 0 and a content type, as one client sends it, is 200")
def _cancel_typed(world: World) -> None:
    path = f"{BATCHES}/{world.quick['id']}/cancel"
    assert world.ask("POST", path, b"").status == 200


@fact("1.2 the charset of a JSON body may be named")
def _charset(world: World) -> None:
    named = {"content-type": 'application/json; charset="UTF-8"'}
    assert world.error(world.ask("POST", BATCHES, b"{}", **named))[2] == "requests: Field required"


@fact("1.3 no call is redirected, not even with a slash too many")
def _no_redirect(world: World) -> None:
    for path in (BATCHES, f"{BATCHES}/{world.quick['id']}"):
        assert world.error(world.ask("GET", f"{path}/"))[:2] == (404, NOT_FOUND)


@fact("1.4 every operation answers with the headers of an authenticated answer")
def _headers(world: World) -> None:
    path = f"{BATCHES}/{world.quick['id']}"
    seen = set()
    for method, target, status in (
        ("POST", BATCHES, 400),
        ("GET", BATCHES, 200),
        ("GET", path, 200),
        ("GET", f"{path}/results", 200),
        ("GET", f"{BATCHES}/{world.open['id']}/results", 404),
        ("POST", f"{path}/cancel", 200),
        ("DELETE", f"{BATCHES}/{world.open['id']}", 400),
    ):
        answer = world.ask(method, target, b"{}" if method == "POST" else None)
        assert answer.status == status
        seen.add(answer.headers["request-id"])
        for name in ("organization-id", "workspace-id", "ratelimit-requests-limit",
                     "ratelimit-requests-remaining", "ratelimit-requests-reset"):  # fmt: skip
            assert answer.headers[f"anthropic-{name}"], (method, target, name)
    assert len(seen) == 7


@fact("1.5 ids have the prefixes of the hosted service, 01 and 22 characters")
def _ids(world: World) -> None:
    form = r"01[1-9A-HJ-NP-Za-km-z]{22}"
    message = world.results["4.1 a refusal"]["message"]
    answer = world.ask("GET", BATCHES)
    assert re.fullmatch(f"msgbatch_{form}", world.quick["id"])
    assert re.fullmatch(f"msg_{form}", message["id"])
    assert re.fullmatch(f"req_{form}", answer.headers["request-id"])


@fact("1.6 the times of an archived batch have six digits and Z")
def _times(world: World) -> None:
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    archived = world.days["29 d"].json()
    for name in ("created_at", "expires_at", "ended_at", "archived_at"):
        assert re.fullmatch(form, archived[name]), name


@fact("1.7 a malformed beta is refused in the API's own words")
def _malformed_beta(world: World) -> None:
    text = (
        "Unexpected value(s) `no beta` for the `anthropic-beta` header. Please consult our "
        "documentation at platform.claude.com/docs or try again without the header."
    )
    for path in (BATCHES, "/v1/models"):
        answer = world.ask("GET", path, **{"anthropic-beta": "no beta"})
        assert world.error(answer) == (400, INVALID, text)


@fact("1.7 a coded body is refused with its code")
def _coded(world: World) -> None:
    answer = world.ask("POST", BATCHES, b"x", **{"content-encoding": "gzip"})
    assert world.error(answer)[:2] == (400, INVALID)
    code = answer.json()["error"]["details"]["error_code"]
    assert code == "request_body_encoding_unsupported"


@fact("1.7 another charset is refused with its code")
def _other_charset(world: World) -> None:
    answer = world.ask("POST", BATCHES, b"{}", **{"content-type": "application/json;charset=x"})
    assert world.error(answer)[:2] == (400, INVALID)
    assert answer.json()["error"]["details"] == {"error_code": "unsupported_charset"}


@fact("2.1 the credential is looked at first, then the version, then the size, then the body")
def _order(world: World) -> None:
    announced = {"content-length": str(300 << 20), "content-type": "application/json"}
    steps = [({"anthropic-version": "1999-01-01"}, 401), ({"x-api-key": "k"}, 400),
             ({"anthropic-version": "2023-06-01"}, 413)]  # fmt: skip
    sent: dict[str, str] = {}
    for more, status in steps:
        sent |= more
        connection = http.client.HTTPConnection("127.0.0.1", world.server.port, timeout=DEADLINE_S)
        connection.putrequest("POST", BATCHES)
        for name, value in (announced | sent).items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status, sent
        connection.close()


@fact("2.1 a body that is too large: request_too_large, and the connection closes")
def _too_large(world: World) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", world.server.port, timeout=DEADLINE_S)
    connection.putrequest("POST", BATCHES)
    for name, value in (HEADERS | {"content-length": str((256 << 20) + 1)}).items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    connection.close()
    status, kind, message = world.error(answer)
    assert (status, kind) == (413, "request_too_large")
    assert message.startswith("Request exceeds the maximum size")
    assert answer.headers["connection"] == "close"


@fact("2.1 over 100,000 requests: the text counts them")
def _too_many(world: World) -> None:
    many = b'{"requests":[%b]}' % b",".join([b'{"custom_id":"a","params":{}}'] * 100_001)
    text = "requests: List should have at most 100000 items after validation, not 100001"
    assert world.error(world.ask("POST", BATCHES, many)) == (400, INVALID, text)


@fact("2.1 the first faulty request is named by its place")
def _place(world: World) -> None:
    faulty = {"requests": [{"custom_id": "a", "params": {}}, {"custom_id": "b"}]}
    answer = world.server.post(BATCHES, faulty)
    assert world.error(answer) == (400, INVALID, "requests.1.params: Field required")


@fact("2.1 what was refused leaves no batch")
def _nothing_left(world: World) -> None:
    before = world.ask("GET", f"{BATCHES}?limit=1000").json()
    assert world.server.post(BATCHES, body("twice", "twice")).status == 400
    assert world.ask("GET", f"{BATCHES}?limit=1000").json() == before


@fact("2.2 an unfinished batch answers Retry-After 10, a create and a list do not")
def _retry_after(world: World) -> None:
    path = f"{BATCHES}/{world.open['id']}"
    assert world.ask("GET", path).headers["retry-after"] == "10"
    assert world.ask("GET", BATCHES).headers["retry-after"] is None
    assert world.ask("GET", f"{BATCHES}/{world.quick['id']}").headers["retry-after"] is None


@fact("2.2 another version and another key of the workspace see the same object")
def _same_object(world: World) -> None:
    path = f"{BATCHES}/{world.quick['id']}"
    new = world.server.request("GET", path, headers=NEW | {"authorization": "Bearer other"})
    assert new.json() == world.ask("GET", path).json()


@fact("2.3 the list holds the objects that retrieve gives")
def _listed(world: World) -> None:
    page = world.ask("GET", f"{BATCHES}?limit=1000&colour=red").json()
    assert list(page) == ["data", "has_more", "first_id", "last_id"]
    listed = {batch["id"]: batch for batch in page["data"]}
    for batch in (world.quick, world.open):
        assert listed[batch["id"]] == world.server.batch(batch["id"])


@fact("2.3 expired, canceled and archived batches stay listed")
def _stay_listed(world: World) -> None:
    (archived,) = world.days["list"].json()["data"]
    assert archived == world.days["29 d"].json()
    canceled = world.server.create([{"custom_id": "slow-1", "params": params()}])["id"]
    world.ask("POST", f"{BATCHES}/{canceled}/cancel")
    listed = world.ask("GET", f"{BATCHES}?limit=1000").json()["data"]
    assert canceled in {batch["id"] for batch in listed}


@fact("2.4 canceling an ended batch never sets cancel_initiated_at")
def _cancel_ended(world: World) -> None:
    answer = world.ask("POST", f"{BATCHES}/{world.quick['id']}/cancel")
    assert (answer.status, answer.json()) == (200, world.quick)


@fact("2.4 a batch that is canceling ends by itself, with a line for each request")
def _cancel_ends(world: World) -> None:
    server = world.server
    batch_id = server.create(requests("slow-1", "slow-2"))["id"]
    answer = world.ask("POST", f"{BATCHES}/{batch_id}/cancel").json()
    assert (answer["processing_status"], answer["request_counts"]["processing"]) == ("canceling", 2)
    early = world.ask("GET", f"{BATCHES}/{batch_id}/results")
    text = f"Message Batch {batch_id} has no available results."
    assert world.error(early) == (404, NOT_FOUND, text)
    assert early.headers["x-should-retry"] == "false"
    world.turn("2m")  # what is on its way gets a minute
    ended = server.batch(batch_id)
    assert ended["processing_status"] == "ended"
    assert ended["cancel_initiated_at"] == answer["cancel_initiated_at"]
    assert ended["request_counts"]["canceled"] == 2
    assert server.results(batch_id) == {f"slow-{n}": {"type": "canceled"} for n in (1, 2)}


@fact("2.5 an archived batch can be deleted")
def _delete_archived(world: World) -> None:
    batch_id = world.days["29 d"].json()["id"]
    answer = world.days["delete"]
    assert answer.body == b'{"id":"%b","type":"message_batch_deleted"}' % batch_id.encode()
    gone = world.error(world.days["afterwards"])
    assert gone == (404, NOT_FOUND, f"Message Batch {batch_id} not found.")


@fact("2.6 odd characters of an answer break no line")
def _odd(world: World) -> None:
    (line,) = [one for one in world.lines.split(b"\n") if b'"custom_id":"odd"' in one]
    assert json.loads(line)["result"]["message"]["content"][0]["text"] == ODD_TEXT
    assert len(world.lines.split(b"\n")) == len(OLD_ROWS) + 1
    assert b"\r" not in world.lines


@fact("2.6 a batch of which everything expired has results")
def _expired_results(world: World) -> None:
    answer = world.days["results at 25 h"]
    assert answer.headers["content-type"] == "application/x-jsonl"
    assert {line["custom_id"] for line in answer.lines()} == {"slow-1", "slow-2"}


@fact("2.7 a page of models has their capabilities, and limits of its own")
def _models(world: World) -> None:
    page = world.ask("GET", "/v1/models?limit=1").json()
    assert list(page) == ["data", "has_more", "first_id", "last_id"]
    (model,) = page["data"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (model["id"], model["id"], True)
    assert model["type"] == "model"
    assert model["capabilities"]["batch"] == {"supported": True}
    for limit in ("0", "1001"):
        assert world.ask("GET", f"/v1/models?limit={limit}").status == 400
    retired = world.ask("GET", "/v1/models?lifecycle=retired&limit=1000").json()["data"]
    assert {model["lifecycle"] for model in retired} == {"retired"}


@fact("2.7 an error of models and messages has one request id, in head and body")
def _one_request_id(world: World) -> None:
    gone = {"model": "claude-does-not-exist-9", "messages": ASK}
    for answer in (
        world.ask("GET", "/v1/models/claude-does-not-exist-9"),
        world.server.post("/v1/messages", params(**gone)),
        world.server.post("/v1/messages/count_tokens", gone),
    ):
        assert world.error(answer) == (404, NOT_FOUND, "model: claude-does-not-exist-9")
    assert world.error(world.ask("GET", "/v1/models?limit=0"))[:2] == (400, INVALID)


@fact("2.7 tokens can be counted")
def _count(world: World) -> None:
    asked = {"model": OLD_MODEL, "messages": ASK}
    answer = world.server.post("/v1/messages/count_tokens", asked)
    assert list(answer.json()) == ["input_tokens"]


@fact("2.7 a single message is answered at the standard tier")
def _message(world: World) -> None:
    answer = world.server.post("/v1/messages", params())
    assert answer.json()["usage"]["service_tier"] == "standard"


@fact("3.1 a bad header is refused at once, bad params at the end")
def _when(world: World) -> None:
    faulty = json.dumps({"requests": [{"custom_id": "a", "params": {}}]}).encode()
    for bad in ({"anthropic-beta": "no beta"}, {"anthropic-user-profile-id": "no profile"}):
        assert world.ask("POST", BATCHES, faulty, **bad).status == 400
    answer = world.ask("POST", BATCHES, faulty)
    assert answer.status == 200
    assert world.server.wait_ended(answer.json()["id"])["request_counts"]["errored"] == 1


@fact("3.5 a misspelt parameter is named, in a batch and in direct calls")
def _misspelt(world: World) -> None:
    text = "systemm: Extra inputs are not permitted"
    misspelt = params(systemm="x")
    batch = world.server.create([{"custom_id": "a", "params": misspelt}])
    world.server.wait_ended(batch["id"])
    result = world.server.results(batch["id"])["a"]
    assert result["type"] == "errored"
    error = result["error"]["error"]
    assert (error["type"], error["message"]) == (INVALID, text)
    answer = world.server.post("/v1/messages", misspelt)
    assert world.error(answer) == (400, INVALID, text)
    del misspelt["max_tokens"]
    answer = world.server.post("/v1/messages/count_tokens", misspelt)
    assert world.error(answer) == (400, INVALID, text)


@fact("4.1 a line has all keys of a message, a usage of the batch tier and the snapshot")
def _line(world: World) -> None:
    message = world.results["4.1 odd characters"]["message"]
    assert set(message) == {
        "model", "id", "type", "role", "content", "container", "stop_reason", "stop_sequence",
        "stop_details", "usage", "diagnostics",
    }  # fmt: skip
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["model"] == "claude-haiku-4-5-20251001"
    usage = message["usage"]
    assert usage["service_tier"] == "batch"
    assert usage["cache_creation_input_tokens"] == sum(usage["cache_creation"].values())


@fact("4.1 a refusal has succeeded, with its category")
def _refusal(world: World) -> None:
    message = world.results["4.1 a refusal"]["message"]
    assert message["stop_reason"] == "refusal"
    details = message["stop_details"]
    assert set(details) == {"type", "category", "explanation"}
    assert (details["type"], details["category"]) == ("refusal", "cyber")


@fact("4.1 a truncated answer has succeeded, with all of its tokens")
def _truncated(world: World) -> None:
    message = world.results["4.1 a truncated answer"]["message"]
    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", 50)


@fact("4.1 a paused turn has succeeded")
def _paused(world: World) -> None:
    assert world.results["4.1 a paused turn"]["message"]["stop_reason"] == "pause_turn"


@fact("4.4 an expired line is exactly that")
def _expired_line(world: World) -> None:
    for line in world.days["results at 25 h"].lines():
        assert list(line) == ["custom_id", "result"]
        assert line["result"] == {"type": "expired"}


@fact("5 a batch lasts 24 hours, and its counts do not move before")
def _expires(world: World) -> None:
    late, over = world.days["23 h"].json(), world.days["25 h"].json()
    assert late == world.days["0 h"].json()
    assert (late["processing_status"], over["processing_status"]) == ("in_progress", "ended")
    assert late["request_counts"]["processing"] == 2
    assert over["request_counts"] == {
        "processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 2,
    }  # fmt: skip
    assert over["results_url"].endswith(f"{BATCHES}/{over['id']}/results")
    lasted = datetime.fromisoformat(over["ended_at"]) - datetime.fromisoformat(over["created_at"])
    assert timedelta(hours=24) <= lasted < timedelta(hours=25)


@fact("5 results last 29 days from creation, not from the end")
def _archived(world: World) -> None:
    kept, gone = world.days["28 d"].json(), world.days["29 d"].json()
    assert world.days["results at 28 d"].body == world.days["results at 25 h"].body
    assert kept["archived_at"] is None
    assert gone == kept | {"archived_at": gone["archived_at"], "results_url": None}
    created, archived = (
        datetime.fromisoformat(gone[name]) for name in ("created_at", "archived_at")
    )
    assert timedelta(days=29) <= archived - created < timedelta(days=29, hours=2)


@fact("5 archived results are gone for good: 404 with the text of results that are not there")
def _archived_results(world: World) -> None:
    answer = world.days["results at 29 d"]
    text = f"Message Batch {world.days['29 d'].json()['id']} has no available results."
    assert world.error(answer) == (404, NOT_FOUND, text)
    assert answer.headers["x-should-retry"] == "false"


@fact("5 an archived batch is still ended, and canceling it changes nothing")
def _archived_cancel(world: World) -> None:
    assert world.days["cancel"].status == 200
    assert world.days["cancel"].json() == world.days["29 d"].json()


@fact("6.3 what remains goes down with each call and never above the limit")
def _remaining(world: World) -> None:
    before, after = (world.ask("GET", f"{BATCHES}/{world.open['id']}").headers for _ in range(2))
    for headers in (before, after):
        limit = int(headers["anthropic-ratelimit-requests-limit"])
        assert 0 <= int(headers["anthropic-ratelimit-requests-remaining"]) < limit
        assert datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"]).tzinfo


@pytest.mark.parametrize("title", FACTS)
def test_contract(title: str, world: World) -> None:
    FACTS[title](world)


# Limits, at a server that has small ones ---------------------------------------------------------


@dataclass(frozen=True)
class Limited:
    """Seven calls, of which six are allowed and two requests may wait."""

    answers: dict[str, Answer]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Limited:
    root = tmp_path_factory.mktemp("limits")
    # Slowly, so that no call is refilled meanwhile.
    options = ("--requests-per-minute", "6", "--queued-requests", "2", "--speed", "0.001")
    with Emulator(root / "data", *options, "--latency", "3600") as server:
        answers = {"create": server.post(BATCHES, body("a", "b"))}
        path = f"{BATCHES}/{answers['create'].json()['id']}"
        answers["create again"] = server.post(BATCHES, body("c"))
        for name, method, target in (
            ("retrieve", "GET", path),
            ("list", "GET", BATCHES),
            ("results", "GET", f"{path}/results"),
            ("delete", "DELETE", path),
            ("cancel", "POST", f"{path}/cancel"),
        ):
            answers[name] = server.request(method, target)
        answers["models"] = server.get("/v1/models")
        return Limited(answers)


def _queue(seen: dict[str, Answer]) -> None:
    refused = seen["create again"]
    assert (refused.status, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    text = "This request would exceed your organization's limit on batch requests in the processing"
    assert refused.json()["error"]["message"].startswith(text)
    assert 0 < int(refused.headers["retry-after"]) <= 60, "a client sleeps as long as it says"
    assert len(seen["list"].json()["data"]) == 1


def _all_calls_count(seen: dict[str, Answer]) -> None:
    remaining = [
        int(seen[name].headers["anthropic-ratelimit-requests-remaining"])
        for name in ("create", "create again", "retrieve", "list", "results", "delete", "cancel")
    ]
    assert remaining == [5, 4, 3, 2, 1, 0, 0]
    assert [seen[name].status for name in ("results", "delete", "cancel")] == [404, 400, 429]


def _over_the_limit(seen: dict[str, Answer]) -> None:
    refused = seen["cancel"]
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(refused.headers["retry-after"]) <= 10
    assert seen["models"].status == 200


LIMITS = {
    "6.2 a full queue is 429 with a time to wait, and makes no batch": _queue,
    "6.2 calls to all six endpoints count, refused ones too": _all_calls_count,
    "6.2 over the limit is 429 with a time to wait, for these endpoints only": _over_the_limit,
}


@pytest.mark.parametrize("title", LIMITS)
def test_contract_of_limits(title: str, limited: Limited) -> None:
    LIMITS[title](limited.answers)
