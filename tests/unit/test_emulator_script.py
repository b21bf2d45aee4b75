"""The outcome script: what is read, what is refused and how, and which rule fits which request."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import result
from batchyard.emulator import script as scripts
from batchyard.emulator import vocabulary
from batchyard.emulator.script import CallRule, Credit, RequestRule, Script, parse, seconds_of
from batchyard.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "outcomes.toml"


def request(keys: str) -> RequestRule:
    [rule] = parse(f"[[request]]\n{keys}").requests
    return rule


def call(keys: str) -> CallRule:
    [rule] = parse(f"[[call]]\n{keys}").calls
    return rule


def test_an_empty_script_lets_everything_succeed() -> None:
    assert parse("") == Script()
    assert Script().rule_for("a", seed=0) is None


def test_every_key_is_read() -> None:
    text = """
        seed = 7
        [[request]]
        custom_id = ["a-*", "b"]
        outcome = "refusal"
        message = "No."
        seconds = "1h30m"
        share = 0.25
        first = 3
        times = 2
        category = "bio"
        text = "I"
        input_tokens = 10
        output_tokens = 0
        [[request]]
        outcome = "rate_limited"
        retry_after = 5
        [credit]
        usd = 1.5
        [[call]]
        on = "create"
        fault = "error"
        times = 0
        after = 4
        status = 413
        type = "request_too_large"
        message = "Too much"
        retry_after = 9
        should_retry = false
        [[call]]
        on = "results"
        fault = "cut"
        lines = 3
        [[call]]
        on = "any"
        fault = "slow"
        seconds = 5
    """
    assert parse(text) == Script(
        seed=7,
        requests=(
            RequestRule(
                custom_id=("a-*", "b"), outcome="refusal", message="No.", seconds=5_400.0,
                share=0.25, first=3, times=2, category="bio", text="I", input_tokens=10,
                output_tokens=0,
            ),
            RequestRule(outcome="rate_limited", retry_after=5),
        ),
        credit=Credit(usd=1.5),
        calls=(
            CallRule(
                on="create", fault="error", times=0, after=4, status=413,
                type="request_too_large", message="Too much", retry_after=9, should_retry=False,
            ),
            CallRule(on="results", fault="cut", lines=3, type="api_error",
                     message="Internal server error"),
            CallRule(on="any", fault="slow", seconds=5.0, type="api_error",
                     message="Internal server error"),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("outcome", vocabulary.OUTCOMES)
def test_every_outcome_can_be_asked_for_with_all_its_keys(outcome: vocabulary.OutcomeName) -> None:
    values = {
        "error": '"api_error"', "message": '"m"', "retry_after": "1", "category": '"bio"',
        "text": '"t"', "input_tokens": "1", "output_tokens": "1",
    }  # fmt: skip
    keys = {key: values[key] for key in vocabulary.KEYS_OF_OUTCOME[outcome]} | {"seconds": "1"}
    rule = request(f'outcome = "{outcome}"\n' + "\n".join(f"{k} = {v}" for k, v in keys.items()))
    assert rule.outcome == outcome
    assert rule.seconds == 1


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (400, "invalid_request_error", "The request is not valid."),
        (401, "authentication_error", "API key is invalid."),
        (404, "not_found_error", "The requested resource could not be found."),
        (409, "conflict_error", "The request conflicts with another one."),
        (413, "request_too_large", "Request exceeds the maximum size"),
        (418, "invalid_request_error", "The request is not valid."),
        (429, "rate_limit_error", ("This request would exceed the rate limit. "
                                  "Please try again later.")),
        (500, "api_error", "Internal server error"),
        (504, "timeout_error", "The request timed out."),
        (529, "overloaded_error", "Overloaded"),
        (599, "api_error", "Internal server error"),
    ],
)  # fmt: skip
def test_an_error_answer_has_the_type_and_text_of_its_status(
    status: int, kind: str, message: str
) -> None:
    rule = call(f'on = "any"\nfault = "error"\nstatus = {status}')
    assert (rule.type, rule.message) == (kind, message)


def test_every_error_type_has_a_text() -> None:
    assert set(vocabulary.MESSAGES) == vocabulary.CALL_ERROR_TYPES > result.ERROR_TYPES
    assert set(vocabulary.EXPLANATIONS) == {None, *vocabulary.CATEGORIES}


COUNT = "a whole number from 1 to 1000000000 is allowed"
COUNT_0 = "a whole number from 0 to 1000000000 is allowed"
AFTER = "a whole number from 0 to 86400 is allowed"
SPAN = "a number of seconds, or text such as 30s, 90m, 25h, 1h30m or 2d, is allowed"
OUTCOMES = (
    "succeeded, slow, truncated, refusal, pause_turn, context_window, errored, expired, canceled, "
    "overloaded, rate_limited, server_error, timeout, broken, garbage are allowed"
)
TYPES = (
    "api_error, authentication_error, billing_error, invalid_request_error, not_found_error, "
    "overloaded_error, permission_error, rate_limit_error, timeout_error are allowed"
)
CALL_TYPES = (
    "api_error, authentication_error, billing_error, conflict_error, invalid_request_error, "
    "not_found_error, overloaded_error, permission_error, rate_limit_error, request_too_large, "
    "timeout_error are allowed"
)
R1 = "[[request]] 1: "
C1 = "[[call]] 1: "
OK = 'outcome = "succeeded"'
DROP = 'on = "create"\nfault = "drop"'
ERROR = 'on = "create"\nfault = "error"'
PATTERNS = "a pattern such as bad-*, or a list of patterns, is allowed"

BAD_REQUESTS = [
    ("", f"{R1}outcome is missing; {OUTCOMES}"),
    ('outcome = "explode"', f"{R1}outcome is 'explode'; {OUTCOMES}"),
    ("outcome = 3", f"{R1}outcome is 3; {OUTCOMES}"),
    (f'{OK}\ncustom_ids = "a"', (f"{R1}custom_ids is not a key; custom_id, outcome, error, "
     "message, seconds, share, first, times, retry_after, category, text, input_tokens, "
     "output_tokens are allowed")),
    (f"{OK}\ncustom_id = 3", f"{R1}custom_id is 3; {PATTERNS}"),
    (f"{OK}\ncustom_id = ''", f"{R1}custom_id is ''; {PATTERNS}"),
    (f"{OK}\ncustom_id = []", f"{R1}custom_id is []; {PATTERNS}"),
    (f"{OK}\ncustom_id = [1]", f"{R1}custom_id is [1]; {PATTERNS}"),
    (f"{OK}\nshare = 1.5", f"{R1}share is 1.5; a number from 0 to 1 is allowed"),
    (f"{OK}\nshare = nan", f"{R1}share is nan; a number from 0 to 1 is allowed"),
    (f"{OK}\nfirst = 0", f"{R1}first is 0; {COUNT}"),
    (f"{OK}\nfirst = true", f"{R1}first is True; {COUNT}"),
    (f"{OK}\nfirst = 1.5", f"{R1}first is 1.5; {COUNT}"),
    (f"{OK}\ntimes = 0", f"{R1}times is 0; {COUNT}"),
    (f"{OK}\nseconds = '1y'", f"{R1}seconds: 1y is not a duration; {SPAN}"),
    (f"{OK}\nseconds = -1", f"{R1}seconds: -1 is not a duration; {SPAN}"),
    (f"{OK}\nseconds = inf", f"{R1}seconds: inf is too long; at most 1000 days are allowed"),
    (f"{OK}\ninput_tokens = -1", f"{R1}input_tokens is -1; {COUNT_0}"),
    (f"{OK}\noutput_tokens = '1'", f"{R1}output_tokens is '1'; {COUNT_0}"),
    (f"{OK}\ntext = 3", f"{R1}text is 3; text is allowed"),
    (f"{OK}\nerror = 'api_error'", (f"{R1}error has no effect with outcome succeeded; "
     "input_tokens, output_tokens, text have one there")),
    ("outcome = 'expired'\nmessage = 'm'", (f"{R1}message has no effect with outcome expired; no "
     "further key has one there")),
    ("outcome = 'truncated'\noutput_tokens = 1", (f"{R1}output_tokens has no effect with outcome "
     "truncated; input_tokens, text have one there")),
    ("outcome = 'slow'", f"{R1}seconds is needed with outcome slow; {SPAN}"),
    ("outcome = 'errored'\nerror = 'no_error'", f"{R1}error is 'no_error'; {TYPES}"),
    ("outcome = 'errored'\nerror = 'request_too_large'", (f"{R1}error is 'request_too_large'; "
     f"{TYPES}")),
    ("outcome = 'errored'\nmessage = ''", f"{R1}message is ''; text that is not empty is allowed"),
    ("outcome = 'refusal'\ncategory = 'rude'", (f"{R1}category is 'rude'; cyber, bio, "
     "frontier_llm, reasoning_extraction, general_harms are allowed")),
    ("outcome = 'rate_limited'\nretry_after = -1", f"{R1}retry_after is -1; {AFTER}"),
    (f"{OK}\n[[request]]\n{OK}\n[[request]]\nx = 1", "[[request]] 3: x is not a key; "),
    (f"{OK}\n[[request]]\n{OK}", ("[[request]] 1 takes all requests, so those after it would get "
     "none; put it last, or give it custom_id, share, first or times")),
]  # fmt: skip
BAD_CALLS = [
    ("on = 'create'", f"{C1}fault is missing; drop, cut, error, slow are allowed"),
    ("fault = 'drop'", (f"{C1}on is missing; create, retrieve, list, cancel, delete, results, "
     "models, messages, any are allowed")),
    ("on = 'make'\nfault = 'drop'", f"{C1}on is 'make'; create, retrieve, list, "),
    ("on = 'list'\nfault = 'burn'", f"{C1}fault is 'burn'; drop, cut, error, slow are allowed"),
    (f"{DROP}\ntimes = -1", f"{C1}times is -1; {COUNT_0}"),
    (f"{DROP}\nafter = 'x'", f"{C1}after is 'x'; {COUNT_0}"),
    (f"{DROP}\nstatus = 500", (f"{C1}status has no effect with fault drop; no further key has one "
     "there")),
    (f"{DROP}\nwhen = 1", (f"{C1}when is not a key; on, fault, times, after, status, type, "
     "message, retry_after, should_retry, lines, seconds are allowed")),
    (f"{ERROR}\nstatus = 399", f"{C1}status is 399; a whole number from 400 to 599 is allowed"),
    (f"{ERROR}\nstatus = 600", f"{C1}status is 600; a whole number from 400 to 599 is allowed"),
    (f"{ERROR}\ntype = 'oops'", f"{C1}type is 'oops'; {CALL_TYPES}"),
    (f"{ERROR}\ntype = ''", f"{C1}type is ''; {CALL_TYPES}"),
    (f"{ERROR}\nmessage = ''", f"{C1}message is ''; text that is not empty is allowed"),
    (f"{ERROR}\nretry_after = 'soon'", f"{C1}retry_after is 'soon'; {AFTER}"),
    (f"{ERROR}\nshould_retry = 1", f"{C1}should_retry is 1; true and false are allowed"),
    ("on = 'list'\nfault = 'slow'", f"{C1}seconds is needed with fault slow; {SPAN}"),
    ("on = 'list'\nfault = 'slow'\nseconds = []", f"{C1}seconds: [] is not a duration; {SPAN}"),
    ("on = 'list'\nfault = 'cut'\nlines = 3", (f"{C1}lines has no effect on list; only results "
     "come in lines")),
    ("on = 'results'\nfault = 'cut'\nlines = -1", f"{C1}lines is -1; {COUNT_0}"),
]  # fmt: skip
BAD_SCRIPTS = [
    ("seed = -1", "seed is -1; a whole number from 0 to 9223372036854775807 is allowed"),
    ("seed = true", "seed is True; a whole number from 0 to 9223372036854775807 is allowed"),
    ("sed = 1", "sed is not known; seed, [[request]], [credit] and [[call]] are allowed"),
    ("[request]\nx = 1", "request is not a list of tables; write [[request]] above each"),
    ("call = [1]", "call is not a list of tables; write [[call]] above each"),
    ("credit = 5", "credit is not a table; write [credit] above it"),
    ("[credit]", "[credit]: either requests or usd is needed"),
    ("[credit]\nrequests = 1\nusd = 1", "[credit]: either requests or usd is needed"),
    ("[credit]\nrequests = -1", f"[credit]: requests is -1; {COUNT_0}"),
    ("[credit]\nusd = nan", "[credit]: usd is nan; a number from 0 to 1000000 is allowed"),
    ("[credit]\neur = 1", "[credit]: eur is not a key; requests, usd are allowed"),
    ("seed = ", "Invalid value (at end of document)"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [(f"[[request]]\n{keys}", message) for keys, message in BAD_REQUESTS]
    + [(f"[[call]]\n{keys}", message) for keys, message in BAD_CALLS]
    + BAD_SCRIPTS,
)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "outcomes.toml")
    found = caught.value.message
    if message.endswith(("; ", ", ")):  # the rest is in another row
        assert found.startswith(f"outcomes.toml: {message}")
    else:
        assert found == f"outcomes.toml: {message}"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    with pytest.raises(ConfigError, match=r"^cannot read .*o\.toml: No such file"):
        scripts.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"^.*o\.toml: 'utf-8' codec can't decode"):
        scripts.load(path)
    path.write_text("x = 1")
    with pytest.raises(ConfigError, match=r"^.*o\.toml: x is not known; "):
        scripts.load(path)


def test_the_example_is_a_script_in_which_every_rule_is_reached() -> None:
    script = scripts.load(EXAMPLE)
    ids = ["bad-1", "late-1", "1-late", "withdrawn-1", "forbidden-1", "long-1", "search-1",
           "slow-1", "busy-1", "echo-1", *(f"plain-{n}" for n in range(300))]  # fmt: skip
    reached = {index for each in ids for index, _ in script.rules_for(each, seed=7)}
    assert reached == set(range(len(script.requests)))
    assert script.seed == 7
    assert script.credit == Credit(requests=100)
    assert [rule.on for rule in script.calls] == ["create", "results", "retrieve"]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0), (3_600, 3_600.0), (0.5, 0.5), ("30s", 30.0), ("90m", 5_400.0), ("25h", 90_000.0),
        ("2d", 172_800.0), ("1h30m", 5_400.0), ("1d2h3m4s", 93_784.0), ("1.5h", 5_400.0),
        ("45", 45.0), ("0.25", 0.25), ("1000d", 86_400_000.0),
    ],
)  # fmt: skip
def test_a_duration_is_a_number_or_text_with_units(value: object, seconds: float) -> None:
    assert seconds_of(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "h", "-1h", "1h ", "1 h", "30m1h", "1h1h", "1H", "1e3", "nan", "\u0661h", "1_0", "9" * 50,
     "1000d1s", float("nan"), float("inf"), -1, 86_400_001, True, None, [1], b"1h"],
)  # fmt: skip
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match=r"; a number of seconds, or |; at most 1000 days"):
        seconds_of(value)


@given(st.one_of(st.text(max_size=45), st.floats(), st.integers(), st.booleans()))
def test_a_duration_is_in_range_or_refused(value: object) -> None:
    try:
        seconds = seconds_of(value)
    except ValueError:
        return
    assert 0 <= seconds <= 86_400_000


def test_the_first_rule_that_fits_counts_and_case_matters() -> None:
    script = parse("""
        [[request]]
        custom_id = ["a-?", "[xy]*"]
        outcome = "errored"
        [[request]]
        custom_id = "a-*"
        outcome = "expired"
    """)
    found = {each: script.rule_for(each, seed=0) for each in ("a-1", "a-12", "xa", "A-1", "b")}
    outcomes = {each: rule.outcome if rule else None for each, rule in found.items()}
    assert outcomes == {
        "a-1": "errored", "a-12": "expired", "xa": "errored", "A-1": None, "b": None,
    }  # fmt: skip


SHARES = parse("""
    [[request]]
    share = 0.1
    outcome = "errored"
    [[request]]
    share = 0.5
    outcome = "expired"
