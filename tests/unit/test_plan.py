"""What is decided before anything is sent."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits, models, wire
from batchyard.client.inputs.documents import Sources
from batchyard.client.inputs.template import Template
from batchyard.client.planning import estimate
from batchyard.client.planning.compare import compare
from batchyard.client.planning.plan import (
    Plan,
    Request,
    Settings,
    _listed,
    make,
    pack,
)
from batchyard.client.problems import InputError
from batchyard.client.results.outputs import output_names


def plan(tmp_path: Path, rows: list[dict], prompt: str = "{{ text }}", **settings) -> Plan:
    path = tmp_path / "p.j2"
    path.write_text(prompt)
    options = {"model": "claude-opus-4-8", "max_tokens": 1_000} | settings
    return make(Sources(rows=tuple(rows)).read(), Template(path), None, Settings(**options))


ROWS = [{"id": f"r{n}", "text": f"text {n}"} for n in range(5)]


def test_a_body_has_exactly_the_announced_bytes_and_hash(tmp_path: Path):
    shard = plan(tmp_path, ROWS).shards[0]

    body = b"".join(shard.body())

    assert len(body) == shard.size
    assert hashlib.sha256(body).hexdigest() == shard.sha256
    assert [r["custom_id"] for r in json.loads(body)["requests"]] == ["r0", "r1", "r2", "r3", "r4"]


def test_a_body_passes_the_check_of_the_server(tmp_path: Path):
    body = b"".join(plan(tmp_path, ROWS).shards[0].body())

    assert len(wire.split(body)) == 5


def request(number: int, size: int) -> Request:
    return Request(f"r{number}", f"r{number}", "", f"r{number}.md", b"x" * size)


@given(
    st.lists(st.integers(1, 50), max_size=60),
    st.integers(1, 10),
    st.integers(70, 200),
)
def test_shards_respect_both_limits_and_lose_nothing(sizes: list[int], count: int, size: int):
    requests = [request(n, s) for n, s in enumerate(sizes)]

    shards = pack(requests, count, size)

    assert [r for shard in shards for r in shard.requests] == requests
    assert all(1 <= len(s.requests) <= count and s.size <= size for s in shards)
    assert all(len(b"".join(s.body())) == s.size for s in shards)


def test_a_request_larger_than_a_batch_is_refused():
    with pytest.raises(InputError, match="r0: 100 bytes do not fit"):
        pack([request(0, 100)], 10, 100)


def test_all_requests_that_would_be_refused_are_listed_together(tmp_path: Path):
    rows = [*ROWS, {"id": "blank", "text": " "}, {"id": "void", "text": ""}]

    with pytest.raises(InputError, match=r"2 of 7 requests would be refused") as caught:
        plan(tmp_path, rows)

    assert caught.value.message.splitlines()[1:] == ["  blank, void: the prompt is empty"]


def test_documents_with_the_same_problem_are_counted(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        plan(tmp_path, ROWS, model="claude-haiku-4-5", max_tokens=64_001)

    assert caught.value.message.splitlines() == [
        "5 of 5 requests would be refused; nothing was sent",
        (
            "  r0, r1, r2 and 2 more: invalid_request_error: max_tokens: 64001 > 64000, which is "
            "the maximum allowed number of output tokens for claude-haiku-4-5-20251001"
        ),
    ]


def test_the_list_of_problems_is_bounded():
    lines = _listed({f"problem {n}": [f"a{n}", f"b{n}"] for n in range(13)}, 100).splitlines()

    assert lines[0] == "26 of 100 requests would be refused; nothing was sent"
    assert lines[10] == "  a9, b9: problem 9"
    assert lines[11:] == ["  … and 6 more with other problems"]


def test_too_many_output_tokens_are_refused_with_the_way_to_more(tmp_path: Path):
    with pytest.raises(InputError, match="--beta output-300k"):
        plan(tmp_path, ROWS, max_tokens=300_000)

    assert plan(tmp_path, ROWS, max_tokens=300_000, betas=("output-300k-2026-03-24",)).documents


def test_the_ceiling_is_the_price_of_all_output_tokens_that_are_allowed(tmp_path: Path):
    made = plan(tmp_path, ROWS, max_tokens=100_000)

    assert made.tokens.output_ceiling == 500_000
    assert made.batch is not None
    assert made.synchronous is not None
    # $12.50 for a million output tokens in a batch, and some input.
    assert 6_250_000 <= made.batch.ceiling < 6_260_000
    assert made.synchronous.likely == pytest.approx(2 * made.batch.likely, abs=10)
    assert made.batch.low <= made.batch.likely <= made.batch.ceiling


def test_a_long_prompt_is_priced_by_itself(tmp_path: Path):
    model = next(m for m in models.table().models.values() if m.long is not None)
    short, long = {"id": "s", "text": "a b " * 9}, {"id": "l", "text": "a b " * 300_000}

    together, alone = (plan(tmp_path, rows, model=model.id).synchronous
                       for rows in ([short] * 0 + [short, long], [long]))  # fmt: skip
    rest = plan(tmp_path, [short], model=model.id).synchronous

    assert together is not None
    assert alone is not None
    assert rest is not None
    assert together.likely == alone.likely + rest.likely
    assert together.ceiling == alone.ceiling + rest.ceiling


def test_an_unknown_model_has_no_price(tmp_path: Path):
    made = plan(tmp_path, ROWS, model="somebody-elses-model")

    assert made.batch is None
    assert made.synchronous is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_requests": 0}, "--shard-size is 0; 1 to 100000"),
        ({"shard_requests": limits.BATCH_REQUESTS_MAX + 1}, "--shard-size"),
        ({"suffix": "md"}, "--suffix"),
        ({"suffix": "./x"}, "--suffix"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        plan(tmp_path, ROWS, **settings)


def test_reports_mirror_the_input_tree():
    keys = [("sub/a.md", False), ("b.rst", False), ("id.7", True)]

    assert output_names(keys, ".md") == ["sub/a.md", "b.md", "id.7.md"]


def test_reports_that_would_have_one_name_keep_theirs_in_full():
    keys = [("a.md", False), ("a.rst", False), ("b.md", False)]

    assert output_names(keys, ".md") == ["a.md.md", "a.rst.md", "b.md"]


def test_names_that_differ_only_by_case_are_told_apart():
    one, other = output_names([("README", True), ("readme", True)], ".md")

    assert one.casefold() != other.casefold()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("../../etc/passwd", "__/__/etc/passwd.md"),
        ("/abs", "abs.md"),
        ("a\x1b[31m\nb", "a_[31m_b.md"),
        (".batchyard/journal", "_.batchyard/journal.md"),
        (".BatchYard/journal", "_.BatchYard/journal.md"),
        ("..", "__.md"),
        ("", "_.md"),
    ],
)
def test_a_report_never_leaves_the_output_folder_or_touches_our_state(key: str, expected: str):
    assert output_names([(key, True)], ".md") == [expected]


@given(st.lists(st.text(max_size=300), unique=True, max_size=30))
def test_names_of_reports_are_different_and_fit_any_file_system(keys: list[str]):
    names = output_names([(key, True) for key in keys], ".md")

    assert len({name.casefold() for name in names}) == len(keys)
    assert all(len(part.encode()) <= 255 for name in names for part in name.split("/"))
    assert all(not name.startswith("/") and ".." not in name.split("/") for name in names)


def test_a_report_named_like_the_receipt_gets_another_name():
    assert output_names([("receipt", True)], ".json") != ["receipt.json"]


def test_estimates_know_scripts():
    prose = "The quick brown fox jumps over the lazy dog. " * 100

    assert 900 <= estimate.tokens(prose, "claude-opus-4-6") <= 1_300
    assert estimate.tokens(prose, "claude-opus-4-8") > estimate.tokens(prose, "claude-opus-4-6")
    assert 900 <= estimate.tokens("文档分析" * 250, "claude-opus-4-8") <= 1_200
    assert estimate.tokens("", "x") == 1


def test_for_each_model_compared_the_same_requests_are_checked_and_priced(tmp_path: Path):
    rows = [
        {"id": "a", "text": "one", "own": {"model": "claude-haiku-4-5"}},
        {"id": "b", "text": "two", "own": {"max_tokens": 100_000}},
        {"id": "c", "text": "three", "own": {}},
    ]
    made = plan(tmp_path, rows, override="own", params={"temperature": 1})

    opus, haiku, unknown = compare(made, ["claude-haiku-4-5", "unheard-of"])

    assert (opus.model, opus.refused) == ("claude-opus-4-8", 0)
    assert (haiku.refused, haiku.output_cap) == (1, 64_000)
    assert haiku.why.startswith("max_tokens: 100000 > 64000")
    assert haiku.batch is not None
    assert haiku.batch.ceiling < 102_000 * 5  # dollars per million tokens out, half of them
    assert (unknown.refused, unknown.batch, unknown.output_cap) == (0, None, None)


def test_a_row_may_choose_another_model_and_is_priced_by_it(tmp_path: Path):
    rows = [{"id": "a", "text": "x", "own": {"model": "claude-haiku-4-5"}}]

    own, other = (
        plan(tmp_path, rows, override="own"),
        plan(tmp_path, rows, model="claude-haiku-4-5"),
    )

    assert own.batch == other.batch
    assert own.requests[0].digest == other.requests[0].digest
