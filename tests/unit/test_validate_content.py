"""Blocks, sources, roles, tool calls and cache breakpoints: what the hosted API refuses."""

from __future__ import annotations

import pytest

from batchyard.validate.content import BLOCKS
from helpers_validate import (
    BASE,
    HAIKU_4_5,
    NEW,
    OLD,
    OPUS_4_6,
    OPUS_4_8,
    OPUS_5_5,
    USER,
    changed,
    problem,
    said,
    text,
)

BETA = ("some-feature-2026-11-01",)
FIVE, HOUR = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
AT = "messages.0.content.0"


def image(**source: object) -> dict[str, object]:
    return {"type": "image", "source": source}


def document(**source: object) -> dict[str, object]:
    return {"type": "document", "source": source}


def use(name: str = "toolu_1") -> dict[str, object]:
    return {"type": "tool_use", "id": name, "name": "t", "input": {}}


def result(name: str = "toolu_1", **fields: object) -> dict[str, object]:
    return {"type": "tool_result", "tool_use_id": name} | fields


def server_use(name: str = "web_search") -> dict[str, object]:
    return {"type": "server_tool_use", "id": "srvtoolu_1", "name": name, "input": {}}


def server_result(name: str = "web_search") -> dict[str, object]:
    return {"type": f"{name}_tool_result", "tool_use_id": "srvtoolu_1", "content": []}


def blocks(
    *found: dict[str, object], version: str = OLD, betas: tuple[str, ...] = ()
) -> str | None:
    return changed(version, betas, messages=[said("user", *found)])


FINE: list[dict[str, object]] = [
    text(citations=None),
    image(type="base64", media_type="image/png", data="AA=="),
    image(type="url", url="https://example.org/a.png"),
    image(type="file", file_id="file_1"),
    document(type="base64", media_type="application/pdf", data="AA=="),
    document(type="url", url="https://example.org/a.pdf"),
    document(type="file", file_id="file_1"),
    document(type="text", media_type="text/plain", data=""),
    document(type="content", content="some text"),
    document(type="content", content=[text(), image(type="file", file_id="f")]),
    document(type="file", file_id="f") | {"citations": {"enabled": True}, "title": None},
    {"type": "search_result", "source": "s", "title": "t", "content": [text()]},
    {"type": "container_upload", "file_id": "file_1"},
]


@pytest.mark.parametrize("block", FINE)
@pytest.mark.parametrize("version", [OLD, NEW])
def test_each_block_in_its_form_passes(block: dict[str, object], version: str) -> None:
    assert blocks(block, version=version) is None


