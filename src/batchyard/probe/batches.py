"""The batches that the probe makes, few and small, and what was seen of them.

All points share them. One is canceled while it runs: its calls follow each other on one
connection, because on a quick server it may end at any moment, and each is judged only when a
later answer shows that it had not.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batchyard import models, price
from batchyard.probe import check
from batchyard.probe.check import NotRun, at
from batchyard.probe.http import Connection, NoAnswer, parsed
from batchyard.probe.session import BATCHES, is_plain_id, new_head

if TYPE_CHECKING:
    from batchyard.probe.http import Exchange, Request
    from batchyard.probe.session import Session

PROMPT = "Reply with the one word: ok"
OUTPUT_TOKENS = 16
LONG_ID = "longest-" + "i" * 56
OVER_CAP = 9_999_999
EXTENDED_MODEL = "claude-opus-4-6"
UNKNOWN_MODEL = "claude-batchyard-probe-no-such-model"
_INPUT_TOKENS = 40  # of one prompt, generously
_POLL_S = 0.1
_POLL_GROWTH = 1.5
_POLL_MAX_S = 10.0
_SAY_INTERVAL_S = 60.0
_UNFINISHED = frozenset({"in_progress", "canceling"})


def params(model: str, /, **changes: object) -> dict[str, object]:
    """Return the `params` of a tiny request; a changed value of None takes the key away."""
    whole = {
        "model": model,
        "max_tokens": OUTPUT_TOKENS,
        "messages": [{"role": "user", "content": PROMPT}],
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not None}


Requests = dict[str, dict[str, object]]


def main_requests(model: str) -> Requests:
    """Return requests for the old version by custom_id: three that run, and faulty ones."""
    return {
        "ok-1": params(model, stream=False),
        LONG_ID: params(model, temperature=1),
        "cut-short": params(
            model, max_tokens=1, messages=[{"role": "user", "content": "Count from 1 to 99."}]
        ),
        "no-messages": params(model, messages=None),
        "no-model": params(model, model=None),
        "no-max-tokens": params(model, max_tokens=None),
        "unknown-model": params(UNKNOWN_MODEL),
        "stream": params(model, stream=True),
        "zero-tokens": params(model, max_tokens=0),
        "fast": params(model, speed="fast"),
        "over-cap": params(model, max_tokens=OVER_CAP),
        "extended": params(EXTENDED_MODEL, max_tokens=models.EXTENDED_OUTPUT_TOKENS),
        "extra-key": params(
            model,
            tools=[{"type": "web_fetch_20250910", "name": "web_fetch", "batchyard_probe": 1}],
        ),
        "bad-role": params(model, messages=[{"role": "robot", "content": PROMPT}]),
    }


def modern_requests(model: str) -> Requests:
    """Return requests for version 2026-10-21: one that runs, and what that version refuses."""
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "Grass is green."},
    }
    cited = {
        "type": "text",
        "text": PROMPT,
        "citations": [
            {
                "type": "char_location",
                "cited_text": "Grass",
                "document_index": 0,
                "document_title": None,
                "start_char_index": 0,
                "end_char_index": 5,
            }
        ],
    }
    return {
        "ok-1": params(
            model, messages=[{"role": "user", "content": f"{PROMPT} (é, 語, \U0001f600)"}]
        ),
        "temperature": params(model, temperature=1),
        "document": params(
            model,
            messages=[
                {"role": "user", "content": PROMPT},
                {"role": "assistant", "content": [document]},
                {"role": "user", "content": PROMPT},
            ],
        ),
        "citations": params(model, messages=[{"role": "user", "content": [cited]}]),
    }


def canceled_requests(model: str) -> Requests:
    """Return requests that run, for the batch that is canceled."""
    return {f"cancel-{number}": params(model) for number in (1, 2, 3)}


# A request that cannot run, and so costs nothing.
FAULTY: dict[str, object] = {"model": UNKNOWN_MODEL, "max_tokens": OUTPUT_TOKENS}


@dataclass(frozen=True, slots=True)
class Plan:
    """What making the batches takes."""

    batches_max: int
    requests_max: int
    runnable: int
    micros: int | None
    """List price of the runnable ones as a batch, at most; None when the price is not known."""


def plan(model: str) -> Plan:
    """Return how much would be sent, and what it costs when every fault is refused."""
    twice = 2 * 2  # two creates are sent twice, which makes one batch each or two
    requests = len(main_requests(model)) + len(modern_requests(model))
    requests += len(canceled_requests(model)) + twice
    runnable = 3 + 1 + len(canceled_requests(model))
    usage = price.Usage(input_tokens=_INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    one = price.cost_micros(model, usage, "batch")
    return Plan(3 + twice, requests, runnable, None if one is None else one * runnable)


@dataclass(slots=True)
class Specimen:
    """One batch of the probe."""

    session: Session
    requests: Requests
    creation: Exchange | NoAnswer
    head: dict[str, str] | None = None
    """Key and version that it was created with; those of the session when None."""
    seen: list[Exchange] = field(default_factory=list)
    """Its retrieves, in order; the last shows the end when there was one."""
    results: Exchange | None = None
    """Its results, read as soon as the end was seen."""
    lost: str | None = None
    """Why the end was not seen."""

    @property
    def created(self) -> Exchange:
        """Return the answer of its create call.

        Raises:
            NoAnswer: there was none.
        """
        return _answered(self.creation)

    @property
    def id(self) -> str:
        """Return its id.

        Raises:
            NotRun: it was not created.
        """
        if isinstance(self.creation, NoAnswer):
            raise NotRun(f"the batch could not be created: {self.creation}")
        found: object = at(self.creation.json(), "id")
        if self.creation.status != 200 or not is_plain_id(found):
            raise NotRun(f"the batch could not be created: {check.answer(self.creation)}")
        return str(found)

    @property
    def path(self) -> str:
        """Return the path of the batch."""
        return f"{BATCHES}/{self.id}"

    def retrieved(self) -> Exchange:
        """Return the last retrieve, a new one while there is none."""
        return self.seen[-1] if self.seen else self.session.get(self.path)

    @property
    def ended(self) -> tuple[dict[str, Any], Exchange]:
        """Return the batch as it was when its end was seen, and the call.

        Raises:
            NotRun: it has not ended.
        """
        _ = self.id
        if self.lost is not None or not self.seen:
            raise NotRun(self.lost or "the end of the batch was not waited for")
        body = self.seen[-1].json()
        assert isinstance(body, dict)  # as `look` has seen
        return body, self.seen[-1]

    @property
    def read(self) -> Exchange:
        """Return the results as first read.

        Raises:
            NotRun: they are not there.
        """
        _ = self.ended
        if self.results is None or self.results.status != 200:
            raise NotRun("the results could not be read")
        return self.results

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return the result lines that are JSON objects."""
        found = [parsed(line) for line in self.read.body.splitlines()]
        return [line for line in found if isinstance(line, dict)]

    def result(self, custom_id: str) -> dict[str, Any]:
        """Return the result of one request.

        Raises:
            NotRun: it has none.
        """
        for line in self.lines:
            result = line.get("result")
            if line.get("custom_id") == custom_id and isinstance(result, dict):
                return result
        raise NotRun(f"there is no result for {custom_id}")

    def alone(self, custom_id: str) -> Request:
        """Return the request that makes a batch of this one request."""
        body = _body({custom_id: self.requests[custom_id]})
        return self.session.request("POST", body=body, head=self.head)

    def look(self) -> bool:
        """Retrieve the batch; whether there is nothing more to wait for."""
        try:
            exchange = self.session.get(self.path)
        except (NoAnswer, NotRun) as error:
            self.lost = f"the batch could not be watched: {error}"
            return True
        status = status_of(exchange)
        if status is None:
            self.lost = f"the batch cannot be watched: {check.answer(exchange)}"
            return True
        self.seen.append(exchange)
        if status != "ended":
            return False
        try:
            self.results = self.session.get(f"{self.path}/results")
        except (NoAnswer, NotRun):
            self.results = None
        return True


