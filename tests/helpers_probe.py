"""A Message Batches API in memory that keeps the whole contract, and can be made to break it.

It speaks real HTTP, and the server shares no code with the product, so that it is a second opinion:
the probe must find nothing at it, and with one fault must find that fault.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from batchyard.probe import http, run
from batchyard.probe.session import Session
from helpers_upstream import DEADLINE_S

if TYPE_CHECKING:
    from batchyard.probe.run import Finding

KEY = "sk-right-key-of-the-tests"
BATCHES = "/v1/messages/batches"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NO_RESULTS = "Message Batch {} has no available results."
_IN_PROGRESS = "In progress batches cannot be deleted. Consider canceling the batch instead."
_SNAPSHOT = "claude-haiku-4-5-20251001"


@dataclass
class Call:
    method: str
    path: str
    raw_path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def is_page(self) -> bool:
        return self.method == "GET" and self.path == BATCHES

    @property
    def is_results(self) -> bool:
        return self.path.endswith("/results")


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        return json.loads(self.body)

    def edit(self, change: Callable[[Any], None]) -> None:
        """Change the JSON of the body in place."""
        body = self.json()
        change(body)
        self.body = dump(body)


class Refused(Exception):
    def __init__(self, status: int, kind: str, message: str, **headers: str) -> None:
        self.answer = (status, kind, message)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Kept:
    """A batch."""

    id: str
    created: datetime
    version: str
    requests: list[dict[str, Any]]
    looks: int = 0
    canceled: datetime | None = None
    ended: datetime | None = None
    results: bytes = b""


Change = Callable[["RightServer", Call, Answer], None]


class RightServer:
    """The server. What is public may be changed to break it."""

    def __init__(self, fault: Change | None = None, host: str = "127.0.0.1") -> None:
        self.fault = fault
        self.batches: dict[str, Kept] = {}
        self.deleted: list[str] = []
        self.calls: list[Call] = []
        self.rewrite: Callable[[bytes], bytes] = lambda body: body
        self.judge = check
        self.prefix = "msgbatch_01"
        self.looks = 4  # a batch ends when it is retrieved for this many times
        self.ends_unseen = False
        self.repeats_make_one = True
        self.knows_duplicates = True
        self.deletes_at_any_time = False
        self._known: dict[str, str] = {}
        self._number = itertools.count(1)
        self._lock = threading.Lock()
        server = self

        class Handler(_Handler):
            right = server

        self._http = ThreadingHTTPServer((host, 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://{host}:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, call: Call) -> Answer:
        with self._lock:
            self.calls.append(call)
            number = next(self._number)
            try:
                answer = self._route(call)
            except Refused as refused:
                status, kind, message = refused.answer
                body = {
                    "type": "error",
                    "error": {"type": kind, "message": message},
                    "request_id": f"req_{number:024}",
                }
                answer = Answer(status, dump(body), dict(refused.headers))
            answer.headers.setdefault("content-type", "application/json")
            answer.headers["request-id"] = f"req_{number:024}"
            if answer.status not in {401, 405}:
                answer.headers["anthropic-organization-id"] = "org-1"
                answer.headers["anthropic-workspace-id"] = "wrkspc_01A"
            answer.headers["anthropic-ratelimit-requests-limit"] = "50"
            answer.headers["anthropic-ratelimit-requests-remaining"] = "49"
            answer.headers["anthropic-ratelimit-requests-reset"] = "2026-11-22T00:00:00Z"
            if self.fault is not None:
                self.fault(self, call, answer)
            return answer

    def _route(self, call: Call) -> Answer:
        parts = call.path.removeprefix(BATCHES).split("/")[1:]
        if not call.path.startswith(BATCHES) or len(parts) > 2:
            raise Refused(404, "not_found_error", f"{call.path} does not exist")
        allowed: dict[str, Callable[[], Answer]]
        if not parts:
            allowed = {"GET": lambda: self._page(call), "POST": lambda: self._create(call)}
        elif len(parts) == 1:
            allowed = {
                "GET": lambda: self._retrieve(call, parts[0]),
                "DELETE": lambda: self._delete(parts[0]),
            }
        elif parts[1] == "cancel":
            allowed = {"POST": lambda: self._cancel(call, parts[0])}
        elif parts[1] == "results":
            allowed = {"GET": lambda: self._results(call, parts[0])}
        else:
            raise Refused(404, "not_found_error", f"{call.path} does not exist")
        if call.method not in allowed:
            allow = ", ".join(sorted(allowed))
            raise Refused(405, "invalid_request_error", "Method not allowed", allow=allow)
        self._check_head(call.headers)
        return allowed[call.method]()

    def _check_head(self, headers: dict[str, str]) -> None:
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if key != KEY:
            raise Refused(401, "authentication_error", "API key is invalid.")
        if "anthropic-version" not in headers:
            raise _invalid("anthropic-version: header is required")
        if headers["anthropic-version"] not in {"2023-01-01", "2023-06-01", "2026-10-21"}:
            raise _invalid("anthropic-version: unknown")
        for beta in filter(None, headers.get("anthropic-beta", "").split(",")):
            if not re.fullmatch(r"[a-z0-9-]+", beta.strip()):
                raise _invalid(f"Unexpected value(s) `{beta}` for the `anthropic-beta` header.")
        workspace = headers.get("anthropic-workspace-id", "wrkspc_01A")
        if not workspace.startswith("wrkspc_"):
            raise _invalid("anthropic-workspace-id header must be a valid workspace ID.")
        if workspace != "wrkspc_01A":
            raise Refused(404, "not_found_error", f"Workspace `{workspace}` not found.")

    # Endpoints --------------------------------------------------------------------------------

    def _create(self, call: Call) -> Answer:
        if int(call.headers.get("content-length", "0")) > 256 * 1024 * 1024:
            raise Refused(413, "request_too_large", "Request exceeds the maximum size",
                          connection="close")  # fmt: skip
        try:
            body = json.loads(call.body.decode())
        except ValueError as error:
            raise _invalid(f"The request body is not valid JSON: {error}") from None
        requests = self._check_envelope(body)
        name = call.headers.get("idempotency-key") or call.body.decode()
        is_repeat = (
            "idempotency-key" in call.headers
            or call.headers.get("x-stainless-retry-count", "0") != "0"
        )
        if is_repeat and self.repeats_make_one and name in self._known:
            return self._object(call, self.batches[self._known[name]])
        number = next(self._number)
        batch = Kept(
            id=self.prefix + "".join(_BASE62[number // 62**n % 62] for n in range(22)),
            created=datetime.now(UTC),
            version=call.headers["anthropic-version"],
            requests=requests,
        )
        self.batches[batch.id] = batch
        self._known[name] = batch.id
        return self._object(call, batch)

    def _check_envelope(self, body: Any) -> list[dict[str, Any]]:
        if not isinstance(body, dict):
            raise _invalid("Input should be a valid dictionary or object")
        if "requests" not in body:
            raise _invalid("requests: Field required")
        for key in body:
            if key != "requests":
                raise _invalid(f"{key}: Extra inputs are not permitted")
        requests = body["requests"]
        if not isinstance(requests, list):
            raise _invalid("requests: Input should be a valid list")
        if not requests:
            raise _invalid("requests: List should have at least 1 item after validation, not 0")
        if len(requests) > 100_000:
            raise _invalid("requests: List should have at most 100000 items after validation")
        seen = set()
        for index, request in enumerate(requests):
            where = f"requests.{index}"
            name = request.get("custom_id")
            if "custom_id" not in request:
                raise _invalid(f"{where}.custom_id: Field required")
            if not isinstance(name, str):
                raise _invalid(f"{where}.custom_id: Input should be a valid string")
            if not name:
                raise _invalid(f"{where}.custom_id: String should have at least 1 character")
            if len(name) > 64:
                raise _invalid(f"{where}.custom_id: String should have at most 64 characters")
            if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
                pattern = "'^[a-zA-Z0-9_-]{1,64}$'"
                raise _invalid(f"{where}.custom_id: String should match pattern {pattern}")
            if "params" not in request:
                raise _invalid(f"{where}.params: Field required")
            if name in seen and self.knows_duplicates:
                raise _invalid("requests: custom_id's must be unique within a batch. "
                               f"Duplicate custom_id found: {name}")  # fmt: skip
            seen.add(name)
        return requests

    def _retrieve(self, call: Call, name: str) -> Answer:
        batch = self._find(name)
        batch.looks += 1
        if batch.looks >= self.looks and batch.ended is None:
            batch.ended = datetime.now(UTC)
            batch.results = self.rewrite(self._run(batch))
        answer = self._object(call, batch)
        if batch.ended is None:
            answer.headers["retry-after"] = "10"
        return answer

    def _page(self, call: Call) -> Answer:
        text = call.query.get("limit", "20")
        if not re.fullmatch(r"-?\d+", text):
            raise _invalid("limit: Input should be a valid integer")
        limit = int(text)
        if limit < 1:
            raise _invalid("limit: Input should be greater than or equal to 1")
        if limit > 1000:
            raise _invalid("limit: Input should be less than or equal to 1000")
        newest = [*reversed(self.batches.values())]
        ids = [batch.id for batch in newest]
        after, before = call.query.get("after_id"), call.query.get("before_id")
        cursor = after or before
        if cursor is not None and cursor not in ids:
            raise _invalid("no such batch")
        if after is not None:
            rest = newest[ids.index(after) + 1 :]
            page, more = rest[:limit], len(rest) > limit
        elif before is not None:
            rest = newest[: ids.index(before)]
            page, more = rest[-limit:], len(rest) > limit
        else:
            page, more = newest[:limit], len(newest) > limit
        data = [self._object(call, batch).json() for batch in page]
        body = {
            "data": data,
            "has_more": more,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }
        return Answer(200, dump(body))

    def _cancel(self, call: Call, name: str) -> Answer:
        batch = self._find(name)
        if batch.ended is None and batch.canceled is None:
            batch.canceled = datetime.now(UTC)
        return self._object(call, batch)

    def _delete(self, name: str) -> Answer:
        batch = self._find(name)
        if batch.ended is None and not self.deletes_at_any_time:
            if batch.canceled is not None and (batch.looks == 0 or self.ends_unseen):
                batch.ended = datetime.now(UTC)  # nobody waits for this one
            raise _invalid(_IN_PROGRESS)
        del self.batches[name]
        self.deleted.append(name)
        return Answer(200, dump({"id": name, "type": "message_batch_deleted"}))

    def _results(self, call: Call, name: str) -> Answer:
        batch = self._find(name)
        if batch.ended is None:
            raise Refused(404, "not_found_error", _NO_RESULTS.format(name), x_should_retry="false")
        typed = {"content-type": "application/x-jsonl"}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", call.headers.get("range", ""))
        if span:
            first, last = int(span[1]), int(span[2])
            typed["content-range"] = f"bytes {first}-{last}/{len(batch.results)}"
            return Answer(206, batch.results[first : last + 1], typed)
        if "gzip" in call.headers.get("accept-encoding", ""):
            return Answer(200, gzip.compress(batch.results), typed | {"content-encoding": "gzip"})
        return Answer(200, batch.results, typed)

    def _find(self, name: str) -> Kept:
        if name not in self.batches:
            raise Refused(404, "not_found_error", f"Message Batch {name} not found.")
        return self.batches[name]

    def _object(self, call: Call, batch: Kept) -> Answer:
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        if batch.ended is None:
            counts["processing"] = len(batch.requests)
        else:
            for kind in re.findall(rb'"result":\{"type":"(\w+)"', batch.results):
                counts[kind.decode()] = counts.get(kind.decode(), 0) + 1
        status = "in_progress" if batch.canceled is None else "canceling"
        ended = batch.ended is not None
        host = call.headers["host"]
        body = {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else status,
            "request_counts": counts,
            "ended_at": stamp(batch.ended),
            "created_at": stamp(batch.created),
            "expires_at": stamp(batch.created + timedelta(hours=24)),
            "archived_at": None,
            "cancel_initiated_at": stamp(batch.canceled),
            "results_url": f"http://{host}{BATCHES}/{batch.id}/results" if ended else None,
        }
        return Answer(200, dump(body))

    # Requests ---------------------------------------------------------------------------------

    def _run(self, batch: Kept) -> bytes:
        lines = []
        for index, request in enumerate(batch.requests):
            result = self._result(request["params"], batch.version)
            if batch.canceled is not None and index > 0:
                result = {"type": "canceled"}
            lines.append(dump({"custom_id": request["custom_id"], "result": result}) + b"\n")
        return b"".join(lines)

    def _result(self, params: dict[str, Any], version: str) -> dict[str, Any]:
        problem = self.judge(params, version)
        if problem is not None:
            kind, message = problem
            error = {"details": None, "type": kind, "message": message}
            whole = {"type": "error", "error": error, "request_id": None}
            return {"type": "errored", "error": whole}
        cut = params.get("max_tokens") == 1
        message = {
            "model": _SNAPSHOT,
            "id": f"msg_{next(self._number):024}",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "ok"}],
            "stop_reason": "max_tokens" if cut else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 9, "output_tokens": 1, "service_tier": "batch"},
        }
        return {"type": "succeeded", "message": message}


def check(params: dict[str, Any], version: str) -> tuple[str, str] | None:
    """Return what is wrong with a request."""
    invalid = "invalid_request_error"
    for name in ("model", "max_tokens", "messages"):
        if name not in params:
            return invalid, f"{name}: Field required"
    if params["model"] not in {"claude-haiku-4-5", "claude-opus-4-6"}:
        return "not_found_error", f"model: {params['model']}"
    tokens, cap = params["max_tokens"], 64_000
    if tokens < 1:
        return invalid, "max_tokens: must be greater than or equal to 1"
    if tokens > cap:
        return invalid, (
            f"max_tokens: {tokens} > {cap}, which is the maximum allowed number of output tokens "
            f"for {_SNAPSHOT}"
        )
    if params.get("stream"):
        return invalid, "`stream=True` is not supported in the Message Batches API"
    if params.get("speed") == "fast":
        return invalid, "`speed` is not supported in the Message Batches API"
    for index, tool in enumerate(params.get("tools", ())):
        for key in tool:
            if key not in {"type", "name"}:
                path = f"tools.{index}.{tool['type']}.{key}"
                return invalid, f"{path}: Extra inputs are not permitted"
    known = {"model", "max_tokens", "messages", "stream", "speed", "tools"}
    if version < "2026-10-21":
        known.add("temperature")
    for key in params:
        if key not in known:
            return invalid, f"{key}: Extra inputs are not permitted"
    for index, message in enumerate(params["messages"]):
        blocks = message["content"] if isinstance(message["content"], list) else []
        if message["role"] not in {"user", "assistant", "system"}:
            return invalid, f"messages.{index}.role: Input should be 'user' or 'assistant'"
        for block in blocks if version >= "2026-10-21" else ():
            if message["role"] == "assistant" and block["type"] == "document":
                return invalid, f"messages.{index}: no documents here"
            if message["role"] == "user" and block.get("citations"):
                return invalid, f"messages.{index}: no citations here"
    return None


def stamp(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"


def dump(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _invalid(message: str) -> Refused:
    return Refused(400, "invalid_request_error", message)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    right: RightServer

    def _serve(self) -> None:
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            key = name.lower()
            headers[key] = f"{headers[key]},{value}" if key in headers else value
        length = int(headers.get("content-length", "0"))
        body = self.rfile.read(length) if length < 256 * 1024 * 1024 else b""
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        raw = parts.path.split("/")
        path = "/".join(unquote(part).replace("/", "\0") for part in raw)
        answer = self.right.answer(Call(self.command, path, parts.path, query, headers, body))
        if answer.status == 0:  # of a fault: the connection breaks
            self.wfile.write(answer.body)
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        framed = {name.lower() for name in answer.headers}
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "connection" in framed:
            self.close_connection = True
        if "unframed" not in framed:
            self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        with suppress(OSError):
            self.wfile.flush()

    do_GET = do_POST = do_DELETE = do_PUT = _serve  # noqa: N815 - names of the library

    def log_message(self, *_: object) -> None:
        pass


# Probing it, and ways to break it ----------------------------------------------------------------


def session(url: str, key: str = KEY, timeout_s: float = DEADLINE_S) -> Session:
    return Session(
        http.target(url),
        key,
        model="claude-haiku-4-5",
        timeout_s=timeout_s,
        pause=lambda _: None,
        say=lambda _: None,
    )


def probed(url: str, *, may_create: bool = True, timeout_s: float = DEADLINE_S) -> list[Finding]:
    asked = session(url, timeout_s=timeout_s)
    run.greet(asked)
    found = run.ask(asked, may_create=may_create, wait_s=DEADLINE_S)
    assert run.remove(asked) == []
    return found


def differing(findings: list[Finding]) -> dict[str, str]:
    return {
        f.point.title: f"expected {f.expected}, got {f.got}"
        for f in findings
        if f.outcome == "differs"
    }


@dataclass(frozen=True)
class Fault:
    """One way to be wrong, and the one point that must show it."""

    name: str
    point: str
    change: Change | None = None
    setting: Callable[[RightServer], None] | None = None


def when(condition: Callable[[Call, Answer], bool], change: Callable[[Answer], object]) -> Any:
    """Return a fault of the answers to some calls."""

    def fault(_server: RightServer, call: Call, answer: Answer) -> None:
        if condition(call, answer):
            change(answer)

    return fault


def drop(name: str) -> Callable[[Answer], object]:
    return lambda answer: answer.headers.pop(name, None)


def put(**headers: str) -> Callable[[Answer], None]:
    return lambda answer: answer.headers.update(
        {name.replace("_", "-"): value for name, value in headers.items()}
    )


def turn(status: int, kind: str, message: str) -> Callable[[Answer], None]:
    def change(answer: Answer) -> None:
        error = {"type": kind, "message": message}
        body = {"type": "error", "error": error, "request_id": answer.headers["request-id"]}
        answer.status, answer.body = status, json.dumps(body).encode()

    return change


def says(old: str, new: str) -> Callable[[Answer], None]:
    def change(answer: Answer) -> None:
        answer.body = answer.body.replace(old.encode(), new.encode())

    return change


def breaks(raw: bytes) -> Callable[[Answer], None]:
    def change(answer: Answer) -> None:
        answer.status, answer.body = 0, raw

    return change


def hangs(answer: Answer) -> None:
    answer.headers["content-length"] = str(len(answer.body) + 1)
    answer.headers["unframed"] = "1"
