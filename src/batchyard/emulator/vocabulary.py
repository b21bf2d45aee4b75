"""The words of an outcome script: names, which key goes with which, and what is allowed.

Data only. `script.py` reads scripts with it.
"""

from __future__ import annotations

from typing import Literal, get_args

from batchyard import result

OutcomeName = Literal[
    "succeeded", "slow", "truncated", "refusal", "pause_turn", "context_window",
    "errored", "expired", "canceled",
    "overloaded", "rate_limited", "server_error", "timeout", "broken", "garbage",
]  # fmt: skip
Category = Literal["cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms"]
Operation = Literal[
    "create", "retrieve", "list", "cancel", "delete", "results", "models", "messages", "any"
]
FaultName = Literal["drop", "cut", "error", "slow"]

OUTCOMES: tuple[OutcomeName, ...] = get_args(OutcomeName)
CATEGORIES: tuple[Category, ...] = get_args(Category)
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
FAULTS: tuple[FaultName, ...] = get_args(FaultName)

SECONDS_MAX = 1_000 * 86_400
COUNT_MAX = 1_000_000_000
RETRY_AFTER_MAX_S = 86_400

# What an answer of the model may be given; how long it takes may be said of every outcome.
_USAGE = frozenset({"input_tokens", "output_tokens"})
_ANSWER = _USAGE | {"text"}
_REFUSED = frozenset({"message", "retry_after"})
KEYS_OF_OUTCOME: dict[OutcomeName, frozenset[str]] = {
    "succeeded": _ANSWER,
    "slow": _ANSWER,
    "truncated": frozenset({"text", "input_tokens"}),  # output_tokens are the request's max_tokens
    "refusal": _ANSWER | {"category", "message"},
    "pause_turn": _ANSWER,
    "context_window": _ANSWER,
    "errored": frozenset({"error", "message"}),
    "expired": frozenset(),
    "canceled": frozenset(),
    "overloaded": _REFUSED,
    "rate_limited": _REFUSED,
    "server_error": _REFUSED,
    "timeout": frozenset({"message"}),
    "broken": frozenset({"message"}),
    "garbage": frozenset({"text"}),
}
KEYS_OF_FAULT: dict[FaultName, frozenset[str]] = {
    "drop": frozenset(),
    "cut": frozenset({"lines"}),
    "error": frozenset({"status", "type", "message", "retry_after", "should_retry"}),
    "slow": frozenset({"seconds"}),
}
TYPE_OF_STATUS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
CALL_ERROR_TYPES = result.ERROR_TYPES | {"conflict_error", "request_too_large"}

MESSAGES = {
    "invalid_request_error": "The request is not valid.",
    "authentication_error": "API key is invalid.",
    "billing_error": "Your credit balance is too low to access the Anthropic API. "
    "Please go to Plans & Billing to upgrade or purchase credits.",
    "permission_error": "Your API key does not have permission to use the specified resource.",
    "not_found_error": "The requested resource could not be found.",
    "rate_limit_error": "This request would exceed the rate limit. Please try again later.",
    "timeout_error": "The request timed out.",
    "api_error": "Internal server error",
    "overloaded_error": "Overloaded",
    "conflict_error": "The request conflicts with another one.",
    "request_too_large": "Request exceeds the maximum size",
}
EXPLANATIONS: dict[Category | None, str | None] = {
    None: None,
    "cyber": "This request was declined because it could enable cyber harm.",
    "bio": "This request was declined because it could enable biological harm.",
    "frontier_llm": "This request was declined because it could help to build competing models.",
    "reasoning_extraction": "This request was declined because it asks for internal reasoning.",
    "general_harms": "This request was declined because it could be harmful.",
}

WHOLE = "a whole number from {} to {} is allowed"
DURATION = "a number of seconds, or text such as 30s, 90m, 25h, 1h30m or 2d, is allowed"
_TEXT = "text that is not empty is allowed"
_ANY_TEXT = "text is allowed"
_PATTERNS = "a pattern such as bad-*, or a list of patterns, is allowed"
_FROM_ONE = WHOLE.format(1, COUNT_MAX)
_FROM_ZERO = WHOLE.format(0, COUNT_MAX)


def one_of(names: tuple[str, ...] | frozenset[str]) -> str:
    """Return what is said of a name that is none of these."""
    ordered = names if isinstance(names, tuple) else sorted(names)
    return f"{', '.join(ordered)} are allowed"


ALLOWED = {
    "request": {
        "custom_id": _PATTERNS,
        "outcome": one_of(OUTCOMES),
        "error": one_of(result.ERROR_TYPES),
        "message": _TEXT,
        "seconds": DURATION,
        "share": "a number from 0 to 1 is allowed",
        "first": _FROM_ONE,
        "times": _FROM_ONE,
        "retry_after": WHOLE.format(0, RETRY_AFTER_MAX_S),
        "category": one_of(CATEGORIES),
        "text": _ANY_TEXT,
        "input_tokens": _FROM_ZERO,
        "output_tokens": _FROM_ZERO,
    },
    "credit": {
        "requests": _FROM_ZERO,
        "usd": "a number from 0 to 1000000 is allowed",
    },
    "call": {
        "on": one_of(OPERATIONS),
        "fault": one_of(FAULTS),
        "times": _FROM_ZERO,
        "after": _FROM_ZERO,
        "status": WHOLE.format(400, 599),
        "type": one_of(CALL_ERROR_TYPES),
        "message": _TEXT,
        "retry_after": WHOLE.format(0, RETRY_AFTER_MAX_S),
        "should_retry": "true and false are allowed",
        "lines": _FROM_ZERO,
        "seconds": DURATION,
    },
}  # fmt: skip
SECTIONS = "seed, [[request]], [credit] and [[call]] are allowed"