def _answered(came: Exchange | NoAnswer) -> Exchange:
    if isinstance(came, NoAnswer):
        raise came
    return came


def status_of(exchange: Exchange | NoAnswer) -> str | None:
    """Return the `processing_status` of a 200, None when there is none."""
    if isinstance(exchange, NoAnswer) or exchange.status != 200:
        return None
    status = at(exchange.json(), "processing_status")
    return status if isinstance(status, str) else None


class Story:
    """The calls on the batch that is canceled, by name, in the order in which they were made."""

    def __init__(self) -> None:
        self._calls: dict[str, Exchange | NoAnswer] = {}

    def add(self, name: str, came: Exchange | NoAnswer) -> None:
        """Note a call and what came of it."""
        self._calls[name] = came

    def call(self, name: str) -> Exchange:
        """Return a call that was made while the batch had not ended.

        Raises:
            NotRun: it was not made, or the batch may have ended before.
            NoAnswer: nothing came of it.
        """
        exchange = self.ask(name)
        names = list(self._calls)
        later = names[names.index(name) :]
        if not any(status_of(self._calls[other]) in _UNFINISHED for other in later):
            raise NotRun("the batch ended before this could be asked")
        return exchange

    def canceling(self, name: str) -> Exchange:
        """Return a call that was made while the batch was `canceling`.

        Raises:
            NotRun: as `call`; or the batch was not being canceled.
        """
        exchange = self.call(name)
        if status_of(self._calls["cancel"]) != "canceling":
            raise NotRun("the batch is not canceling")
        return exchange

    def ask(self, name: str) -> Exchange:
        """Return a call whatever the state of the batch was.

        Raises:
            NotRun: it was not made.
            NoAnswer: nothing came of it.
        """
        if name not in self._calls:
            raise NotRun("the batch could not be brought into the state that this needs")
        return _answered(self._calls[name])