""")
IDS = [f"doc-{number:05d}" for number in range(10_000)]


def chosen(seed: int, ids: list[str]) -> dict[str, str | None]:
    rules = {each: SHARES.rule_for(each, seed=seed) for each in ids}
    return {each: rule.outcome if rule else None for each, rule in rules.items()}


@pytest.mark.parametrize(("seed", "errored", "expired"), [(0, 1034, 4530), (7, 1076, 4394)])
def test_a_share_takes_about_that_many_and_always_the_same(
    seed: int, errored: int, expired: int
) -> None:
    outcomes = list(chosen(seed, IDS).values())
    assert (outcomes.count("errored"), outcomes.count("expired")) == (errored, expired)


def test_a_share_does_not_depend_on_order() -> None:
    shuffled = IDS.copy()
    random.Random(5).shuffle(shuffled)
    assert chosen(7, shuffled) == chosen(7, IDS)


def test_another_seed_chooses_other_requests() -> None:
    one, other = chosen(7, IDS), chosen(8, IDS)
    both = sum(one[each] == other[each] == "errored" for each in IDS)
    assert 60 <= both <= 140  # a tenth of a tenth, as chance has it


def test_a_share_of_nothing_takes_none_and_of_all_takes_all() -> None:
    none = parse('[[request]]\nshare = 0\noutcome = "errored"')
    every = parse('[[request]]\nshare = 1\noutcome = "errored"')
    assert not any(none.rule_for(each, seed=1) for each in IDS[:2_000])
    assert all(every.rule_for(each, seed=1) for each in IDS[:2_000])


def test_a_rule_for_a_document_fits_its_request_with_the_mark_of_a_run():
    script = parse('[[request]]\ncustom_id = "a_Dmd"\noutcome = "expired"\n')

    assert script.rule_for("a_Dmd_R0-7f3a", seed=0) is not None
    assert script.rule_for("a_Dmd", seed=0) is not None
    assert script.rule_for("a_Dmd_R1-7f3a", seed=0) is None, "a repetition has an id of its own"
    assert script.rule_for("a_Dmd-7f3a", seed=0) is None
    again = parse('[[request]]\ncustom_id = "a_Dmd_R1"\noutcome = "expired"\n')
    assert again.rule_for("a_Dmd_R1-7f3a", seed=0) is not None
