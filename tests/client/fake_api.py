"""A Message Batches server that can be told to misbehave, for tests of the run.

Speaks the wire over a real socket and keeps everything in memory. `faults` holds, for each
operation, what happens to its next calls; an empty list means that it works.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from batchyard.client.running.tags import plain

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2026, 11, 22, 8, tzinfo=UTC)


@dataclass
class FakeBatch:
    id: str
    requests: list[dict[str, Any]]
    created_at: str
    idempotency_key: str | None
    polls_left: int
    ended: bool = False
    canceled: bool = False
    listed: bool = True
    sent: list[str] = field(default_factory=list)
    """The ids of its requests as they came; those in `requests` are without the mark."""


@dataclass
class Call:
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0


@dataclass
class FakeApi:
    """The server and its memory.

    Faults of `create`: `drop` (accepted, then the connection closes), `refuse_drop` (closed, not
    accepted), a number (that status, not accepted), `accept_500` (accepted, then a 502),
    `("late", seconds)` (a 504, and accepted that much later).
    Faults of `results`: `cut` (half of the body), `cut_quietly` (half of the lines, ended like a
    whole answer). Faults of others: a number, or `drop`.
    """

    is_yard: bool = False
    billing: str | None = None
    repeated_calls: int | None = None
    """What `progress` says of a batch that has ended; `validate` tells the billing alone."""
    told: dict[str, Any] = field(default_factory=dict)
    """What else `progress` says of every batch."""
    polls: int = 0
    faults: dict[str, deque[Any]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra_lines: list[bytes] = field(default_factory=list)
    batches: dict[str, FakeBatch] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    now: datetime = START
    status: str = "in_progress"
    redirect: str | None = None
    follows_time: bool = False
    """Its time is that of the machine, for runs in processes of their own."""
    hide_created: bool = False
    paused: dict[str, str] = field(default_factory=dict)
    tokens_of: Callable[[dict[str, Any]], int] | None = None
    """The tokens of a request; without it the server has no `count_tokens`."""
    key_of_messages: str = ""
    """The key that single calls need."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, operation: str, *faults: Any) -> None:
        self.faults.setdefault(operation, deque()).extend(faults)

    def next_fault(self, operation: str) -> Any:
        with self._lock:
            queue = self.faults.get(operation)
            return queue.popleft() if queue else None

    def count(self, method: str, ending: str) -> int:
        return sum(c.method == method and c.path.split("?")[0].endswith(ending) for c in self.calls)

    def accept(
        self, requests: list[dict[str, Any]], key: str | None = None, created_at: str | None = None
    ) -> FakeBatch:
        with self._lock:
            if self.is_yard and key is not None:
                for batch in self.batches.values():
                    if batch.idempotency_key == key:
                        return batch
            if self.follows_time:
                self.now = datetime.now(UTC)
            batch_id = f"msgbatch_{len(self.batches) + 1:02}"
            when = created_at or self.now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            sent = [request["custom_id"] for request in requests]
            requests = [{**r, "custom_id": plain(r["custom_id"])} for r in requests]
            batch = FakeBatch(batch_id, requests, when, key, self.polls)
            batch.sent = sent
            batch.listed = not self.hide_created
            self.batches[batch_id] = batch
            return batch

    def line(self, request: dict[str, Any], sent: str | None = None) -> bytes:
        custom_id = request["custom_id"]
        result = self.outcomes.get(custom_id) or succeeded(
            f"Report on {custom_id}.", model=request["params"]["model"]
        )
        return json.dumps({"custom_id": sent or custom_id, "result": result}).encode() + b"\n"


def succeeded(
    text: str, *, stop: str = "end_turn", model: str = "claude-opus-4-8", **more: Any
) -> dict[str, Any]:
    return {
        "type": "succeeded",
        "message": {
            "id": "msg_01",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": text},
            ],
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 1_000, "output_tokens": 100, "service_tier": "batch"},
            **more,
        },
    }


