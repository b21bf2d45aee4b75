"""The outcome script: what the emulator lets become of requests and calls.

Pure: from TOML text to checked values, and from a `custom_id` to the rules that fit it. The file:

seed = 7                    # decides the shares; another seed takes other requests

[[request]]                 # the first rule that fits counts; where none fits, requests succeed
custom_id = "bad-*"         # shell pattern, or a list of them; default "*"
outcome = "errored"         # see vocabulary.OUTCOMES, and so for all other names
error = "overloaded_error"  # errored: default api_error
message = "Overloaded"      # of the error, or the explanation of a refusal
seconds = "90m"             # how long the model takes, whatever the outcome; slow needs it
share = 0.1                 # only this share of the fitting requests, by seed and custom_id
first = 3                   # only the first n of them, in order of arrival
times = 2                   # only the first n calls for each of them
retry_after = 5             # rate_limited, overloaded, server_error: seconds
category = "cyber"          # of a refusal
text = "Done, {custom_id}"  # the text of the answer, word for word but for {custom_id}
input_tokens = 1000         # of the answer's usage
output_tokens = 200

[credit]                    # after this many succeeded requests, all are errored (billing_error)
requests = 100              # or: usd = 1.50, counted by the price of `usage` at batch rates

[[call]]                    # what becomes of calls of clients; the first rule that fits counts
on = "create"
fault = "drop"
times = 2                   # how many calls; default 1; 0 is all
after = 0                   # how many calls pass first
status = 529                # error: 400 to 599; default 500. Also type, message, retry_after
should_retry = true         # error: the x-should-retry header
lines = 3                   # cut: result lines that still arrive; default half of the body
seconds = 5                 # slow: before the answer

A rule is passed over for a request outside its `share`, after its `first` requests, and after
`times` calls for one request: then the next rule that fits counts. So two rules with `times` make
a sequence.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from batchyard import result
from batchyard.emulator.vocabulary import (
    ALLOWED,
    CALL_ERROR_TYPES,
    COUNT_MAX,
    DURATION,
    KEYS_OF_FAULT,
    KEYS_OF_OUTCOME,
    MESSAGES,
    RETRY_AFTER_MAX_S,
    SECONDS_MAX,
    SECTIONS,
    TYPE_OF_STATUS,
    WHOLE,
    Category,
    FaultName,
    Operation,
    OutcomeName,
    one_of,
)
from batchyard.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_Positive = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
_RetryAfter = Annotated[int, msgspec.Meta(ge=0, le=RETRY_AFTER_MAX_S)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class RequestRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of requests whose `custom_id` fits."""

    custom_id: tuple[_Text, ...] = ("*",)
    outcome: OutcomeName
    error: str = "api_error"
    message: _Text | None = None
    """None is the usual text."""
    seconds: float = 0.0
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    first: _Positive | None = None
    times: _Positive | None = None
    retry_after: _RetryAfter | None = None
    category: Category | None = None
    text: str | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None

    @property
    def takes_all(self) -> bool:
        """Whether no request is left for a later rule."""
        every = any(set(pattern) == {"*"} for pattern in self.custom_id)
        return every and self.share == 1 and self.first is None and self.times is None


class Credit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the account holds when the emulator starts: succeeded requests, or money."""

    requests: _Count | None = None
    usd: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] | None = None


class CallRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of calls of clients, whatever they are about."""

    on: Operation
    fault: FaultName
    times: _Count = 1
    """How many calls; 0 is all."""
    after: _Count = 0
    """How many calls pass first."""
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500
    """Of an error answer, as are `type`, `message`, `retry_after` and `should_retry`."""
    type: str = ""
    """Empty only in the file: then it is that of the status."""
    message: str = ""
    """Empty only in the file: then it is that of the type."""
    retry_after: _RetryAfter | None = None
    should_retry: bool | None = None
    lines: _Count | None = None
    """Result lines that still arrive; None is half of the body."""
    seconds: float = 0.0


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """A checked script. The empty one lets everything succeed."""

    seed: int | None = None
    requests: tuple[RequestRule, ...] = ()
    credit: Credit | None = None
    calls: tuple[CallRule, ...] = ()

    def rules_for(self, custom_id: str, *, seed: int) -> Iterator[tuple[int, RequestRule]]:
        """Yield position and rule of all rules that fit, in the order of the file.

        What depends on earlier calls, `first` and `times`, is not looked at. A rule that names the
        id of a document fits the request that carries a mark of `batchyard run` behind it too.
        """
        names = {custom_id, _MARK.sub("", custom_id)}
        for index, rule in enumerate(self.requests):
            if any(fnmatchcase(name, each) for name in names for each in rule.custom_id) and (
                rule.share == 1 or _lot(seed, index, custom_id) < rule.share
            ):
                yield index, rule

    def rule_for(self, custom_id: str, *, seed: int) -> RequestRule | None:
        """Return the first rule that fits, or None."""
        return next((rule for _, rule in self.rules_for(custom_id, seed=seed)), None)