IMAGES = "'image/jpeg', 'image/png', 'image/gif' or 'image/webp'"
WRONG: list[tuple[dict[str, object], str]] = [
    ({"type": "text"}, f"{AT}.text.text: Field required"),
    ({"type": "text", "text": 5}, f"{AT}.text.text: Input should be a valid string"),
    (text(""), "messages: text content blocks must be non-empty"),
    ({"type": "image"}, f"{AT}.image.source: Field required"),
    (
        {"type": "image", "source": "x"},
        f"{AT}.image.source: Input should be a valid dictionary",
    ),
    (image(), f"{AT}.image.source.type: Field required"),
    (
        image(type="text"),
        (f"{AT}.image.source: Input tag 'text' found using 'type' does not match any of the "
        "expected tags: 'base64', 'file', 'url'"),
    ),
    (image(type="base64", data="AA"), f"{AT}.image.source.base64.media_type: Field required"),
    (
        image(type="base64", data="AA", media_type="image/tiff"),
        f"{AT}.image.source.base64.media_type: Input should be {IMAGES}",
    ),
    (
        image(type="base64", media_type="image/png"),
        f"{AT}.image.source.base64.data: Field required",
    ),
    (
        image(type="base64", media_type="image/png", data=""),
        f"{AT}.image.source.base64.data: String should have at least 1 character",
    ),
    (image(type="url"), f"{AT}.image.source.url.url: Field required"),
    (image(type="file"), f"{AT}.image.source.file.file_id: Field required"),
    (
        document(type="base64", media_type="image/png", data="A"),
        f"{AT}.document.source.base64.media_type: Input should be 'application/pdf'",
    ),
    (
        document(type="text", media_type="text/html", data="A"),
        f"{AT}.document.source.text.media_type: Input should be 'text/plain'",
    ),
    (
        document(type="content", content=5),
        f"{AT}.document.source.content.content: Input should be a valid string or list",
    ),
    (
        document(type="content", content=[document()]),
        (f"{AT}.document.source.content.content.0: Input tag 'document' found using 'type' does "
        "not match any of the expected tags: 'image', 'text'"),
    ),
    ({"type": "search_result", "source": "s", "title": "t"},
     f"{AT}.search_result.content: Field required"),
    (
        {"type": "search_result", "source": "s", "title": "t", "content": [image()]},
        (f"{AT}.search_result.content.0: Input tag 'image' found using 'type' does not match any "
        "of the expected tags: 'text'"),
    ),
    ({"type": "container_upload"}, f"{AT}.container_upload.file_id: Field required"),
    ({"type": "redacted_thinking"}, f"{AT}.redacted_thinking.data: Field required"),
    (text(cache_control=5), f"{AT}.text.cache_control: Input should be a valid dictionary"),
    (text(cache_control={}), f"{AT}.text.cache_control.type: Field required"),
    (
        text(cache_control={"type": "always"}),
        f"{AT}.text.cache_control.type: Input should be 'ephemeral'",
    ),
    (
        text(cache_control={"type": "ephemeral", "ttl": "2h"}),
        f"{AT}.text.cache_control.ephemeral.ttl: Input should be '5m' or '1h'",
    ),
    (
        text(cache_control={"type": "ephemeral", "scope": "all"}),
        f"{AT}.text.cache_control.ephemeral.scope: Extra inputs are not permitted",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("block", "message"), WRONG)
def test_a_block_that_does_not_fit_is_named_with_its_path(
    block: dict[str, object], message: str
) -> None:
    assert blocks(block) == message


def test_a_type_that_is_not_known_is_refused_unless_it_may_be_that_of_a_beta() -> None:
    block = {"type": "mcp_tool_use"}
    tags = ", ".join(map(repr, sorted(BLOCKS)))
    assert blocks(block) == (
        f"{AT}: Input tag 'mcp_tool_use' found using 'type' does not match any of the expected "
        f"tags: {tags}"
    )
    assert blocks(block, betas=BETA) is None
    assert blocks(image(type="of tomorrow"), betas=BETA) is None
    assert blocks(text(cache_control={"type": "ephemeral", "scope": "x"}), betas=BETA) is None


def test_a_beta_excuses_nothing_that_is_known() -> None:
    assert blocks(image(type="url"), betas=BETA) == f"{AT}.image.source.url.url: Field required"


SYSTEM = [
    ([text("")], "system: text content blocks must be non-empty"),
    ([{"type": "text"}], "system.0.text: Field required"),
    ([image()], "system.0.type: Input should be 'text'"),
    (
        [text(cache_control={"type": "ephemeral", "scope": "x"})],
        "system.0.cache_control.ephemeral.scope: Extra inputs are not permitted",
    ),
    ([text(citations=[{"type": "char_location"}])], None),
]


@pytest.mark.parametrize(("system", "message"), SYSTEM)
def test_the_system_prompt_is_text(system: list[object], message: str | None) -> None:
    assert changed(system=system) == message
    assert changed(NEW, system=system) == message


def test_only_the_last_message_may_be_empty_and_only_the_assistants() -> None:
    empty = (
        "all messages must have non-empty content except for the optional final assistant message"
    )
    for content in ("", []):
        said_nothing = {"role": "user", "content": content}
        assert changed(messages=[said_nothing]) == f"messages.0: {empty}"
        assert changed(messages=[USER, said_nothing | {"role": "assistant"}]) is None


# The new version ------------------------------------------------------------------------------


def test_a_document_directly_in_an_assistant_message_went_with_the_new_version() -> None:
    own = document(type="text", media_type="text/plain", data="x")
    messages = [USER, said("assistant", text(), own), USER]
    assert changed(OLD, messages=messages) is None
    assert (changed(NEW, messages=messages) or "").startswith(
        "messages.1.content.1: Input tag 'document' found using 'type' does not match any of the "
        "expected tags: 'bash_code_execution_tool_result', "
    )
    assert (changed(NEW, BETA, messages=messages) or "").startswith("messages.1.content.1: ")


def test_a_document_inside_a_result_in_an_assistant_message_stays() -> None:
    found = server_result("web_fetch") | {
        "content": {"type": "web_fetch_result", "url": "u", "content": document(type="text")}
    }
    messages = [USER, said("assistant", server_use("web_fetch"), found, text()), USER]
    assert changed(NEW, messages=messages) is None


CITED = text(citations=[{"type": "char_location"}])
CITATIONS = "Citations are not permitted on text blocks in user messages"


@pytest.mark.parametrize(
    ("block", "path"),
    [
        (CITED, f"{AT}.text.citations"),
        (
            {"type": "search_result", "source": "s", "title": "t", "content": [CITED]},
            f"{AT}.search_result.content.0.text.citations",
        ),
    ],
)
def test_citations_on_user_text_went_with_the_new_version(
    block: dict[str, object], path: str
) -> None:
    assert blocks(block, version=OLD) is None
    assert blocks(block, version=NEW) == f"{path}: {CITATIONS}"
    assert blocks(block, version=NEW, betas=BETA) == f"{path}: {CITATIONS}"


def test_citations_of_the_assistant_and_empty_ones_stay() -> None:
    assert blocks(text(citations=[]), version=NEW) is None
    assert changed(NEW, messages=[USER, said("assistant", CITED), USER]) is None


# Turns ----------------------------------------------------------------------------------------

INSTRUCTION = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "ok"}
PAUSED = said("assistant", text(), server_use())


