"""How often upstreams were called, and why calls were repeated: for people, in bounded memory.

Counted since the start of the process. A batch remembers its last requests that failed a try, so
that one can be looked at; batches beyond a number are forgotten, the longest unused first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

_BATCHES_MAX = 1_000
_FAILING_MAX = 20
_REASONS_MAX = 50
_TEXT_CHARS_MAX = 200


@dataclass(slots=True)
class Failing:
    """A request of which a call failed."""

    tries: int
    reason: str
    message: str
    is_over: bool = False
    """Whether it has a result by now."""


@dataclass(slots=True)
class Account:
    """The calls of one batch."""

    calls: int = 0
    repeated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of the calls that failed and were repeated, or would have been."""
    failing: OrderedDict[str, Failing] = field(default_factory=OrderedDict)
    """The last ones, by `custom_id`."""

    def failed(self, custom_id: str, tries: int, reason: str, message: str) -> None:
        """Note a call that came to nothing."""
        if reason in self.reasons or len(self.reasons) < _REASONS_MAX:
            self.reasons[reason] += 1
        self.failing[custom_id] = Failing(tries, reason, message[:_TEXT_CHARS_MAX])
        self.failing.move_to_end(custom_id)
        if len(self.failing) > _FAILING_MAX:
            self.failing.popitem(last=False)

    def over(self, custom_id: str) -> None:
        """Note that a request that failed a try has its result."""
        failing = self.failing.get(custom_id)
        if failing is not None:
            failing.is_over = True


class Accounts:
    """The accounts of the batches of one worker."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, Account] = OrderedDict()

    def of(self, batch_id: str) -> Account:
        """Return the account of a batch, a new one if need be."""
        account = self._of.get(batch_id)
        if account is None:
            account = self._of[batch_id] = Account()
            if len(self._of) > _BATCHES_MAX:
                self._of.popitem(last=False)
        return account

    def find(self, batch_id: str) -> Account | None:
        """Return the account of a batch, if it is remembered."""
        return self._of.get(batch_id)