# What `batchyard run` puts behind one id of each batch, to know the batch by it.
_MARK = re.compile(r"(?:(?<=_R[1-9])|(?<=_R[1-9]\d)|_R0)-[0-9a-f]{4}$")


def _lot(seed: int, index: int, custom_id: str) -> float:
    """Return a number from 0 up to 1 that depends on nothing but the arguments."""
    digest = hashlib.blake2b(f"{seed}/{index}/{custom_id}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / (1 << 48)


_PART = r"(?:(\d+(?:\.\d+)?){})?"
_SPAN = re.compile("".join(map(_PART.format, "dhms")), re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_UNITS_S = (86_400, 3_600, 60, 1)
_SPAN_CHARS_MAX = 40


def seconds_of(value: object) -> float:
    """Return a duration in seconds: of a number, or of text such as `25h`, `1h30m` or `2.5`.

    Raises:
        ValueError: neither, below 0 or above 1000 days.
    """
    seconds = -1.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(min(value, SECONDS_MAX + 1))
    elif isinstance(value, str) and 0 < len(value) <= _SPAN_CHARS_MAX:
        span = _SPAN.fullmatch(value)
        if _NUMBER.fullmatch(value):
            seconds = float(value)
        elif span is not None:
            parts = zip(span.groups(), _UNITS_S, strict=True)
            seconds = sum(float(number) * unit_s for number, unit_s in parts if number)
    if not 0 <= seconds < math.inf:  # refuses NaN too
        raise ValueError(f"{shown(value)} is not a duration; {DURATION}")
    if seconds > SECONDS_MAX:
        raise ValueError(f"{shown(value)} is too long; at most 1000 days are allowed")
    return seconds


def load(path: Path) -> Script:
    """Read a script from a file.

    Raises:
        ConfigError: what is wrong, where, and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse(text, str(path))


def parse(text: str, source: str = "script") -> Script:
    """Read a script from TOML text.

    Args:
        text: of the file.
        source: what errors call it.

    Raises:
        ConfigError: what is wrong, where, and what is allowed.
    """
    try:
        return _script(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.message}") from None


def _script(data: dict[str, Any]) -> Script:
    for name in data:
        if name not in {"seed", "request", "credit", "call"}:
            raise ConfigError(f"{shown(name)} is not known; {SECTIONS}")
    seed = data.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        raise ConfigError(f"seed is {shown(seed)}; {WHOLE.format(0, 2**63 - 1)}")
    requests = _each(data, "request", _request)
    for number, rule in enumerate(requests[:-1], 1):
        if rule.takes_all:
            raise ConfigError(
                f"[[request]] {number} takes all requests, so those after it would get none; put "
                "it last, or give it custom_id, share, first or times"
            )
    credit = data.get("credit")
    return Script(
        seed=seed,
        requests=requests,
        credit=None if credit is None else _credit(credit),
        calls=_each(data, "call", _call),
    )


T = TypeVar("T")


def _each(data: dict[str, Any], section: str, read: Callable[[dict[str, Any]], T]) -> tuple[T, ...]:
    """Read every table of an array of tables; errors name it, counted from 1."""
    entries = data.get(section, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{section} is not a list of tables; write [[{section}]] above each")
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(read(entry))
        except ConfigError as error:
            raise ConfigError(f"[[{section}]] {number}: {error.message}") from None
    return tuple(found)


def _request(entry: dict[str, Any]) -> RequestRule:
    fields = _with_seconds(entry)
    if isinstance(fields.get("custom_id"), str):
        fields["custom_id"] = [fields["custom_id"]]
    rule = _convert(fields, "request", RequestRule, entry)
    if not rule.custom_id:
        raise _wrong("request", "custom_id", entry["custom_id"])
    if rule.error not in result.ERROR_TYPES:
        raise _wrong("request", "error", rule.error)
    if rule.share != rule.share:  # NaN passes every bound
        raise _wrong("request", "share", rule.share)
    always = {"custom_id", "outcome", "seconds", "share", "first", "times"}
    _check_keys(entry, "outcome", rule.outcome, always, KEYS_OF_OUTCOME[rule.outcome])
    return rule


def _credit(entry: object) -> Credit:
    if not isinstance(entry, dict):
        raise ConfigError("credit is not a table; write [credit] above it")
    try:
        credit = _convert(entry, "credit", Credit, entry)
    except ConfigError as error:
        raise ConfigError(f"[credit]: {error.message}") from None
    if credit.usd is not None and credit.usd != credit.usd:  # NaN passes every bound
        raise ConfigError(f"[credit]: {_wrong('credit', 'usd', credit.usd).message}")
    if (credit.requests is None) == (credit.usd is None):
        raise ConfigError("[credit]: either requests or usd is needed")
    return credit


def _call(entry: dict[str, Any]) -> CallRule:
    rule = _convert(_with_seconds(entry), "call", CallRule, entry)
    if "type" in entry and rule.type not in CALL_ERROR_TYPES:
        raise _wrong("call", "type", rule.type)
    if "message" in entry and not rule.message:
        raise _wrong("call", "message", rule.message)
    _check_keys(entry, "fault", rule.fault, {"on", "fault", "times", "after"},
                KEYS_OF_FAULT[rule.fault])  # fmt: skip
    if rule.lines is not None and rule.on not in {"results", "any"}:
        raise ConfigError(f"lines has no effect on {rule.on}; only results come in lines")
    usual = "invalid_request_error" if rule.status < 500 else "api_error"
    error_type = rule.type or TYPE_OF_STATUS.get(rule.status, usual)
    message = rule.message or MESSAGES[error_type]
    return msgspec.structs.replace(rule, type=error_type, message=message)


def _with_seconds(entry: Mapping[str, Any]) -> dict[str, Any]:
    if "seconds" not in entry:
        return dict(entry)
    try:
        return {**entry, "seconds": seconds_of(entry["seconds"])}
    except ValueError as error:
        raise ConfigError(f"seconds: {error}") from None


def _check_keys(
    entry: Mapping[str, Any], kind: str, name: str, always: set[str], own: frozenset[str]
) -> None:
    """Refuse keys without effect, and `slow` without saying how slow."""
    for key in entry:
        if key not in always | own:
            also = f"{', '.join(sorted(own))} have" if own else "no further key has"
            raise ConfigError(f"{key} has no effect with {kind} {name}; {also} one there")
    if name == "slow" and "seconds" not in entry:
        raise ConfigError(f"seconds is needed with {kind} slow; {DURATION}")


_UNKNOWN_KEY = re.compile(r"Object contains unknown field `(?P<key>.*?)`", re.DOTALL)
_MISSING_KEY = re.compile(r"Object missing required field `(?P<key>\w+)`")
_KEY = re.compile(r" - at `\$\.(?P<key>\w+)")


def _convert(fields: dict[str, Any], section: str, kind: type[T], entry: Mapping[str, Any]) -> T:
    """Make the value of one table.

    Args:
        fields: of the table, brought into form.
        section: name of the table.
        kind: the value to make.
        entry: the table as it stands in the file, for messages.
    """
    allowed = ALLOWED[section]
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        text = str(error)
    if (unknown := _UNKNOWN_KEY.search(text)) is not None:
        raise ConfigError(f"{shown(unknown['key'])} is not a key; {one_of(tuple(allowed))}")
    if (missing := _MISSING_KEY.search(text)) is not None:
        raise ConfigError(f"{missing['key']} is missing; {allowed[missing['key']]}")
    key = _KEY.search(text)
    assert key is not None, "a table only fails at one of its keys"
    raise _wrong(section, key["key"], entry[key["key"]])


def _wrong(section: str, key: str, value: object) -> ConfigError:
    text = f"'{shown(value)}'" if isinstance(value, str) else shown(value)
    return ConfigError(f"{key} is {text}; {ALLOWED[section][key]}")