@pytest.mark.parametrize("model", [HAIKU_4_5, OPUS_4_6, "claude-opus-4-7", "claude-sonnet-5"])
def test_older_models_take_no_system_turns(model: str) -> None:
    found = changed(model=model, messages=[USER, INSTRUCTION])
    assert found == "role 'system' is not supported on this model"


@pytest.mark.parametrize(
    "messages",
    [
        [USER, INSTRUCTION],
        [USER, INSTRUCTION, ANSWER, USER],
        [USER, PAUSED, INSTRUCTION],
    ],
)
def test_a_system_turn_follows_a_user_or_a_server_tool(messages: list[object]) -> None:
    assert changed(model=OPUS_4_8, messages=messages) is None


@pytest.mark.parametrize(
    ("messages", "at"),
    [
        ([INSTRUCTION, USER], 0),
        ([USER, INSTRUCTION, USER], 1),
        ([USER, ANSWER, INSTRUCTION], 2),
        ([USER, INSTRUCTION, INSTRUCTION], 1),
    ],
)
def test_a_system_turn_elsewhere_is_refused_unless_a_beta_may_allow_it(
    messages: list[object], at: int
) -> None:
    assert changed(model=OPUS_4_8, messages=messages) == (
        f"messages.{at}: role 'system' must follow a user message, and be the last message or be "
        "followed by an assistant message"
    )
    assert changed(OLD, BETA, model=OPUS_4_8, messages=messages) is None


def test_a_system_turn_is_text() -> None:
    turn = said("system", image(type="file", file_id="f"))
    found = changed(model=OPUS_4_8, messages=[USER, turn]) or ""
    assert found.startswith("messages.1.content.0: Input tag 'image' found using 'type'")


PREFILL = (
    "This model does not support assistant message prefill. The conversation must end with a user "
    "message."
)


@pytest.mark.parametrize("final", [ANSWER, said("assistant", text("{")), said("assistant")])
def test_newer_models_take_no_prefill(final: dict[str, object]) -> None:
    for model in (OPUS_4_6, OPUS_4_8, OPUS_5_5, "claude-haiku-5-5"):
        assert changed(model=model, messages=[USER, final]) == PREFILL
    assert changed(model=HAIKU_4_5, messages=[USER, final]) is None


def test_a_paused_turn_is_continued_and_no_prefill() -> None:
    assert changed(model=OPUS_5_5, messages=[USER, PAUSED]) is None
    whole = said("assistant", server_use(), server_result(), text())
    assert changed(model=OPUS_5_5, messages=[USER, whole]) is None


@pytest.mark.parametrize(
    ("rest", "missing"),
    [
        ([said("user", result("b"), result("a", content="ok")), ANSWER, USER], None),
        ([said("user", result("b"), text(), result("a"))], None),
        ([said("user", result("a")), ANSWER, USER], "b"),
        ([USER, ANSWER, said("user", result("a"))], "a, b"),
        ([], "a, b"),
    ],
)
@pytest.mark.parametrize("model", [HAIKU_4_5, OPUS_5_5])
def test_each_tool_call_has_its_result_in_the_next_turn(
    model: str, rest: list[object], missing: str | None
) -> None:
    call = said("assistant", text(), use("a"), use("b"))
    expected = missing and (
        f"messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: "
        f"{missing}. Each `tool_use` block must have a corresponding `tool_result` block in the "
        "next message."
    )
    assert changed(model=model, messages=[USER, call, *rest]) == expected


def test_neighbouring_messages_of_a_role_are_one_turn() -> None:
    calls = [said("assistant", use("a")), said("assistant", use("b"))]
    results = [said("user", result("b")), said("user", result("a"))]
    assert changed(messages=[USER, *calls, *results]) is None


