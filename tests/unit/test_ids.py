from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import ids

numbers = st.integers(0, 2**128 - 1)


@pytest.mark.parametrize("kind", ["msgbatch", "msg", "req", "workerreq", "toolu", "wrkspc"])
def test_an_id_looks_like_those_of_the_hosted_api(kind: ids.Kind) -> None:
    assert re.fullmatch(rf"{kind}_01[1-9A-HJ-NP-Za-km-z]{{22}}", ids.mint(kind))


def test_minted_ids_differ() -> None:
    assert len({ids.mint("req") for _ in range(1_000)}) == 1_000
    assert len({ids.nonce() for _ in range(1_000)}) == 1_000


@given(numbers, numbers)
def test_different_numbers_have_different_ids(one: int, other: int) -> None:
    same = ids.from_number("msg", one) == ids.from_number("msg", other)
    assert same == (one == other)


def test_a_nonce_can_be_part_of_a_file_name() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", ids.nonce())
