"""Drive a yard with whatever official client this interpreter has; print what was seen as JSON.

    PYTHON driver.py URL

Run under two interpreters by `test_sdk.py`: the current client and the oldest that we support.
Nothing of this package is imported, and nothing is asserted here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import anthropic

DEADLINE_S = 60.0


def request(prompt: str) -> dict[str, Any]:
    return {
        "custom_id": prompt.split("|", maxsplit=1)[0],
        "params": {
            "model": "scripted",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": prompt}],
        },
    }


def plain(batch: Any) -> dict[str, Any]:
    return json.loads(batch.to_json(indent=None))  # type: ignore[no-any-return]


def shown(lines: list[Any]) -> dict[str, Any]:
    """Return what a user of the client would look at in each result."""
    found: dict[str, Any] = {}
    for line in lines:
        result = line.result
        if result.type == "succeeded":
            message = result.message
            value = [message.content[0].text, message.stop_reason, message.usage.service_tier]
        elif result.type == "errored":
            value = [result.error.type, result.error.error.type, result.error.error.message]
        else:
            value = []
        found[line.custom_id] = [result.type, *value]
    return found


def failure(call: Any) -> list[Any]:
    """Return the class of the error that a call raises, and what the client read of it."""
    try:
        call()
    except anthropic.APIStatusError as error:
        body: Any = error.body
        same_id = error.request_id == error.response.headers["request-id"] == body["request_id"]
        return [
            type(error).__name__,
            error.status_code,
            body["error"]["type"],
            body["error"]["message"],
            same_id,
        ]
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return [type(error).__name__, str(error)]
    return []


def wait_ended(retrieve: Any, batch_id: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while True:
        batch = retrieve(batch_id)
        if batch.processing_status == "ended":
            return batch
        if time.monotonic() > end:
            raise SystemExit(f"{batch_id} has not ended")
        time.sleep(0.01)


def drive(batches: Any, name: str, **extra: Any) -> dict[str, Any]:
    """Take one namespace through its calls."""
    seen: dict[str, Any] = {}
    prompts = [f"{name}-1", f"{name}-2", f"{name}-bad|400"]
    created = batches.create(requests=[request(p) for p in prompts], **extra)
    seen["created"] = plain(created)
    seen["request id"] = created._request_id
    ended = wait_ended(batches.retrieve, created.id)
    seen["ended"] = plain(ended)
    seen["ended type"] = [type(ended).__name__, type(ended.ended_at).__name__]
    seen["results"] = shown(list(batches.results(created.id)))

    held = batches.create(
        requests=[request(f"{name}-held|hold:{name}"), request(f"{name}-x|429:900")]
    )
    seen["early"] = failure(lambda: batches.results(held.id))
    seen["early delete"] = failure(lambda: batches.delete(held.id))
    canceled = batches.cancel(held.id)
    seen["canceled"] = [canceled.processing_status, canceled.cancel_initiated_at is not None]
    print(json.dumps({"open": name}), flush=True)
    wait_ended(batches.retrieve, held.id)
    seen["canceled results"] = shown(list(batches.results(held.id)))

    made = [batches.create(requests=[request(f"{name}-page-{n}")]).id for n in range(5)]
    listed = [batch.id for batch in batches.list(limit=2)]
    seen["newest first"] = listed[:5] == made[::-1]
    seen["each once"] = len(set(listed)) == len(listed)
    newer = [batch.id for batch in batches.list(limit=2, before_id=made[0])]
    seen["newer"] = sorted(newer) == sorted(made[1:])
    older = batches.list(limit=3, after_id=made[4])
    seen["older"] = [batch.id for batch in older.data] == made[1:4][::-1]
    seen["more"] = [older.has_more, older.first_id == made[3], older.last_id == made[1]]

    raw = batches.with_raw_response.retrieve(created.id)
    seen["raw"] = [
        raw.headers["content-type"],
        raw.headers.get("retry-after"),
        raw.parse().id == created.id,
    ]
    wait_ended(batches.retrieve, made[0])
    deleted = batches.delete(made[0])
    seen["deleted"] = [deleted.type, deleted.id == made[0]]
    seen["gone"] = failure(lambda: batches.retrieve(made[0]))
    seen["gone twice"] = failure(lambda: batches.delete(made[0]))
    return seen


async def drive_async(client: Any, name: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for space, batches in (("ga", client.messages.batches), ("beta", client.beta.messages.batches)):
        prompts = [f"{name}-{space}-{n}" for n in range(3)]
        created = await batches.create(requests=[request(p) for p in prompts])
        while (await batches.retrieve(created.id)).processing_status != "ended":
            await asyncio.sleep(0.01)
        seen[space] = shown([line async for line in await batches.results(created.id)])
        canceled = await batches.cancel(created.id)
        seen[f"{space} canceled"] = canceled.processing_status
        listed = [batch.id async for batch in batches.list(limit=1)]
        seen[f"{space} listed"] = created.id in listed
        seen[f"{space} deleted"] = (await batches.delete(created.id)).type
    await client.close()
    return seen


def errors(url: str, client: Any) -> dict[str, Any]:
    batches = client.messages.batches
    good = [request("errors-1")]
    keyed = {"idempotency-key": "k"}
    bad_version = anthropic.Anthropic(
        api_key="k", base_url=url, default_headers={"anthropic-version": "1999-01-01"}
    )
    two_keys = anthropic.Anthropic(
        api_key="one",
        base_url=url,
        max_retries=0,
        default_headers={"x-api-key": "one", "authorization": "Bearer two"},
    )
    browser = anthropic.Anthropic(
        api_key="k", base_url=url, default_headers={"origin": "http://evil.example"}
    )
    seen = {
        "empty": failure(lambda: batches.create(requests=[])),
        "custom id": failure(
            lambda: batches.create(requests=[{**request("x"), "custom_id": "a b"}])
        ),
        "twice": failure(lambda: batches.create(requests=good * 2)),
        "unknown": failure(lambda: batches.retrieve("msgbatch_unknown")),
        "unknown results": failure(lambda: batches.results("msgbatch_unknown")),
        "unknown path": failure(lambda: client.get("/_stainless_unknown_path", cast_to=object)),
        "version": failure(lambda: bad_version.messages.batches.list()),
        "key": failure(lambda: two_keys.messages.batches.list()),
        "origin": failure(lambda: browser.messages.batches.create(requests=good)),
        "limit": failure(lambda: batches.list(limit=1001)),
        "conflict": failure(
            lambda: [
                batches.create(requests=good, extra_headers=keyed),
                batches.create(requests=[request("errors-2")], extra_headers=keyed),
            ]
        ),
        "too large": failure(
            lambda: batches.create(requests=[request("errors-3" + "x" * 3_000_000)])
        ),
    }
    for other in (bad_version, two_keys, browser):
        other.close()
    return seen


def messages(client: Any) -> dict[str, Any]:
    body = request("sync-1")["params"]
    message = client.messages.create(**body)
    refused = failure(lambda: client.messages.create(**request("sync-2|404")["params"]))
    with client.messages.stream(**request("sync-3|sse")["params"]) as stream:
        kinds = [event.type for event in stream._raw_stream]
    del body["max_tokens"]
    return {
        "message": [message.content[0].text, message.usage.service_tier],
        "refused": refused[:3],
        "stream": kinds,
        "tokens": client.messages.count_tokens(**body).input_tokens,
        "models": [model.id for model in client.models.list()],
    }


def main(url: str) -> None:
    seen: dict[str, Any] = {"version": anthropic.__version__}
    with anthropic.Anthropic(api_key="sk-test", base_url=url) as client:
        seen["ga"] = drive(client.messages.batches, "ga")
        seen["beta"] = drive(client.beta.messages.batches, "beta", betas=["output-300k-2026-03-24"])
        seen["errors"] = errors(url, client)
        seen["messages"] = messages(client)
        prefixed = client.with_options(base_url=f"{url}/prefix", max_retries=0)
        seen["prefix"] = failure(lambda: prefixed.messages.batches.list())[:3]
    seen["async"] = asyncio.run(
        drive_async(anthropic.AsyncAnthropic(api_key="sk-test", base_url=url), "async")
    )
    print(json.dumps(seen), flush=True)


main(sys.argv[1])