def test_a_result_needs_its_call() -> None:
    assert changed(messages=[said("user", text(), result("x"))]) == (
        "messages.0.content.1: unexpected `tool_use_id` found in `tool_result` blocks: x. Each "
        "`tool_result` block must have a corresponding `tool_use` block in the previous message."
    )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([said("user", use())],
         "messages.0: `tool_use` blocks can only be in `assistant` messages"),
        (
            [USER, said("assistant", result()), USER],
            "messages.1: `tool_result` blocks can only be in `user` messages",
        ),
        ([USER, said("assistant", {"type": "tool_use", "id": "a", "name": "t"}), USER],
         "messages.1.content.0.tool_use.input: Field required"),
        ([said("user", {"type": "tool_result"})],
         f"{AT}.tool_result.tool_use_id: Field required"),
        ([USER, said("assistant", use()), said("user", result(content=[use()]))],
         ("messages.2.content.0.tool_result.content.0: Input tag 'tool_use' found using 'type' "
         "does not match any of the expected tags: 'browser_state', 'document', 'image', "
         "'search_result', 'text', 'tool_reference'")),
        ([USER, said("assistant", use()), said("user", result(content=5))],
         "messages.2.content.0.tool_result.content: Input should be a valid list"),
    ],
)  # fmt: skip
def test_tool_blocks_stand_where_they_belong(messages: list[object], message: str) -> None:
    assert changed(messages=messages) == message


def test_a_search_that_was_left_open_is_refused_once_the_turn_has_gone_on() -> None:
    left_open = said("assistant", server_use("web_fetch"))
    assert changed(messages=[USER, left_open, USER]) == (
        "`web_fetch` tool use with id `srvtoolu_1` was found without a corresponding "
        "`web_fetch_tool_result` block"
    )
    closed = said("assistant", server_use("web_fetch"), server_result("web_fetch"))
    assert changed(messages=[USER, closed, USER]) is None
    assert changed(messages=[USER, left_open]) is None


# Cache breakpoints ----------------------------------------------------------------------------

ORDER = (
    "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block. Note that "
    "blocks are processed in the following order: `tools`, `system`, `messages`."
)


def marked(*controls: object) -> list[dict[str, object]]:
    return [text(cache_control=control) for control in controls]


def test_there_are_at_most_four_breakpoints() -> None:
    assert blocks(*marked(FIVE, FIVE, None, FIVE, FIVE)) is None
    five = "A maximum of 4 blocks with cache_control may be provided. Found 5."
    assert blocks(*marked(FIVE, FIVE, FIVE, FIVE, FIVE)) == five
    tool = {"name": "t", "input_schema": {"type": "object"}, "cache_control": FIVE}
    spread = {
        "tools": [tool],
        "system": marked(FIVE),
        "messages": [said("user", *marked(FIVE, FIVE, None), text())],
    }
    assert problem(BASE | spread) is None
    assert problem(BASE | spread | {"system": marked(FIVE, FIVE)}) == five
    assert problem(BASE | spread | {"cache_control": FIVE}) == five


def test_breakpoints_inside_tool_results_count() -> None:
    inside = result(content=marked(FIVE, FIVE, FIVE), cache_control=FIVE)
    turns = [USER, said("assistant", use()), said("user", inside)]
    assert changed(messages=turns) is None
    assert changed(messages=turns, system=marked(FIVE)) == (
        "A maximum of 4 blocks with cache_control may be provided. Found 5."
    )


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"messages": [said("user", *marked(HOUR, FIVE))]}, None),
        ({"messages": [said("user", *marked(FIVE, HOUR))]}, "messages.0.content.1"),
        ({"system": marked(HOUR), "messages": [said("user", *marked(FIVE))]}, None),
        ({"system": marked(FIVE), "messages": [said("user", *marked(HOUR))]}, AT),
        ({"system": marked(FIVE, HOUR)}, "system.1"),
        ({"system": marked(FIVE), "cache_control": HOUR}, "messages.0.content"),
    ],
)
def test_longer_lifetimes_come_first(fields: dict[str, object], path: str | None) -> None:
    assert problem(BASE | fields) == (f"{path}.cache_control.ttl: {ORDER}" if path else None)


def test_the_automatic_breakpoint_shares_the_last_block_only_with_its_own_lifetime() -> None:
    last = {"messages": [said("user", text(), *marked(FIVE))]}
    assert problem(BASE | last | {"cache_control": FIVE}) is None
    assert problem(BASE | last | {"cache_control": HOUR}) == (
        "cache_control: the last block already has a cache_control with a different ttl"
    )
    four = {"messages": [said("user", *marked(FIVE, FIVE, FIVE, FIVE))]}
    assert problem(BASE | four | {"cache_control": FIVE}) is None
    assert changed(cache_control={"type": "ephemeral", "ttl": [1]}) == (
        "cache_control.ephemeral.ttl: Input should be '5m' or '1h'"
    )
    nothing = [{"role": "assistant", "content": ""}]
    assert problem(BASE | {"messages": nothing, "cache_control": HOUR}) is None
    assert changed(cache_control=5) == "cache_control: Input should be a valid dictionary"
