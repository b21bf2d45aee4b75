"""The description at `/openapi.json` against the program: what it says, and what it answers.

Three ways: the numbers and routes of the program; the answers of whole lives of batches; and
schemathesis, which makes requests of its own from the description.
"""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import subprocess
import zlib
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from batchyard import __version__, errors, limits, wire
from batchyard.result import ERROR_TYPES
from batchyard.server import app, auth, results
from batchyard.server.yard import Failure
from helpers_upstream import DEADLINE_S, Upstream
from helpers_yard import BATCHES, HEADERS, KEY, QUICK, Answer, Yard, poll, request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT = Path(__file__).parents[2]
COMPAT = Path(__file__).parent
TOOLS = ROOT / ".venv-openapi" / "bin"
RUN_S = 240  # a run takes a tenth of it; see `schemathesis.toml` for what bounds it

METHODS = {"GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS"}
SECOND_US = limits.SECOND_US
Recorded = dict[str, Any]
"""A request line and its answer, as `openapi_check.py` takes it."""


def operations(description: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield path, method and operation."""
    for path, item in description["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                yield path, method.upper(), operation


def concrete(path: str) -> str:
    """Return a path with something in place of its variables."""
    return re.sub(r"\{[^}]+\}", "nothing", path)


def record(method: str, path: str, answer: Answer) -> Recorded:
    body = answer.body
    if answer.headers.get("content-encoding") == "gzip":
        body = zlib.decompress(body, wbits=31)
    return {
        "method": method,
        "path": path,
        "status": answer.status,
        "headers": answer.headers.items(),
        "body": body.decode(),
    }


class RecordingYard(Yard):
    """A yard, and all that it has answered."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.answers: list[Recorded] = []

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] = HEADERS,
    ) -> Answer:
        answer = super().request(method, path, body, headers)
        if method != "HEAD":  # its answer has no body, whatever its head describes
            self.answers.append(record(method, path, answer))
        return answer

    def raw(self, path: str, head: bytes) -> Answer:
        """Send bytes and wait for an answer, which is recorded as that of `GET path`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S) as connection:
            connection.sendall(head)
            response = HTTPResponse(connection)
            response.begin()
            answer = Answer(response.status, response.headers, response.read())
        self.answers.append(record("GET", path, answer))
        return answer


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    if not TOOLS.exists():
        pytest.fail(f"{TOOLS} is missing: run `make test`, which sets it up", pytrace=False)


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordingYard]:
    with RecordingYard(tmp_path_factory.mktemp("openapi") / "data", "simulated:") as running:
        yield running


@pytest.fixture(scope="module")
def description(yard: RecordingYard) -> Any:
    return yard.request("GET", "/openapi.json", headers={}).json()


# What it says ------------------------------------------------------------------------------------


def test_it_is_served_without_a_key(yard: RecordingYard) -> None:
    answer = yard.request("GET", "/openapi.json", headers={})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    described = answer.json()
    assert described["openapi"] == "3.1.0"
    assert described["info"]["version"] == __version__
    assert described["servers"] == [{"url": yard.url}]


def test_its_server_is_the_public_url(tmp_path: Path) -> None:
    public = "https://batches.example.com/prefix"
    with Yard(
        tmp_path / "data", "simulated:", environment={"BATCHYARD_PUBLIC_URL": public}
    ) as running:
        assert running.get("/openapi.json").json()["servers"] == [{"url": public}]


def test_its_paths_and_methods_are_those_of_the_route_table(description: Any) -> None:
    parts = SimpleNamespace(
        keys=None, rates=None, public_url=None, allowed_hosts=frozenset(), failure=Failure()
    )
    guard: Any = app.build(parts)  # type: ignore[arg-type] # no handler runs
    table = {
        (re.sub(r":\w+\}", "}", route.path), method)
        for route in guard._app.routes
        for method in route.endpoint._handlers
    }
    assert {(path, method) for path, method, _ in operations(description)} == table


def test_each_operation_has_a_name_of_its_own(description: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(set(names)) == len(names)


def references(value: Any) -> Iterator[str]:
    """Yield what is referred to anywhere below a value."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "$ref":
                yield part
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_all_that_it_refers_to_is_there_and_nothing_else(description: Any) -> None:
    parts = {
        f"#/components/{kind}/{name}"
        for kind, named in description["components"].items()
        if kind != "securitySchemes"
        for name in named
    }
    assert set(references(description)) == parts
    schemes = {name for each in description["security"] for name in each}
    assert schemes == set(description["components"]["securitySchemes"])


