"""How often upstreams were called, and why calls were repeated: for people, in bounded memory.

Counted since the start of the process. A batch remembers its last requests that failed a try, so
that one can be looked at; batches beyond a number are forgotten, the longest unused first, and none
that is worked on.

Each worker writes what it has counted into the ledger, once a second where it has changed (`news`,
`dump`), so that any server process can tell it, also after this one has ended (`merge`). Of a batch
that ends well within a second nothing is told. What a process had in flight that ended without a
word is counted by the ledger, from its last word.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from batchyard import limits
from batchyard.errors import DiskFull

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from batchyard.ledger import Ledger

_BATCHES_MAX = 1_000
_FAILING_MAX = 20
_REASONS_MAX = 50
_REASONS_OF_ONE_MAX = 8
_TEXT_CHARS_MAX = 200
_TOLD_REASONS_MAX = 12
_TOLD_PER_ROUND = 256
_DAMAGED_MAX = 5
_DAMAGE_CHARS_MAX = 300


@dataclass(slots=True)
class Failing:
    """A request of which a call failed."""

    tries: int
    reason: str
    """Of the last one that failed."""
    message: str
    is_over: bool = False
    """Whether it has a result by now."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How often each, the first ones."""

    def note(self, reason: str) -> None:
        """Count why a call failed."""
        _count(self.reasons, reason, _REASONS_OF_ONE_MAX)


def _count(reasons: dict[str, int], reason: str, most: int) -> None:
    """Count a reason, unless it is one more than so many."""
    if reason in reasons or len(reasons) < most:
        reasons[reason] = reasons.get(reason, 0) + 1


@dataclass(slots=True)
class Account:
    """The calls of one batch."""

    calls: int = 0
    repeated: int = 0
    unknown: int = 0
    """Requests that were in flight when their process ended: what became of a call is unknown."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Of the calls that failed and were repeated, or would have been."""
    failing: OrderedDict[str, Failing] = field(default_factory=OrderedDict)
    """The last ones, by `custom_id`."""
    damaged: dict[int, str] = field(default_factory=dict)
    """What the disk has damaged, in words, by shard: the first ones."""

    def damage(self, shard: int, why: str) -> None:
        """Note what the disk has damaged of a shard, and what comes of it."""
        if shard in self.damaged or len(self.damaged) < _DAMAGED_MAX:
            self.damaged[shard] = why[:_DAMAGE_CHARS_MAX]

    def failed(self, custom_id: str, tries: int, reason: str, message: str) -> None:
        """Note a call that came to nothing."""
        _count(self.reasons, reason, _REASONS_MAX)
        before = self.failing.get(custom_id)
        failing = Failing(tries, reason, message[:_TEXT_CHARS_MAX])
        if before is not None and tries > 1:  # else who has taken it up counts anew
            failing.reasons = before.reasons
        failing.note(reason)
        self.failing[custom_id] = failing
        self.failing.move_to_end(custom_id)
        if len(self.failing) > _FAILING_MAX:
            self.failing.popitem(last=False)

    def unsent(self, *, is_repeated: bool) -> None:
        """Note that a call which was counted was given up before it was sent."""
        self.calls -= 1
        self.repeated -= is_repeated

    def state(self) -> tuple[object, ...]:
        """Return what changes with the account."""
        over = sum(each.is_over for each in self.failing.values())
        damaged = tuple(self.damaged.items())
        return self.calls, self.repeated, self.unknown, self.reasons.total(), over, damaged

    def over(self, custom_id: str) -> None:
        """Note that a request that failed a try has its result."""
        failing = self.failing.get(custom_id)
        if failing is not None:
            failing.is_over = True


