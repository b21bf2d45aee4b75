"""A small load that goes on through errors, and remembers what it was told."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helpers_upstream import text_of
from helpers_yard import BATCHES, HEADERS, poll, request

if TYPE_CHECKING:
    from helpers_upstream import Upstream
    from helpers_yard import Answer, Yard


class Interrupted(Exception):
    """The yard answered with an error of its own, or not at all."""


@dataclass
class Made:
    """A create call, and what was answered about it."""

    prompts: list[str]
    batch_id: str | None = None
    results: bytes | None = None
    cancel_sent: bool = False
    deleted: bool | None = False
    """None: a delete was sent and not acknowledged."""


@dataclass
class Load:
    """Creates, cancels, deletes; every batch has a name of its own."""

    yard: Yard
    upstream: Upstream
    prefix: str = ""
    made: list[Made] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def _ask(self, method: str, path: str = "", body: bytes | None = None) -> Answer:
        try:
            answer = self.yard.request(method, BATCHES + path, body, HEADERS)
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(repr(error)) from error
        self.statuses.append(answer.status)
        if answer.status >= 500:
            # A process that is ending may have its HTTP server answer alone, without our object.
            if answer.headers.get_content_type() == "application/json":
                assert answer.json()["type"] == "error"
            raise Interrupted(f"{answer.status}: {answer.body!r}")
        assert answer.status == 200, answer.body
        return answer

    def create(self, number: int, steps: str = "") -> Made:
        name = f"{self.prefix}load{len(self.made)}"
        made = Made([f"{name}-{n}{steps}" for n in range(number)])
        self.made.append(made)
        body = json.dumps({"requests": [request(prompt) for prompt in made.prompts]})
        made.batch_id = self._ask("POST", "", body.encode()).json()["id"]
        return made

    def end(self, made: Made) -> None:
        def ended() -> bool:
            shown = self._ask("GET", f"/{made.batch_id}").json()
            return bool(shown["processing_status"] == "ended")

        poll(ended, lambda: f"{made.prompts[0]} does not end: {self.yard.read_log()[-2_000:]}")
        made.results = self._ask("GET", f"/{made.batch_id}/results").body

    def look(self, made: Made) -> None:
        self._ask("GET", f"/{made.batch_id}")

    def cancel(self, made: Made) -> None:
        made.cancel_sent = True
        self._ask("POST", f"/{made.batch_id}/cancel", b"")

    def run(self) -> None:
        """Do everything once.

        Raises:
            Interrupted: the yard failed.
        """
        first = self.create(9)
        self.end(first)
        gate = f"{self.prefix}gate{len(self.made)}"
        second = self.create(7, f"|hold:{gate}")
        third = self.create(5)
        self.end(third)
        self.cancel(second)
        self.upstream.gate(gate).open()
        self.end(second)
        first.deleted = None
        self._ask("DELETE", f"/{first.batch_id}")
        first.deleted = True

    def open_gates(self) -> None:
        for number in range(len(self.made) + 1):
            self.upstream.gate(f"{self.prefix}gate{number}").open()

    def check(self) -> None:
        """Hold all that was acknowledged against a yard that is well; let everything end."""
        self.open_gates()
        listed = {b["id"]: b for b in self._ask("GET", "?limit=1000").json()["data"]}
        for made in self.made:
            if made.deleted is not False and (made.deleted or made.batch_id not in listed):
                assert made.batch_id not in listed, "a deleted batch is back"
            elif made.batch_id is not None:
                assert made.batch_id in listed, f"lost: {made.prompts}"
                before = made.results
                self.end(made)
                assert before is None or before == made.results, "results have changed"
                check_results(made)
                del listed[made.batch_id]
        # What was not acknowledged is whole or absent.
        unknown = {made.prompts[0].partition("|")[0]: made for made in self.made}
        for batch_id in listed:
            found = Made([], batch_id)
            self.end(found)
            assert found.results is not None
            first = min(json.loads(x)["custom_id"] for x in found.results.split(b"\n")[:-1])
            made = unknown[first]
            assert made.batch_id is None, f"{first} is there twice"
            made.batch_id, made.results = batch_id, found.results
            check_results(made)


def check_results(made: Made) -> None:
    """Check that each request has its own answer, once."""
    assert made.results is not None
    lines = [json.loads(line) for line in made.results.split(b"\n")[:-1]]
    by_id = {line["custom_id"]: line["result"] for line in lines}
    wanted = {prompt.partition("|")[0]: prompt for prompt in made.prompts}
    assert len(lines) == len(by_id)
    assert set(by_id) == set(wanted)
    for custom_id, result in by_id.items():
        if result["type"] == "canceled":
            assert made.cancel_sent
        else:
            assert result["type"] == "succeeded", result
            assert result["message"]["content"][0]["text"] == text_of(wanted[custom_id])
