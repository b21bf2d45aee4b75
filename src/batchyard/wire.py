"""The shapes of the wire: times, JSON, the envelope of a create call.

Knows the syntax of the API and nothing of what a request means: `params` stays the bytes that the
client sent. Nothing here does I/O; the create body is any buffer (an mmap in the server).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from batchyard import limits
from batchyard.errors import InvalidRequest, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CUSTOM_IDS = re.compile(r"(?:[a-zA-Z0-9_-]{1,64}\n)*")
_CUSTOM_ID_PATTERN = "^[a-zA-Z0-9_-]{1,64}$"

encode = msgspec.json.encode


def decode(data: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: not JSON, or not UTF-8.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def rfc3339(us: int) -> str:
    """Return `us` (microseconds since 1970) as `2026-11-21T18:37:24.100435Z`, always 6 digits."""
    seconds, micros = divmod(us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"


def parse_rfc3339(text: str) -> int:
    """Return the microseconds since 1970 of an RFC 3339 time with an offset or `Z`.

    Raises:
        ValueError: not such a time.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{shown(text)} has no offset from UTC")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def parse_retry_after(value: str | None, now_us: int, *, cap_s: float) -> float | None:
    """Return the seconds of a `retry-after`, at most `cap_s`; None when it says nothing usable.

    Accepts ASCII digits with an optional fraction, or an HTTP date. `float()` would also take
    `nan`, `inf`, `1_0` and the digits of other scripts.
    """
    if value is None:
        return None
    text = value.strip()
    seconds: float
    if text.isascii() and text.replace(".", "", 1).isdigit():
        seconds = float(text) if len(text) <= 20 else cap_s
    elif text.endswith("GMT") and len(text) <= 40:
        from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rare, and slow to import

        try:
            seconds = parsedate_to_datetime(text).timestamp() - now_us / 1_000_000
        except (ValueError, TypeError, OverflowError):
            return None
    else:
        return None
    return min(max(seconds, 0.0), cap_s)


def list_limit(text: str | None) -> int:
    """Read the `limit` of a list call.

    Raises:
        InvalidRequest: not a number from 1 to 1000.
    """
    if text is None:
        return limits.LIST_LIMIT_DEFAULT
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        raise InvalidRequest(
            "limit: Input should be a valid integer, unable to parse string as an integer"
        )
    limit = int(text[:20])
    if limit < 1:
        raise InvalidRequest("limit: Input should be greater than or equal to 1")
    if limit > limits.LIST_LIMIT_MAX:
        raise InvalidRequest(
            f"limit: Input should be less than or equal to {limits.LIST_LIMIT_MAX}"
        )
    return limit


def is_custom_id(text: str) -> bool:
    """Whether `text` may be a `custom_id`: 1 to 64 of `a-z A-Z 0-9 _ -`."""
    return _CUSTOM_ID.fullmatch(text) is not None


