"""The codec between keys and custom ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.client.inputs.custom_ids import from_custom_id, to_custom_id
from batchyard.wire import is_custom_id

any_key = st.text(st.characters(exclude_categories=()), max_size=200)
id_like = st.text(st.sampled_from("ab_-DWXYEHR01/. é"), max_size=80)
rounds = st.integers(0, 12)


@given(any_key | id_like, rounds)
def test_every_key_has_a_legal_id(key: str, round_: int):
    assert is_custom_id(to_custom_id(key, round_))


@given(any_key | id_like, rounds)
def test_the_key_comes_back_unless_the_id_says_that_it_was_hashed(key: str, round_: int):
    decoded = from_custom_id(to_custom_id(key, round_))

    assert decoded.round == round_
    if decoded.is_hashed:
        assert key.startswith(decoded.key.rstrip("_"))
    else:
        assert decoded.key == key


@given(any_key | id_like, any_key | id_like, rounds, rounds)
def test_different_keys_and_rounds_have_different_ids(one: str, other: str, n: int, m: int):
    assert ((one, n) == (other, m)) == (to_custom_id(one, n) == to_custom_id(other, m))


@given(st.text(st.sampled_from("ab_-DWXYEHR0129f"), max_size=70))
def test_an_id_is_decoded_only_if_the_codec_made_it(text: str):
    try:
        decoded = from_custom_id(text)
    except ValueError:
        return
    if not decoded.is_hashed:
        assert to_custom_id(decoded.key, decoded.round) == text


@pytest.mark.parametrize("key", ["contract_17_v2", "proj_001", "a-b", "A_b_", "0", "_"])
def test_a_key_that_is_a_legal_id_stays_as_it_is(key: str):
    assert to_custom_id(key) == key


@pytest.mark.parametrize(
    ("key", "custom_id"),
    [
        ("src/read me.md", "src_-read_Wme_Dmd"),
        ("README_DE.md", "README__DE_Dmd"),
        ("文档.md", "_X6587_X6863_Dmd"),
        ("🙂", "_Y01f642"),
        ("", "_E"),
    ],
)
def test_the_escapes_are_these(key: str, custom_id: str):
    assert to_custom_id(key) == custom_id


def test_a_long_key_keeps_its_beginning_and_says_that_it_was_hashed():
    key = "documents/" * 10 + "last.md"

    custom_id = to_custom_id(key)

    assert len(custom_id) <= 64
    assert custom_id.startswith("documents_-documents_-documents_-")
    assert from_custom_id(custom_id).is_hashed


@pytest.mark.parametrize(
    "text",
    ["_X12", "_Xzzzz", "_Hshort", "_X0041", "__a", "_Y110000", "a.b", "a_R0", "a_R", "a_R1_"],
)
def test_what_the_codec_did_not_make_is_refused(text: str):
    with pytest.raises(ValueError, match="not an id of this codec"):
        from_custom_id(text)
