"""What schemathesis has to be told of the yard. Loaded by its own interpreter, not by pytest."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any
from urllib.parse import quote

import requests
import schemathesis
from hypothesis import strategies as st

# What no schema can say of a request that is well formed.
REFUSALS = re.compile(
    r"(after|before)_id: no such batch"
    r"|requests: custom_id's must be unique within a batch"
    r"|idempotency-key: this key was used for a batch with other content"
    r"|In progress batches cannot be deleted"
)
CREATE = "POST /v1/messages/batches"
DELETE = "DELETE /v1/messages/batches/{batch_id}"
PASSED_ON = {"/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/models/{model_id}"}

# A header whose pattern demands other characters than letters and digits is one that schemathesis
# finds no valid value for; it does for a format of ours.
schemathesis.openapi.format(
    "workspace", st.sampled_from(["wrkspc_default", "wrkspc_a", "wrkspc_b"])
)


@schemathesis.hook
def before_load_schema(ctx: Any, raw_schema: dict[str, Any]) -> None:
    """Name the format."""
    raw_schema["components"]["schemas"]["WorkspaceId"]["format"] = "workspace"


@schemathesis.deserializer("application/x-jsonl")
def lines(ctx: Any, response: Any) -> Any:
    """Return the objects of a JSONL body; a part of one need not begin or end with a line."""
    body = response.content
    if response.status_code == 206:
        return body.decode("utf-8", "replace")
    if body and not body.endswith(b"\n"):
        raise ValueError("the last line has no end")
    return [json.loads(line) for line in body.split(b"\n")[:-1]]


@schemathesis.check
def refused_for_what_no_schema_says(ctx: Any, response: Any, case: Any) -> None:
    """A request that fits the description is accepted, or refused for one of a few known reasons.

    What is passed on is the upstream's to judge.
    """
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code == 400 and case.operation.path not in PASSED_ON:
        message = response.json()["error"]["message"]
        assert REFUSALS.match(message), message


@schemathesis.check
def passed_on_as_described(ctx: Any, response: Any, case: Any) -> None:
    """The simulated model answers with no status that only `default` describes."""
    assert str(response.status_code) in case.operation.responses.status_codes, response.status_code


@schemathesis.check
def one_request_id(ctx: Any, response: Any, case: Any) -> None:
    """An error names the id of its header; what is passed on may name the upstream's."""
    if response.status_code >= 400 and case.operation.path not in PASSED_ON:
        assert response.json()["request_id"] == response.headers["request-id"][0]


@schemathesis.check
def what_was_created_is_there(ctx: Any, response: Any, case: Any) -> None:
    """At once, in its workspace, with the same content.

    `ensure_resource_availability` looks only where every header of both calls is the same.
    """
    if case.operation.label == CREATE and response.status_code == 200:
        batch = response.json()
        found = look(case, batch["id"], response.headers["anthropic-workspace-id"][0])
        assert found.status_code == 200, found.text
        assert found.json()["created_at"] == batch["created_at"]


@schemathesis.hook
def before_call(ctx: Any, case: Any, kwargs: Any) -> None:
    """Let a batch end before it is deleted: only then it can be, and nothing comes after free."""
    workspace = str((case.headers or {}).get("anthropic-workspace-id", "wrkspc_default"))
    if case.operation.label != DELETE or not re.fullmatch(r"wrkspc_[\w-]+", workspace, re.ASCII):
        return
    for _ in range(6_000):
        found = look(case, case.path_parameters["batch_id"], workspace)
        if found.status_code != 200 or found.json()["processing_status"] == "ended":
            return
        time.sleep(0.01)


def look(case: Any, batch_id: object, workspace: str) -> requests.Response:
    """Retrieve a batch."""
    url = f"{case.operation.base_url.rstrip('/')}/v1/messages/batches/{quote(str(batch_id), '')}"
    headers = {"x-api-key": "sk-test-key", "anthropic-version": "2023-06-01"}
    headers["anthropic-workspace-id"] = workspace
    return requests.get(url, headers=headers, timeout=30)


@schemathesis.hook
def after_call(ctx: Any, case: Any, response: Any) -> None:
    """Tell the test what was answered with what."""
    path = os.environ.get("BATCHYARD_OPENAPI_SEEN")
    if path:
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123 - append a line
            file.write(f"{case.operation.label} {response.status_code}\n")
