from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import errors
from batchyard.errors import BatchyardError, shown

FAMILY = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, BatchyardError)
]


@pytest.mark.parametrize("cls", FAMILY)
def test_every_error_has_a_text_a_status_and_a_type(cls: type[BatchyardError]) -> None:
    error = cls()
    assert error.message == (cls.__doc__ or "").strip() == str(error)
    assert error.message.endswith(".")
    assert 400 <= cls.status <= 599
    assert cls.type.endswith("_error") or cls.type == "request_too_large"
    assert cls("other").message == "other"


# The API reference, errors: the types of the wire by status.
@pytest.mark.parametrize(
    ("cls", "status", "name"),
    [
        (errors.InvalidRequest, 400, "invalid_request_error"),
        (errors.Unauthenticated, 401, "authentication_error"),
        (errors.Forbidden, 403, "permission_error"),
        (errors.NotFound, 404, "not_found_error"),
        (errors.TooLarge, 413, "request_too_large"),
        (errors.Internal, 500, "api_error"),
    ],
)
def test_the_wire_names_each_error(cls: type[BatchyardError], status: int, name: str) -> None:
    assert (cls.status, cls.type) == (status, name)


def test_what_a_client_may_do_is_part_of_the_error() -> None:
    error = errors.Internal(retry_after_s=5, should_retry=False, allow="GET")
    assert (error.retry_after_s, error.should_retry, error.allow) == (5, False, "GET")


@given(st.text() | st.binary() | st.integers() | st.none(), st.integers(2, 100))
def test_what_is_shown_is_short_plain_and_on_one_line(value: object, limit: int) -> None:
    text = shown(value, limit)
    assert len(text) <= limit
    assert all(" " <= char <= "~" or char == "…" for char in text)


def test_what_is_shown_can_be_recognised() -> None:
    assert shown("claude") == "claude"
    assert shown("a\x1b]52;\n") == "a\\x1b]52;\\n"
    assert shown("x" * 100) == "x" * 79 + "…"
