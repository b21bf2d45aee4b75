"""The simulated model with a script: an `Upstream` that fails, refuses and runs dry on demand.

It holds what a script alone cannot: which requests a rule has taken, how often, and the credit that
is left. All of it lasts until the script is replaced. Messages that clients send to `/v1/messages`
themselves are answered as without a script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from batchyard import price, wire
from batchyard.emulator.vocabulary import EXPLANATIONS, MESSAGES
from batchyard.errors import shown
from batchyard.upstream import Failure, FailureKind, Outcome, Reply, Verdict
from batchyard.upstream.simulated.answer import Wish

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from batchyard.clock import Clock
    from batchyard.emulator.script import Credit, RequestRule, Script
    from batchyard.emulator.vocabulary import OutcomeName
    from batchyard.model import Billing
    from batchyard.upstream import Call, Forward, Forwarded
    from batchyard.upstream.simulated import Simulated

_MICROS = 1_000_000
_TOP_UP_MAX = 1_000_000_000
_GARBAGE = "<html><body>This is no message.</body></html>"
_Stop = Literal["refusal", "max_tokens", "pause_turn", "model_context_window_exceeded"]
_STOPS: dict[OutcomeName, _Stop | None] = {
    "succeeded": None,
    "slow": None,
    "refusal": "refusal",
    "truncated": "max_tokens",
    "pause_turn": "pause_turn",
    "context_window": "model_context_window_exceeded",
}
_REFUSED: dict[OutcomeName, tuple[int, str]] = {
    "overloaded": (529, "overloaded_error"),
    "rate_limited": (429, "rate_limit_error"),
    "server_error": (500, "api_error"),
}
_FAILED: dict[OutcomeName, FailureKind] = {
    "timeout": FailureKind.TIMEOUT,
    "broken": FailureKind.BROKEN,
}
_BROKE = Verdict("errored", "billing_error", MESSAGES["billing_error"])
_Key = tuple[str, str]  # workspace and custom_id: what a rule takes for one request


class ScriptedModel:
    """An `Upstream` that does as a script says."""

    def __init__(self, simulated: Simulated, script: Script, *, clock: Clock, seed: int) -> None:
        """Make a model.

        Args:
            simulated: answers what the script lets succeed.
            script: what becomes of requests.
            clock: that slow answers sleep on; the one of `simulated`.
            seed: decides the shares, until a script that names a seed replaces this one.
        """
        self.name: str = simulated.name
        self.billing: Billing = simulated.billing
        self.fetches_urls: bool = simulated.fetches_urls
        self.unset_key: str | None = simulated.unset_key
        self._simulated = simulated
        self._clock = clock
        self._seed = seed
        self._sleeping = 0
        self._follow(script)

    @property
    def waiting(self) -> int:
        """Return how many calls wait for nothing but time to pass."""
        return self._sleeping + self._simulated.waiting

    @property
    def script(self) -> Script:
        """Return the script; set it to start anew with another, its counts and its credit.

        Calls that are waiting end as the old one says.
        """
        return self._script

    @script.setter
    def script(self, script: Script) -> None:
        if script.seed is not None:
            self._seed = script.seed
            self._simulated.reseed(script.seed)
        self._follow(script)

    @property
    def credit_left(self) -> int | float | None:
        """Return requests or dollars, as the script counts; None when it sets no limit."""
        return self._account.left

    @property
    def out_of_credit(self) -> bool:
        """Whether every further request is `errored`."""
        return self._account.is_empty

    def add_credit(self, *, requests: int | None = None, usd: float | None = None) -> None:
        """Pay into the account; it may go below zero by one request's price, which is paid first.

        Raises:
            ValueError: the script does not count so, or not an amount.
        """
        self._account.add(requests=requests, usd=usd)

    async def send(self, call: Call) -> Outcome:
        """Answer one call as the script says. Raises nothing; always lets others run."""
        account = self._account
        if account.is_empty:
            await self._clock.sleep(0)
            return _BROKE
        rule = self._take(call)
        if rule is None:
            return account.charge(await self._simulated.send(call))
        if rule.outcome in _STOPS:
            if rule.seconds:
                await self._sleep(rule.seconds)
            outcome = await self._simulated.send_as(call, _wish(rule, call.custom_id))
            return account.charge(outcome)
        await self._sleep(rule.seconds)
        return _failure(rule)

    def forward(self, request: Forward) -> AbstractAsyncContextManager[Forwarded]:
        """Answer one request of a client, whatever the script says."""
        return self._simulated.forward(request)

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def _follow(self, script: Script) -> None:
        self._script = script
        self._account = _Account(script.credit)
        self._chosen: dict[int, set[_Key]] = {}
        self._taken: dict[tuple[int, _Key], int] = {}

    def _take(self, call: Call) -> RequestRule | None:
        """Return the rule for a call, which counts as a use of it."""
        key = (call.workspace, call.custom_id)
        for index, rule in self._script.rules_for(call.custom_id, seed=self._seed):
            if rule.first is not None:
                chosen = self._chosen.setdefault(index, set())
                if key not in chosen and len(chosen) >= rule.first:
                    continue
                chosen.add(key)
            if rule.times is not None:
                taken = self._taken.get((index, key), 0)
                if taken >= rule.times:
                    continue
                self._taken[index, key] = taken + 1
            return rule
        return None

    async def _sleep(self, seconds: float) -> None:
        waits = seconds > 0
        self._sleeping += waits
        try:
            await self._clock.sleep(seconds)
        finally:
            self._sleeping -= waits


def _wish(rule: RequestRule, custom_id: str) -> Wish:
    return Wish(
        stop_reason=_STOPS[rule.outcome],
        text=None if rule.text is None else rule.text.replace("{custom_id}", custom_id),
        category=rule.category,
        explanation=rule.message or EXPLANATIONS.get(rule.category),
        input_tokens=rule.input_tokens,
        output_tokens=rule.output_tokens,
    )


def _failure(rule: RequestRule) -> Outcome:
    """Return the outcome of a rule that brings no message."""
    if rule.outcome in {"expired", "canceled"}:
        return Verdict("expired" if rule.outcome == "expired" else "canceled")
    if rule.outcome == "errored":
        return Verdict("errored", rule.error, rule.message or MESSAGES[rule.error])
    if rule.outcome == "garbage":
        return Reply(200, (_GARBAGE if rule.text is None else rule.text).encode())
    if rule.outcome in _FAILED:
        return Failure(_FAILED[rule.outcome], rule.message or "as the script says")
    status, error_type = _REFUSED[rule.outcome]
    error = {"type": error_type, "message": rule.message or MESSAGES[error_type]}
    body = wire.encode({"type": "error", "error": error, "request_id": None})
    return Reply(status, body, None if rule.retry_after is None else str(rule.retry_after))


class _Answered(msgspec.Struct, gc=False):
    model: str
    usage: msgspec.Raw


_answered = msgspec.json.Decoder(_Answered)


class _Account:
    """What is left of the credit: requests, or millionths of a dollar."""

    def __init__(self, credit: Credit | None) -> None:
        self._requests: int | None = None
        self._micros: int | None = None
        if credit is not None:
            self._requests = credit.requests
            self._micros = None if credit.usd is None else round(credit.usd * _MICROS)

    @property
    def left(self) -> int | float | None:
        """Return requests or dollars; None when there is no limit."""
        return self._requests if self._micros is None else self._micros / _MICROS

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left."""
        return self.left is not None and self.left <= 0

    def add(self, *, requests: int | None, usd: float | None) -> None:
        """Add to what is left.

        Raises:
            ValueError: not in what is counted here, or not an amount.
        """
        if self.left is None:
            raise ValueError("the script sets no credit, so there is no end to it")
        if (requests is None) == (usd is None):
            raise ValueError("either requests or usd is needed")
        amount = requests if usd is None else usd
        if amount is None or not 0 <= amount <= _TOP_UP_MAX:
            raise ValueError(f"{shown(amount)} is not an amount from 0 to {_TOP_UP_MAX}")
        if requests is not None and self._requests is not None:
            self._requests += requests
        elif usd is not None and self._micros is not None:
            self._micros += round(usd * _MICROS)
        else:
            unit = "usd" if self._requests is None else "requests"
            raise ValueError(f"the script counts credit in {unit}")

    def charge(self, outcome: Outcome) -> Outcome:
        """Take the price of an answer, and return it; or the error, when there is nothing left.

        Several calls may have been on their way when the last credit went to one of them.
        """
        if self.left is None or not isinstance(outcome, Reply) or outcome.status != 200:
            return outcome
        if self.is_empty:
            return _BROKE
        if self._requests is not None:
            self._requests -= 1
        if self._micros is not None:
            message = _answered.decode(outcome.body)
            cost = price.cost_micros(message.model, price.read_usage(message.usage), "batch")
            if cost is None:
                text = f"The script counts credit in usd, and {shown(message.model)} has no price."
                return Verdict("errored", "invalid_request_error", text)
            self._micros -= cost
        return outcome