class Batches:
    """All batches of one probe."""

    def __init__(self, session: Session) -> None:
        """Make them.

        Raises:
            NotRun: the server stayed busy.
        """
        self._session = session
        model = session.model
        self.canceled, self.story = self._cancel(canceled_requests(model))
        self.main = self._create(main_requests(model))
        self.modern = self._create(modern_requests(model), head=new_head(session.key))
        # The official clients repeat a create with this header and nothing else to know it by.
        repeated = {f"retried-{secrets.token_hex(4)}": FAULTY}
        self.broken = self._create(repeated, x_stainless_retry_count="0")
        self.retry = self._create(repeated, x_stainless_retry_count="1")
        key = f"batchyard-probe-{secrets.token_hex(8)}"
        self.named = [self._create({"named": FAULTY}, idempotency_key=key) for _ in range(2)]
        self.deleted: dict[str, Exchange] = {}

    def _create(
        self, requests: Requests, head: dict[str, str] | None = None, **headers: str | None
    ) -> Specimen:
        session = self._session
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        request = session.request("POST", body=_body(requests), head=head, headers=given)
        return Specimen(session, requests, session.attempt(request), head)

    def _cancel(self, requests: Requests) -> tuple[Specimen, Story]:
        session, story = self._session, Story()
        with Connection(session.target, session.timeout_s) as connection:
            creation = session.attempt(session.request("POST", body=_body(requests)), connection)
            specimen = Specimen(session, requests, creation)
            try:
                path = specimen.path
            except NotRun:
                return specimen, story

            def call(name: str, method: str, path: str, **headers: str | None) -> bool:
                body = b"" if method == "POST" else None
                given = {key.replace("_", "-"): value for key, value in headers.items()}
                request = session.request(method, path, body=body, headers=given)
                came = session.attempt(request, connection)
                story.add(name, came)
                return not isinstance(came, NoAnswer) and came.status == 200

            call("retrieve", "GET", path)
            call("results", "GET", f"{path}/results")
            if call("delete", "DELETE", path):
                return specimen, story
            # TypeScript cancels without a content type, Python with one; both without a body.
            call("cancel", "POST", f"{path}/cancel", content_type=None)
            call("canceling", "GET", path)
            call("results while canceling", "GET", f"{path}/results")
            call("cancel again", "POST", f"{path}/cancel")
            if call("delete while canceling", "DELETE", path):
                return specimen, story
            call("last", "GET", path)
        return specimen, story

    @property
    def all(self) -> list[Specimen]:
        """Return those whose end is waited for."""
        return [self.main, self.modern, self.canceled, self.broken]

    def wait(self, wait_s: float) -> None:
        """Look at all of them until they have ended, for so many seconds at most."""
        end_s = time.monotonic() + wait_s
        open_ = []
        for specimen in self.all:
            try:
                _ = specimen.id
            except NotRun as error:
                specimen.lost = str(error)
            else:
                open_.append(specimen)
        every_s, said, said_s = _POLL_S, 0, time.monotonic()
        while True:
            open_ = [specimen for specimen in open_ if not specimen.look()]
            if not open_:
                return
            if time.monotonic() >= end_s:
                break
            if len(open_) != said or time.monotonic() - said_s >= _SAY_INTERVAL_S:
                said, said_s = len(open_), time.monotonic()
                self._session.say(f"waiting for {said} of {len(self.all)} batches to end")
            self._session.pause(every_s)
            every_s = min(every_s * _POLL_GROWTH, _POLL_MAX_S)
        for specimen in open_:
            specimen.lost = f"the batch has not ended within {wait_s:g} s"

    def delete(self) -> dict[str, Exchange]:
        """Delete the ended batch of one faulty request; return that call and those after it.

        Raises:
            NotRun: it has not ended.
        """
        if not self.deleted:
            path, session = self.broken.path, self._session
            _ = self.broken.ended
            # A DELETE of the Python client: a content type, and no body.
            typed = {"content-type": "application/json"}
            calls = {
                "cancel an ended one": session.request("POST", f"{path}/cancel", body=b""),
                "delete": session.request("DELETE", path, headers=dict(typed)),
                "retrieve": session.request("GET", path),
                "results": session.request("GET", f"{path}/results"),
                "cancel": session.request("POST", f"{path}/cancel", body=b""),
                "delete again": session.request("DELETE", path),
                "list": session.request("GET", f"{BATCHES}?limit=100"),
            }
            for name, request in calls.items():
                self.deleted[name] = session.send(request)
        return self.deleted


def _body(requests: Requests) -> dict[str, object]:
    return {"requests": [{"custom_id": key, "params": value} for key, value in requests.items()]}