class Entry(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One request of a create body: its id, and its `params` as a view into the body."""

    custom_id: str
    params: msgspec.Raw


# What a body and each of its requests have at least, beside ids and params, and what a key that is
# there twice adds at least.
_EMPTY_BODY = b'{"requests":[]}'
_EMPTY_ENTRY = b'{"custom_id":"","params":}'
_LEAST_MEMBER = b'"params":0,'
_ONE_KEY = re.compile(rb'\s*\{\s*"[^"]*"\s*:\s*')
_BEFORE_PARAMS = re.compile(rb'\{\s*"[^"]*"\s*:\s*("[^"]*"\s*,\s*"[^"]*"\s*:\s*)?')
_AFTER_PARAMS = re.compile(rb'\s*(,\s*"[^"]*"\s*:\s*"[^"]*"\s*)?\}')
_WHITE_CHUNK_BYTES = 64 * limits.KIB


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requests: list[Entry]


_envelope = msgspec.json.Decoder(_Envelope)
_list = msgspec.json.Decoder(list[Entry])


def split(body: bytes | memoryview) -> list[Entry]:
    """Split a create body into its requests, checking the envelope and nothing inside `params`.

    Args:
        body: the whole body. The entries are views into it. That it is UTF-8 is checked here for
            all but `params`.

    Raises:
        InvalidRequest: the first thing that is wrong, in the words of the hosted API.
    """
    try:
        entries = _decode_envelope(body)
    except RecursionError:
        raise InvalidRequest("The request body is not valid JSON: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The request body is not valid JSON: not UTF-8 ({error.reason})"
        ) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}") from None
    _check_entries(entries)
    _check_members(body, entries)
    return entries


def entries_in(text: bytes | memoryview) -> list[Entry]:
    """Split a JSON list of requests, as it stands in a create body.

    Keys that are there twice are not noticed, and what `params` hold is not looked into.

    Raises:
        ValueError: it is no such list.
    """
    try:
        return _list.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def are_custom_ids(texts: Sequence[str]) -> bool:
    """Whether each of `texts` may be a `custom_id`."""
    # One match over all is six times faster than one match for each.
    joined = "\n".join(texts) + "\n"
    return _CUSTOM_IDS.fullmatch(joined) is not None and joined.count("\n") == len(texts)


def _decode_envelope(body: bytes | memoryview) -> list[Entry]:
    try:
        return _envelope.decode(body).requests
    except msgspec.ValidationError:
        # The typed decode stops at the first misfit: what comes after it may not be JSON at all.
        raise InvalidRequest(_what_is_wrong(body)) from None


def _check_entries(entries: Sequence[Entry]) -> None:
    count = len(entries)
    if count == 0:
        raise InvalidRequest("requests: List should have at least 1 item after validation, not 0")
    if count > limits.BATCH_REQUESTS_MAX:
        raise InvalidRequest(
            f"requests: List should have at most {limits.BATCH_REQUESTS_MAX} items after "
            f"validation, not {count}"
        )
    ids = [entry.custom_id for entry in entries]
    if not are_custom_ids(ids):
        for index, custom_id in enumerate(ids):
            problem = _custom_id_problem(custom_id)
            if problem:
                raise InvalidRequest(f"requests.{index}.custom_id: {problem}")
    if len(set(ids)) != count:
        seen: set[str] = set()
        for custom_id in ids:
            if custom_id in seen:
                raise InvalidRequest(
                    "requests: custom_id's must be unique within a batch. "
                    f"Duplicate custom_id found: {custom_id}"
                )
            seen.add(custom_id)
    for index, entry in enumerate(entries):
        if bytes(memoryview(entry.params)[:1]) != b"{":
            raise InvalidRequest(f"requests.{index}.params: Input should be a valid dictionary")


def _check_members(body: bytes | memoryview, entries: Sequence[Entry]) -> None:
    """Refuse keys that are there twice, of which the decoder has kept the last.

    Nearly all bodies are compact: not one byte more than their ids and params need.
    """
    needed = len(_EMPTY_BODY) + len(entries) * (len(_EMPTY_ENTRY) + 1) - 1
    needed += sum(len(memoryview(entry.params)) + len(entry.custom_id) for entry in entries)
    if len(body) - needed < len(_LEAST_MEMBER):
        return
    requests = msgspec.json.decode(body, type=dict[str, msgspec.Raw])["requests"]
    if not _ONE_KEY.fullmatch(body[: _end_of_value(body) - len(memoryview(requests))]):
        raise InvalidRequest('Duplicate key "requests"')
    raws = msgspec.json.decode(requests, type=list[msgspec.Raw])
    for index, (raw, entry) in enumerate(zip(raws, entries, strict=True)):
        needed = len(_EMPTY_ENTRY) + len(memoryview(entry.params)) + len(entry.custom_id)
        if len(memoryview(raw)) - needed < len(_LEAST_MEMBER):
            continue
        if not _is_two_members(memoryview(raw), memoryview(entry.params)):
            raise InvalidRequest(
                f"requests.{index}: Duplicate key; custom_id and params are allowed once each"
            )


def _is_two_members(raw: memoryview, params: memoryview) -> bool:
    """Whether an entry has nothing but its `params` and one other member."""
    before = _BEFORE_PARAMS.match(raw)
    if before is None:
        return False
    end = before.end() + len(params)
    after = _AFTER_PARAMS.fullmatch(raw[end:])
    return (
        after is not None
        and raw[before.end() : end] == params
        and (before[1] is None) != (after[1] is None)
    )


def _end_of_value(body: bytes | memoryview) -> int:
    """Return where the value of the last member of an object ends."""
    return _end_of_text(body, _end_of_text(body, len(body)) - 1)


def _end_of_text(body: bytes | memoryview, end: int) -> int:
    """Return `end` without the white space before it."""
    while True:
        start = max(0, end - _WHITE_CHUNK_BYTES)
        text = bytes(body[start:end]).rstrip(b" \t\r\n")
        if text or not start:
            return start + len(text)
        end = start


def _custom_id_problem(custom_id: object) -> str | None:
    if not isinstance(custom_id, str):
        return "Input should be a valid string"
    if not custom_id:
        return "String should have at least 1 character"
    if len(custom_id) > limits.CUSTOM_ID_CHARS_MAX:
        return f"String should have at most {limits.CUSTOM_ID_CHARS_MAX} characters"
    if not is_custom_id(custom_id):
        return f"String should match pattern '{_CUSTOM_ID_PATTERN}'"
    return None


def _what_is_wrong(body: bytes | memoryview) -> str:
    """Name the first fault of an envelope that did not fit, slowly and in the API's words."""
    try:
        keys = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return "Input should be a valid dictionary or object"
    if "requests" not in keys:
        return "requests: Field required"
    for key in keys:
        if key != "requests":
            return f"{shown(key)}: Extra inputs are not permitted"
    try:
        raws = msgspec.json.decode(keys["requests"], type=list[msgspec.Raw])
    except msgspec.ValidationError:
        return "requests: Input should be a valid list"
    for index, raw in enumerate(raws):
        problem = _entry_problem(raw)
        if problem:
            return f"requests.{index}{problem}"
    return "requests: Input should be a valid list"


def _entry_problem(raw: msgspec.Raw) -> str | None:
    try:
        entry = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return ": Input should be a valid dictionary"
    if "custom_id" not in entry:
        return ".custom_id: Field required"
    problem = _custom_id_problem(msgspec.json.decode(entry["custom_id"]))
    if problem:
        return f".custom_id: {problem}"
    if "params" not in entry:
        return ".params: Field required"
    for key in entry:
        if key not in {"custom_id", "params"}:
            return f".{shown(key)}: Extra inputs are not permitted"
    return None
