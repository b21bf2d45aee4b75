"""What a script does to calls of clients: answers that never come, break off, or are errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from batchyard import wire
from batchyard.emulator.calls import operation
from batchyard.emulator.vocabulary import MESSAGES
from batchyard.errors import PaymentRequired
from batchyard.server.protocol import ABORT, CLOSE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from batchyard.clock import Clock
    from batchyard.emulator.model import ScriptedModel
    from batchyard.emulator.script import CallRule


class _Cut(Exception):
    """The answer has been sent as far as it may go."""


class Faults:
    """ASGI layer between the guard and the routes."""

    def __init__(self, app: ASGIApp, clock: Clock, model: ScriptedModel) -> None:
        self._app = app
        self._clock = clock
        self._model = model
        self._rules: list[_Rule] = []

    def set_rules(self, rules: tuple[CallRule, ...]) -> None:
        """Follow these rules from now on; their counts start anew."""
        self._rules = [_Rule(rule) for rule in rules]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or fail to as the script says."""
        name = operation(scope["method"], scope["path"])
        if name == "create" and self._model.out_of_credit and not _is_repeat(scope):
            raise PaymentRequired(MESSAGES["billing_error"], should_retry=False)
        rule = self._rule_for(name)
        if rule is None:
            await self._app(scope, receive, send)
            return
        match rule.fault:
            case "error":
                await _error(rule, scope)(scope, receive, send)
            case "slow":
                await self._clock.sleep(rule.seconds)
                await self._app(scope, receive, send)
            case "drop":
                await self._drop(scope, receive)
            case "cut":
                await self._cut(rule.lines, scope, receive, send)

    def _rule_for(self, name: str | None) -> CallRule | None:
        if name is None:
            return None
        for rule in self._rules:
            if rule.rule.on in {name, "any"} and rule.is_due():
                return rule.rule
        return None

    async def _drop(self, scope: Scope, receive: Receive) -> None:
        """Do the work, and close the connection without a word."""

        async def swallowed(message: Message) -> None:
            pass

        await self._app(scope, receive, swallowed)
        scope["extensions"][ABORT]()
        await _disconnected(receive)

    async def _cut(self, lines: int | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as usual, but break off."""
        # Lines cannot be counted in a compressed body.
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        limit = _Limit(lines)

        async def limited(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                return
            part = limit.take(bytes(message.get("body", b"")))  # a view of results, perhaps
            if part:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            if limit.is_reached or not message.get("more_body", False):
                raise _Cut

        try:
            await self._app({**scope, "headers": plain}, receive, limited)
        except _Cut:
            scope["extensions"][CLOSE]()
            await _disconnected(receive)


def _is_repeat(scope: Scope) -> bool:
    """Whether a create call may repeat an earlier one, which was paid for."""
    headers = dict(scope["headers"])
    retries = headers.get(b"x-stainless-retry-count", b"0")
    return retries not in {b"", b"0"} or b"idempotency-key" in headers


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Rule:
    """A rule, and how often it has come up."""

    def __init__(self, rule: CallRule) -> None:
        self.rule = rule
        self._seen = 0

    def is_due(self) -> bool:
        """Count a call that fits, and say whether the rule holds for it."""
        self._seen += 1
        number = self._seen - self.rule.after
        return number >= 1 and (self.rule.times == 0 or number <= self.rule.times)


class _Limit:
    """How much of an answer passes: some lines, or half of its first piece."""

    def __init__(self, lines: int | None) -> None:
        self._lines = lines
        self.is_reached = False

    def take(self, body: bytes) -> bytes:
        """Return the part of `body` that passes."""
        if self._lines is None:
            self.is_reached = bool(body)
            return body[: len(body) // 2]
        end = 0
        while self._lines > 0:
            end = body.find(b"\n", end) + 1
            if end == 0:
                return body
            self._lines -= 1
        self.is_reached = True
        return body[:end]


def _error(rule: CallRule, scope: Scope) -> Response:
    body = {
        "type": "error",
        "error": {"type": rule.type, "message": rule.message},
        "request_id": scope["state"]["request_id"],
    }
    headers = {}
    if rule.retry_after is not None:
        headers["retry-after"] = str(rule.retry_after)
    if rule.should_retry is not None:
        headers["x-should-retry"] = "true" if rule.should_retry else "false"
    return Response(wire.encode(body), rule.status, headers=headers, media_type="application/json")