class Accounts:
    """The accounts of the batches of one worker."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, Account] = OrderedDict()
        self._told: dict[str, tuple[object, ...]] = {}
        """How each account was when it was told last."""

    def of(self, batch_id: str) -> Account:
        """Return the account of a batch, a new one if need be."""
        account = self._of.get(batch_id)
        if account is None:
            account = self._of[batch_id] = Account()
        return account

    def find(self, batch_id: str) -> Account | None:
        """Return the account of a batch, if it is remembered."""
        return self._of.get(batch_id)

    def news(self, held: Collection[str]) -> dict[str, str]:
        """Return what has changed since the last call and is worth telling, by batch.

        Forgets batches that are too many.

        Args:
            held: the batches that the worker works on.
        """
        found: dict[str, str] = {}
        for batch_id, account in self._of.items():
            state = account.state()
            if state == self._told.get(batch_id):
                continue
            if batch_id in held or batch_id in self._told or account.reasons or account.damaged:
                found[batch_id] = dump(account)
                self._told[batch_id] = state
                if len(found) >= _TOLD_PER_ROUND:
                    break
        self._forget(held)
        return found

    def _forget(self, held: Collection[str]) -> None:
        if len(self._of) <= _BATCHES_MAX:
            return
        # One that is worked on must stay: a new account of it would be told over the old one.
        for batch_id in self._of.keys() & held:
            self._of.move_to_end(batch_id)
        while len(self._of) > max(_BATCHES_MAX, len(held)):
            forgotten, _ = self._of.popitem(last=False)
            self._told.pop(forgotten, None)

    async def tell(self, ledger: Ledger, owner: str, now_us: int, held: Collection[str]) -> None:
        """Write into the ledger what has changed, for others and for later.

        Args:
            ledger: where.
            owner: the worker.
            now_us: the time.
            held: the batches that it works on.

        Raises:
            StoreError: the ledger failed.
        """
        news = self.news(held)
        if not news:
            return
        try:
            await ledger.share(owner, now_us, now_us, (), news)
        except DiskFull:
            self.tell_again()

    def tell_again(self) -> None:
        """Take note that what was told of late may not have been written."""
        self._told.clear()


class _Failing(msgspec.Struct, array_like=True):
    custom_id: str
    tries: int
    reason: str
    message: str
    is_over: bool
    reasons: dict[str, int] = {}


class _Told(msgspec.Struct):
    calls: int
    repeated: int
    reasons: dict[str, int]
    failing: list[_Failing]
    damaged: dict[int, str] = {}
    unknown: int = 0


_decoder: msgspec.json.Decoder[_Told | int] = msgspec.json.Decoder(_Told | int)


def dump(account: Account) -> str:
    """Return an account as text, of `limits.ACCOUNT_CHARS_MAX` at the most.

    The commonest reasons come along, and as many of the last failing requests as find room.
    """
    failing = [
        _Failing(custom_id, each.tries, each.reason, each.message, each.is_over, each.reasons)
        for custom_id, each in account.failing.items()
    ]
    reasons = dict(account.reasons.most_common(_TOLD_REASONS_MAX))
    while True:
        told = _Told(
            account.calls, account.repeated, reasons, failing, account.damaged, account.unknown
        )
        text = msgspec.json.encode(told).decode()
        if len(text) <= limits.ACCOUNT_CHARS_MAX or not failing:
            return text
        failing = failing[1:]


def merge(texts: Iterable[str], own: Account | None = None) -> Account | None:
    """Return one account of what several workers have told; None where none has.

    Args:
        texts: by `dump`, the oldest first, or a number: so many requests were in flight in
            processes that ended without a word. What cannot be read is of another version, and
            left out.
        own: of this process.
    """
    accounts = [account for account in map(_load, texts) if account is not None]
    if own is not None:
        accounts.append(own)
    if not accounts:
        return None
    whole = Account()
    for each in accounts:
        whole.calls += each.calls
        whole.repeated += each.repeated
        whole.unknown += each.unknown
        whole.reasons.update(each.reasons)
        for shard, why in each.damaged.items():
            whole.damage(shard, why)
        for custom_id, failing in each.failing.items():
            whole.failing[custom_id] = failing
            whole.failing.move_to_end(custom_id)
    while len(whole.failing) > _FAILING_MAX:
        whole.failing.popitem(last=False)
    return whole


def _load(text: str) -> Account | None:
    try:
        told = _decoder.decode(text)
    except msgspec.DecodeError:
        return None
    if isinstance(told, int):
        return Account(unknown=told)
    failing = OrderedDict(
        (
            each.custom_id,
            Failing(each.tries, each.reason, each.message, each.is_over, each.reasons),
        )
        for each in told.failing
    )
    reasons = Counter(told.reasons)
    return Account(told.calls, told.repeated, told.unknown, reasons, failing, told.damaged)