def errored(kind: str, message: str) -> dict[str, Any]:
    error = {"type": kind, "message": message}
    return {"type": "errored", "error": {"type": "error", "error": error, "request_id": None}}


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms between head and body

        def log_message(self, *_: object) -> None:
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return api.now.strftime("%a, %d %b %Y %H:%M:%S GMT")

        def do_GET(self) -> None:
            self.handle_call("GET")

        def do_POST(self) -> None:
            self.handle_call("POST")

        def do_DELETE(self) -> None:
            self.handle_call("DELETE")

        def handle_call(self, method: str) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            call = Call(method, self.path, headers)
            api.calls.append(call)
            if api.redirect is not None:
                self.send_response(307)
                self.send_header("location", api.redirect)
                self.send_header("content-length", "0")
                self.end_headers()
                return
            path = self.path.split("?")[0].removeprefix("/v1/messages/")
            parts = path.split("/")
            match (method, parts):
                case ("POST", ["", "v1", "messages"]):
                    self.plain("message", lambda: self.message(json.loads(body)))
                case ("POST", ["batches"]):
                    self.create(body, headers)
                case ("DELETE", ["batches", batch_id]):
                    self.plain("delete", lambda: self.delete(batch_id))
                case ("GET", ["batches"]):
                    self.plain("list", self.page)
                case ("GET", ["batches", batch_id]):
                    self.plain("retrieve", lambda: self.retrieve(batch_id))
                case ("POST", ["batches", batch_id, "cancel"]):
                    self.plain("cancel", lambda: self.cancel(batch_id))
                case ("GET", ["batches", batch_id, "progress"]) if api.is_yard:
                    self.plain("progress", lambda: self.progress(batch_id))
                case ("POST", ["batches", "validate"]) if api.is_yard and api.billing is not None:
                    self.send(200, {"invalid": 0, "billing": api.billing})
                case ("POST", ["count_tokens"]) if api.tokens_of is not None:
                    tokens = api.tokens_of(json.loads(body))
                    self.plain("count", lambda: self.send(200, {"input_tokens": tokens}))
                case ("GET", ["batches", batch_id, "results"]):
                    self.results(batch_id)
                case _:
                    self.error(404, "not_found_error")

        def plain(self, operation: str, answer: Any) -> None:
            fault = api.next_fault(operation)
            if fault == "drop":
                self.close_connection = True
            elif isinstance(fault, int):
                self.error(fault, "api_error")
            else:
                answer()

        def create(self, body: bytes, headers: dict[str, str]) -> None:
            api.bodies.append(body)
            fault = api.next_fault("create")
            if fault == "refuse_drop":
                self.close_connection = True
            elif isinstance(fault, tuple):
                when = api.now + timedelta(seconds=fault[1])
                requests = json.loads(body)["requests"]
                api.accept(requests, created_at=when.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
                self.error(504, "api_error")
            elif isinstance(fault, int):
                kind = "rate_limit_error" if fault == 429 else "api_error"
                self.error(fault, "invalid_request_error" if fault == 400 else kind)
            else:
                requests = json.loads(body)["requests"]
                batch = api.accept(requests, headers.get("idempotency-key"))
                if fault == "drop":
                    self.close_connection = True
                elif fault == "accept_500":
                    self.error(502, "api_error")
                else:
                    self.send(200, self.shape(batch))

        def message(self, params: dict[str, Any]) -> None:
            if self.headers.get("x-api-key") != api.key_of_messages:
                self.error(401, "authentication_error")
            else:
                self.send(200, succeeded("Told at once.", model=params["model"])["message"])

        def delete(self, batch_id: str) -> None:
            known = api.batches.pop(batch_id, None)
            if known is None:
                self.error(404, "not_found_error")
            else:
                self.send(200, {"id": batch_id, "type": "message_batch_deleted"})

        def retrieve(self, batch_id: str) -> None:
            batch = api.batches.get(batch_id)
            if batch is None:
                self.error(404, "not_found_error")
                return
            if batch.polls_left <= 0 or batch.canceled:
                batch.ended = True
            batch.polls_left -= 1
            self.send(200, self.shape(batch))

        def cancel(self, batch_id: str) -> None:
            api.batches[batch_id].canceled = True
            self.send(200, self.shape(api.batches[batch_id]))

        def progress(self, batch_id: str) -> None:
            batch = api.batches[batch_id]
            total = len(batch.requests)
            done = total if batch.ended else total // 2
            fields = {
                "id": batch_id, "results": done, "billing": api.billing, "paused": api.paused,
                "repeated_calls": api.repeated_calls if batch.ended else 0,
            }  # fmt: skip
            self.send(200, fields | api.told)

        def page(self) -> None:
            for batch in api.batches.values():
                batch.ended = batch.ended or batch.polls_left <= 0 or batch.canceled
            found = [
                self.shape(b)
                for b in reversed(api.batches.values())
                if b.listed and datetime.fromisoformat(b.created_at) <= api.now
            ]
            last = found[-1]["id"] if found else None
            self.send(200, {"data": found, "has_more": False, "last_id": last})

        def results(self, batch_id: str) -> None:
            fault = api.next_fault("results")
            if isinstance(fault, int):
                self.error(fault, "api_error")
                return
            batch = api.batches[batch_id]
            canceled = {"type": "canceled"}
            sent = batch.sent or [r["custom_id"] for r in batch.requests]
            lines = [
                json.dumps({"custom_id": name, "result": canceled}).encode() + b"\n"
                if batch.canceled
                else api.line(r, name)
                for r, name in reversed(list(zip(batch.requests, sent, strict=True)))
            ]
            body = b"".join([*lines, *api.extra_lines])
            self.head(200, len(b"".join(lines[:1])) if fault == "cut_quietly" else len(body))
            if fault is None:
                self.wfile.write(body)
            else:
                self.wfile.write(b"".join(lines[:1]) if fault == "cut_quietly" else body[:-40])
                self.close_connection = True

        def shape(self, batch: FakeBatch) -> dict[str, Any]:
            total = len(batch.requests)
            counts = dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0)
            counts["processing"] = 0 if batch.ended else total
            if batch.ended:
                counts["succeeded"] = total
            created = datetime.fromisoformat(batch.created_at)
            return {
                "id": batch.id,
                "type": "message_batch",
                "processing_status": "ended" if batch.ended else api.status,
                "request_counts": counts,
                "ended_at": batch.created_at if batch.ended else None,
                "created_at": batch.created_at,
                "expires_at": (created + timedelta(hours=24)).astimezone(UTC).isoformat(),
                "archived_at": None,
                "cancel_initiated_at": None,
                # A foreign origin: who follows it sends the key to a stranger.
                "results_url": "http://203.0.113.1/steal" if batch.ended else None,
            }

        def send(self, status: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.head(status, len(body))
            self.wfile.write(body)

        def error(self, status: int, kind: str) -> None:
            error = {"type": kind, "message": f"fault {status}"}
            self.send(status, {"type": "error", "error": error, "request_id": "req_01"})

        def head(self, status: int, length: int) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(length))
            self.send_header("request-id", "req_01")
            if api.is_yard:
                self.send_header("batchyard-version", "test")
            self.end_headers()

    return Handler