def test_the_page_for_users_lists_its_endpoints(description: Any) -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `([A-Z]+) (/[^`]*)` \|", page, re.MULTILINE))
    assert listed == {(method, path) for path, method, _ in operations(description)}
    statuses = {
        status
        for line in re.findall(r"^\| (\d{3}(?:, \d{3})*) \|", page, re.MULTILINE)
        for status in line.split(", ")
    }
    described = {
        status
        for _, _, operation in operations(description)
        for status in operation["responses"]
        if status >= "4" and status != "default"
    }
    assert described - statuses == {"402", "504"}, "those of the upstream alone"
    assert statuses <= described


def at(description: Any, path: str) -> Any:
    for name in path.split("/"):
        description = description[int(name) if isinstance(description, list) else name]
    return description


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schemas/CreateBatch/properties/requests/maxItems", limits.BATCH_REQUESTS_MAX),
        ("schemas/CustomId/maxLength", limits.CUSTOM_ID_CHARS_MAX),
        ("schemas/CustomId/pattern", wire._CUSTOM_ID_PATTERN),
        ("schemas/WorkspaceId/pattern", f"^{auth._WORKSPACE.pattern}$"),
        ("schemas/MessageBatchPage/properties/data/maxItems", limits.LIST_LIMIT_MAX),
        ("schemas/BatchValidation/properties/problems/maxItems", limits.DRY_RUN_PROBLEMS_MAX),
        ("schemas/MessageRequest/properties/model/maxLength", limits.MODEL_CHARS_MAX),
        ("schemas/TokenCountRequest/properties/model/maxLength", limits.MODEL_CHARS_MAX),
        ("schemas/Turns/maxItems", limits.MESSAGES_MAX),
        ("parameters/Limit/schema/maximum", limits.LIST_LIMIT_MAX),
        ("parameters/Limit/schema/default", limits.LIST_LIMIT_DEFAULT),
        ("parameters/IdempotencyKey/schema/maxLength", limits.IDEMPOTENCY_KEY_CHARS_MAX),
        ("parameters/Version/schema/enum", list(auth.VERSIONS)),
    ],
)
def test_its_bounds_are_those_of_the_program(description: Any, path: str, value: object) -> None:
    assert at(description["components"], path) == value


def test_its_texts_name_the_bounds_of_the_program(description: Any) -> None:
    components, paths = description["components"], description["paths"]
    beta = components["parameters"]["Beta"]
    assert f"at most {limits.BETA_VALUES_MAX} different" in beta["description"]
    item = rf"[ \t]*{auth._BETA.pattern[:-1]}{{0,{limits.BETA_VALUE_CHARS_MAX}}}[ \t]*"
    assert beta["schema"]["pattern"] == f"^{item}(,{item})*$"
    hours = limits.IDEMPOTENCY_WINDOW_US // limits.HOUR_US
    assert f"within {hours} hours" in components["parameters"]["IdempotencyKey"]["description"]
    assert limits.SDK_RETRY_WINDOW_US == limits.HOUR_US
    assert "within an hour" in components["parameters"]["RetryCount"]["description"]
    found = paths[f"{BATCHES}/{{batch_id}}"]["get"]["responses"]["200"]["headers"]["retry-after"]
    assert found["schema"]["const"] == limits.RETRIEVE_RETRY_AFTER_S
    whole = paths[f"{BATCHES}/{{batch_id}}/results"]["get"]["responses"]["200"]
    assert f"have {results._GZIP_BYTES_MIN} bytes or more" in whole["description"]
    fields = components["schemas"]["MessageBatch"]["properties"]
    assert f"{limits.PROCESSING_WINDOW_US // limits.HOUR_US} hours after" in str(fields)
    assert f"{limits.RETENTION_US // limits.DAY_US} days after" in str(fields)
    bodies = {
        operation["operationId"]: operation["requestBody"]["description"]
        for _, _, operation in operations(description)
        if "requestBody" in operation
    }
    batch, message = limits.BATCH_BODY_BYTES_MAX, limits.MESSAGE_BODY_BYTES_MAX
    sizes = {"createBatch": batch, "validateBatch": batch}
    sizes |= {"createMessage": message, "countTokens": message}
    assert set(bodies) == set(sizes)
    for name, size in sizes.items():
        assert bodies[name].startswith(f"At most {size // limits.MIB} MiB"), name


def test_its_errors_are_those_of_the_program(description: Any) -> None:
    """Every status that an error of ours has is described, with the type that it has."""
    components, described = description["components"], {}
    for name, response in components["responses"].items():
        if name != "FromUpstream":
            schema = response["content"]["application/json"]["schema"]["allOf"][1]
            described[name] = schema["properties"]["error"]["properties"]["type"]["const"]
    family = {
        error
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.BatchyardError)
    }
    for error in family:
        if error.__name__ in described:
            assert described[error.__name__] == error.type
    statuses = {
        status for _, _, operation in operations(description) for status in operation["responses"]
    }
    assert {str(error.status) for error in family} <= statuses
    errored = components["schemas"]["ErroredResult"]["properties"]["error"]["properties"]
    assert set(errored["error"]["properties"]["type"]["enum"]) == ERROR_TYPES


def test_without_a_key_nothing_but_the_description_is_answered(
    yard: RecordingYard, description: Any
) -> None:
    """Any key will do on loopback, so that schemathesis cannot see this with keys of its own."""
    assert description["security"] == [{"bearer": []}, {"key": []}]
    headers = {name: value for name, value in HEADERS.items() if name != "x-api-key"}
    for path, method, operation in operations(description):
        answer = yard.request(method, concrete(path), b"{}" if method == "POST" else None, headers)
        is_open = operation.get("security") == []
        assert answer.status == (200 if is_open else 401), (method, path)
        for key in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
            answer = yard.request(method, concrete(path), None, headers | key)
            assert answer.status != 401, (method, path)


def test_another_method_is_405_and_the_right_ones_are_named(
    yard: RecordingYard, description: Any
) -> None:
    for path, item in description["paths"].items():
        ours = {method.upper() for method in item if method != "parameters"}
        for method in METHODS - ours:
            answer = yard.request(method, concrete(path))
            assert answer.status == 405, (method, path)
            assert answer.headers["allow"] == ", ".join(sorted(ours)), (method, path)


# What is answered --------------------------------------------------------------------------------


def check(description: Any, answers: list[Recorded]) -> list[tuple[str, str | None]]:
    """Return, for each answer, which one it is and why it does not fit, or None."""
    done = subprocess.run(
        [TOOLS / "python", COMPAT / "openapi_check.py"],
        input=json.dumps({"description": description, "answers": answers}),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return [(label, problem) for label, problem in json.loads(done.stdout)]


def a_whole_life(yard: RecordingYard) -> None:
    """Every endpoint, on a batch that runs to its end."""
    requests = [request(f"life-{n}") for n in range(20)] + [request("bad", max_tokens=0)]
    batch = yard.create(requests, **{"idempotency-key": "life"})
    path = f"{BATCHES}/{batch['id']}"
    yard.create([request("again")], **{"anthropic-workspace-id": "wrkspc_other"})
    yard.post(f"{BATCHES}/validate", {"requests": requests})
    yard.wait_ended(batch["id"])
    yard.post(f"{path}/cancel", b"")
    yard.get(f"{path}/results")
    yard.get(f"{path}/results", **{"accept-encoding": "gzip"})
    yard.get(f"{path}/results", range="bytes=10-99")
    yard.get(f"{path}/results", range="bytes=999999999-")
    yard.get(f"{path}/progress")
    yard.get(f"{path}/progress", accept="text/event-stream")
    yard.get(f"{path}/cache")
    (lost,) = yard.data.glob(f"segments/*/{batch['id']}/manifest*")
    content = lost.read_bytes()
    lost.unlink()
    assert yard.get(f"{path}/results").status == 500
    lost.write_bytes(content)
    yard.request("DELETE", path)
    yard.get(path)


def pages(yard: RecordingYard) -> None:
    ids = [yard.create([request(f"page-{n}")])["id"] for n in range(3)]
    for query in ("?limit=1", f"?limit=1&after_id={ids[2]}", f"?before_id={ids[0]}", "?limit=0"):
        yard.get(f"{BATCHES}{query}")
    yard.get(BATCHES, **{"anthropic-workspace-id": "wrkspc_empty"})
    yard.get(BATCHES, **{"anthropic-version": "2000-01-01"})


def passed_on(yard: RecordingYard) -> None:
    params: Any = request("hello")["params"]
    yard.post("/v1/messages", params)
    yard.post("/v1/messages", params | {"stream": True})
    yard.post("/v1/messages", params | {"model": "claude-none"})
    yard.post("/v1/messages", {})
    yard.post("/v1/messages/count_tokens", params)
    for path in (
        "?limit=3&lifecycle=active&lifecycle=retired",
        "/claude-haiku-4-5",
        "/claude-none",
        "?limit=0",
    ):
        yard.get(f"/v1/models{path}")


def refused(yard: RecordingYard) -> None:
    yard.post(BATCHES, {"requests": []})
    yard.post(BATCHES, b"{")
    yard.post(f"{BATCHES}/validate", {"requests": []})
    strange = HEADERS | {"host": "example.com"}
    foreign = HEADERS | {"origin": "https://example.com"}
    for path, method, _ in operations(yard.request("GET", "/openapi.json").json()):
        yard.request(method, concrete(path), headers={})
        yard.request(method, concrete(path))
        yard.request("PATCH", concrete(path))
        assert yard.request(method, concrete(path), headers=strange).status == 400
        if method != "GET":
            assert yard.request(method, concrete(path), headers=foreign).status == 403
    assert yard.get(f"{BATCHES}?limit=1&x={'x' * limits.URL_BYTES_MAX}").status == 414
    assert yard.get(BATCHES, padding="x" * limits.HEAD_BYTES_MAX).status == 431
    with ExitStack() as held:
        for _ in range(CONNECTIONS):
            held.enter_context(socket.create_connection(("127.0.0.1", yard.port)))
        assert yard.raw(BATCHES, b"").status == 529


def an_unfinished_life(yard: RecordingYard) -> None:
    """On a model that never answers, in a yard with small limits."""
    batch = yard.create([request("slow-1"), request("slow-2")])
    path = f"{BATCHES}/{batch['id']}"
    assert yard.get(path).headers["retry-after"] == "10"
    assert yard.get(f"{path}/results").headers["x-should-retry"] == "false"
    assert yard.request("DELETE", path).status == 400
    yard.get(f"{path}/progress")
    assert yard.post(BATCHES, {"requests": [request("much-1"), request("much-2")]}).status == 429
    for where in (BATCHES, f"{BATCHES}/validate"):
        assert yard.post(where, b" " * 20_000).status == 413
    yard.post(f"{path}/cancel", b"")
    yard.get(f"{path}/progress", accept="text/event-stream")
    yard.wait_ended(batch["id"])
    yard.get(f"{path}/results")


def an_archived_life(yard: RecordingYard) -> None:
    """On a model that never answers, in a yard of short lives."""
    batch = yard.create([request("late-1"), request("late-2")])
    path = f"{BATCHES}/{batch['id']}"
    yard.wait_ended(batch["id"])
    assert yard.get(f"{path}/results").status == 200
    poll(lambda: yard.batch(batch["id"])["archived_at"], lambda: "it is never archived")
    assert yard.get(f"{path}/results").status == 404


def behind_a_failing_upstream(yard: RecordingYard) -> None:
    for step, status in (("402", 402), ("429:7", 429), ("500", 500), ("529", 529), ("close", 502)):
        params = request(f"fail-{status}|{step}")["params"]
        assert yard.post("/v1/messages", params).status == status
    head = b"GET /v1/models HTTP/1.1\r\nhost: 127"
    assert yard.raw("/v1/models", head).status == 408


CONNECTIONS = 100
FEW = {"limits:CONNECTIONS_MAX": CONNECTIONS}
SMALL = {
    "limits:DRAIN_GRACE_S": 0.05,
    "limits:BATCH_BODY_BYTES_MAX": 10_000,
    "limits:QUEUED_REQUESTS_DEFAULT": 3,
}
SHORT = {
    "limits:DRAIN_GRACE_S": 0.05,
    "limits:PROCESSING_WINDOW_US": SECOND_US // 2,
    "limits:RETENTION_US": 12 * SECOND_US,
    "limits:KEEPER_INTERVAL_S": 0.1,
}
IMPATIENT = {"limits:HEAD_TIMEOUT_S": 2.0}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Recorded]:
    """Return what yards have answered in all the states in which a client can meet one."""
    found = []
    endless = "simulated:?latency=3600"
    with Upstream() as upstream:
        for acts, url, bounds in (
            ((a_whole_life, pages, passed_on, refused), "simulated:", FEW),
            ((an_unfinished_life,), endless, SMALL),
            ((an_archived_life,), endless, SHORT),
            ((behind_a_failing_upstream,), upstream.url, QUICK | IMPATIENT),
        ):
            data = tmp_path_factory.mktemp(acts[0].__name__) / "data"
            with RecordingYard(data, url, bounds=bounds) as yard:
                for act in acts:
                    act(yard)
                found += yard.answers
    return found


def test_every_answer_is_as_described(description: Any, answers: list[Recorded]) -> None:
    checked = check(description, answers)
    assert len(checked) == len(answers)
    assert [(label, problem) for label, problem in checked if problem is not None] == []


def test_every_answer_that_is_described_was_seen(description: Any, answers: list[Recorded]) -> None:
    """So that the test above cannot be about less than it seems. Those of the connection and of
    the upstream were seen on one path; they come from one place."""
    anywhere = {"402", "405", "408", "413", "414", "429", "431", "500", "502", "504", "529"}
    seen = {label for label, _ in check(description, answers)}
    missing = []
    for path, method, operation in operations(description):
        for status in operation["responses"]:
            label = f"{method} {path} {status}"
            if label not in seen and status not in anywhere | {"default"}:
                missing.append(label)
    assert set(missing) == {
        # 404 is for workspaces that a key may not act in.
        f"GET {BATCHES} 404",
        f"POST {BATCHES} 404",
        f"POST {BATCHES}/validate 404",
        "GET /v1/models 404",
        # The upstream's.
        "GET /v1/models 403",
        "GET /v1/models/{model_id} 403",
        "POST /v1/messages/count_tokens 404",
    }
    statuses = {label.rpartition(" ")[2] for label in seen}
    assert anywhere - {"504"} <= statuses


def without_archived_at(description: Any) -> Any:
    changed = copy.deepcopy(description)
    schema = changed["components"]["schemas"]["MessageBatch"]
    schema["required"].remove("archived_at")
    del schema["properties"]["archived_at"]
    return changed


def test_a_description_that_lacks_a_field_does_not_fit(
    description: Any, answers: list[Recorded]
) -> None:
    wrong = {
        label for label, problem in check(without_archived_at(description), answers) if problem
    }
    assert wrong == {
        f"POST {BATCHES} 200",
        f"GET {BATCHES} 200",
        f"GET {BATCHES}/{{batch_id}} 200",
        f"POST {BATCHES}/{{batch_id}}/cancel 200",
    }


def test_an_answer_that_is_not_as_described_is_found(yard: RecordingYard, description: Any) -> None:
    """The check checks itself: one fault of each kind."""
    yard.create([request("fault")])
    good = yard.answers[-1]
    body = json.loads(good["body"])
    counts = body["request_counts"]
    headers = good["headers"]

    def with_body(**fields: object) -> Recorded:
        return good | {"body": json.dumps(body | fields)}

    bad = [
        with_body(request_counts=counts | {"processing": "1"}),
        with_body(request_counts=counts | {"succeeded": 1}),
        with_body(created_at="2026-11-21 18:37"),
        with_body(processing_status="failed"),
        with_body(more=1),
        good | {"body": json.dumps({k: v for k, v in body.items() if k != "archived_at"})},
        good | {"body": "{"},
        good | {"status": 418},
        good | {"headers": [(k, v) for k, v in headers if k != "request-id"]},
        good | {"headers": [*headers, ("x-unheard-of", "1")]},
        good | {"headers": [(k, "text/plain" if k == "content-type" else v) for k, v in headers]},
    ]
    assert check(description, [good])[0][1] is None
    accepted = [
        answer
        for answer, (_, problem) in zip(bad, check(description, bad), strict=True)
        if problem is None
    ]
    assert accepted == []


# What schemathesis finds -------------------------------------------------------------------------


def schemathesis(
    where: str, directory: Path, *options: str
) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run it; return how it ended, and which operation was answered with which status."""
    seen = directory / "seen"
    done = subprocess.run(
        [
            TOOLS / "schemathesis",
            "--no-color",
            f"--config-file={COMPAT / 'schemathesis.toml'}",
            "run",
            where,
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(COMPAT), "BATCHYARD_OPENAPI_SEEN": str(seen)},
    )
    return done, set(seen.read_text("utf-8").splitlines()) if seen.exists() else set()


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Bounded and with a fixed seed; `schemathesis.toml` says which checks are off, and why."""
    with Yard(tmp_path / "data", "simulated:") as yard:
        done, seen = schemathesis(f"{yard.url}/openapi.json", tmp_path)
        log = yard.read_log()
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-4_000:]
    assert "Traceback" not in log, log
    assert "defect" not in log, log
    described = json.loads((ROOT / "src/batchyard/server/openapi.json").read_bytes())
    for path, method, operation in operations(described):
        if operation.get("security") != []:  # it does not ask for the description once more
            assert {f"{method} {path} 200", f"{method} {path} 400"} <= seen, (method, path)
    for missing in ("", "/cache", "/progress", "/results"):
        assert f"GET {BATCHES}/{{batch_id}}{missing} 404" in seen


def test_schemathesis_finds_a_field_that_is_not_described(
    yard: RecordingYard, description: Any, tmp_path: Path
) -> None:
    """The same run can fail."""
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(without_archived_at(description)), "utf-8")
    only = ("--url", yard.url, "--include-operation-id=createBatch", "--phases=examples")
    done, seen = schemathesis(str(file), tmp_path, *only)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "'archived_at' was unexpected" in done.stdout
    assert f"POST {BATCHES} 200" in seen
