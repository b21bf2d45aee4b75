"""Drive a server with whatever official client this interpreter has; print what was seen as JSON.

    PYTHON driver.py lifecycle URL          the whole life cycle; expects the scripted upstream
    PYTHON driver.py faults URL COUNTS      each call fails as often as COUNTS says, then works
    PYTHON driver.py create URL CUSTOM_ID   one batch, as an application makes it

Run under the interpreters of several generations of the client, see `helpers_clients.py`.
`driver.mjs` is the same for TypeScript and prints the same. Nothing of this package is imported,
and nothing is asserted here.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from typing import Any

import anthropic

DEADLINE_S = 180.0
BETAS = ["output-300k-2026-03-24", "message-batches-2024-09-24", "output-300k-2026-03-24"]


def request(prompt: str) -> dict[str, Any]:
    return {
        "custom_id": prompt.split("|", maxsplit=1)[0],
        "params": {
            "model": "scripted",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": prompt}],
        },
    }


async def settled(value: Any) -> Any:
    """Return what a call of the synchronous or of the asynchronous client gives."""
    return await value if inspect.isawaitable(value) else value


async def everything(value: Any) -> list[Any]:
    """Return all that a stream holds, or all pages of a list."""
    found = await settled(value)
    if hasattr(found, "__aiter__"):
        return [item async for item in found]
    return list(found)


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


async def failure(call: Any) -> list[Any]:
    """Return the class of the error that a call raises, and what the client read of it."""
    try:
        await settled(call())
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


async def wait_ended(batches: Any, batch_id: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while True:
        batch = await settled(batches.retrieve(batch_id))
        if batch.processing_status == "ended":
            return batch
        if time.monotonic() > end:
            raise SystemExit(f"{batch_id} has not ended")
        await asyncio.sleep(0.01)


async def drive(batches: Any, name: str, **extra: Any) -> dict[str, Any]:
    """Take one namespace of one client through its calls."""
    seen: dict[str, Any] = {}
    prompts = [f"{name}-1", f"{name}-2", f"{name}-bad|400"]
    created = await settled(batches.create(requests=[request(p) for p in prompts], **extra))
    seen["created"] = plain(created)
    seen["request id"] = created._request_id
    ended = await wait_ended(batches, created.id)
    seen["ended"] = plain(ended)
    seen["types"] = [type(ended).__name__, type(ended.ended_at).__name__]
    seen["results"] = shown(await everything(batches.results(created.id)))

    held = await settled(
        batches.create(requests=[request(f"{name}-held|hold:{name}"), request(f"{name}-x|429:900")])
    )
    seen["early"] = await failure(lambda: batches.results(held.id))
    seen["early delete"] = await failure(lambda: batches.delete(held.id))
    canceled = await settled(batches.cancel(held.id))
    again = await settled(batches.cancel(held.id))
    seen["canceled"] = [canceled.processing_status, canceled.cancel_initiated_at is not None]
    seen["canceled once"] = again.cancel_initiated_at == canceled.cancel_initiated_at
    print(json.dumps({"open": name}), flush=True)
    await wait_ended(batches, held.id)
    seen["canceled results"] = shown(await everything(batches.results(held.id)))

    made = [
        (await settled(batches.create(requests=[request(f"{name}-page-{n}")]))).id for n in range(5)
    ]
    listed = [batch.id for batch in await everything(batches.list(limit=2))]
    seen["newest first"] = listed[:5] == made[::-1]
    seen["each once"] = len(set(listed)) == len(listed)
    seen["to the end"] = created.id in listed
    newer = [batch.id for batch in await everything(batches.list(limit=2, before_id=made[0]))]
    seen["newer"] = sorted(newer) == sorted(made[1:])
    older = await settled(batches.list(limit=3, after_id=made[4]))
    seen["older"] = [batch.id for batch in older.data] == made[1:4][::-1]
    seen["more"] = [older.has_more, older.first_id == made[3], older.last_id == made[1]]

    raw = await settled(batches.with_raw_response.retrieve(created.id))
    parsed = await settled(raw.parse())
    seen["raw"] = [
        raw.headers["content-type"],
        raw.headers.get("retry-after"),
        parsed.id == created.id,
    ]
    await wait_ended(batches, made[0])
    unchanged = await settled(batches.cancel(made[0]))
    seen["canceled late"] = [unchanged.processing_status, unchanged.cancel_initiated_at]
    deleted = await settled(batches.delete(made[0]))
    seen["deleted"] = [deleted.type, deleted.id == made[0]]
    for call in ("retrieve", "results", "cancel", "delete"):
        seen[f"{call} of the deleted"] = await failure(lambda c=call: getattr(batches, c)(made[0]))
    seen["odd id"] = await failure(lambda: batches.retrieve("msgbatch 1+2"))
    return seen


async def errors(url: str, client: Any) -> dict[str, Any]:
    """Meet what a server refuses by itself."""
    batches = client.messages.batches
    good = [request("errors-1")]
    keyed = {"idempotency-key": "k"}
    bad_version = anthropic.Anthropic(
        api_key="k", base_url=url, default_headers={"anthropic-version": "1999-01-01"}
    )
    # Its own key stands in the one header, another in the other.
    other_key = (
        {"authorization": "Bearer two"} if anthropic.__version__ < "1" else {"x-api-key": "two"}
    )
    two_keys = anthropic.Anthropic(
        api_key="one", base_url=url, max_retries=0, default_headers=other_key
    )
    browser = anthropic.Anthropic(
        api_key="k", base_url=url, default_headers={"origin": "http://evil.example"}
    )
    unknown = "/_stainless_unknown_path"
    cases = {
        "empty": lambda: batches.create(requests=[]),
        "custom id": lambda: batches.create(requests=[{**request("x"), "custom_id": "a b"}]),
        "twice": lambda: batches.create(requests=good * 2),
        "unknown": lambda: batches.retrieve("msgbatch_unknown"),
        "unknown results": lambda: batches.results("msgbatch_unknown"),
        "unknown cancel": lambda: batches.cancel("msgbatch_unknown"),
        "unknown delete": lambda: batches.delete("msgbatch_unknown"),
        "unknown path": lambda: client.get(unknown, cast_to=object),
        "unknown path, POST": lambda: client.post(unknown, cast_to=object, body={}),
        "unknown path, DELETE": lambda: client.delete(f"{unknown}?limit=1", cast_to=object),
        "version": lambda: bad_version.messages.batches.list(),
        "key": lambda: two_keys.messages.batches.list(),
        "origin": lambda: browser.messages.batches.create(requests=good),
        "limit": lambda: batches.list(limit=1001),
        "conflict": lambda: [
            batches.create(requests=good, extra_headers=keyed),
            batches.create(requests=[request("errors-2")], extra_headers=keyed),
        ],
        "too large": lambda: batches.create(requests=[request("errors-3" + "x" * 3_000_000)]),
    }
    seen = {name: await failure(call) for name, call in cases.items()}
    for other in (bad_version, two_keys, browser):
        other.close()
    return seen


async def messages(client: Any) -> dict[str, Any]:
    body = request("sync-1")["params"]
    message = client.messages.create(**body)
    refused = await failure(lambda: client.messages.create(**request("sync-2|404")["params"]))
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


async def lifecycle(url: str) -> None:
    seen: dict[str, Any] = {"version": anthropic.__version__, "lives": {}}
    with anthropic.Anthropic(api_key="sk-test", base_url=url) as client:
        async with anthropic.AsyncAnthropic(api_key="sk-test", base_url=url) as asynchronous:
            for name, space, extra in (
                ("ga", client.messages, {}),
                ("beta", client.beta.messages, {"betas": BETAS}),
                ("async-ga", asynchronous.messages, {}),
                ("async-beta", asynchronous.beta.messages, {"betas": BETAS}),
            ):
                seen["lives"][name] = await drive(space.batches, name, **extra)
        # The same id, spelled otherwise: a server decodes a path before it looks.
        batch_id = seen["lives"]["ga"]["created"]["id"]
        path = f"/v1/messages/batches/{batch_id.replace('_', '%5F')}"
        found: Any = client.get(path, cast_to=object)
        seen["encoded"] = found["id"] == batch_id
        seen["errors"] = await errors(url, client)
        seen["messages"] = await messages(client)
        prefixed = client.with_options(base_url=f"{url}/prefix", max_retries=0)
        seen["prefix"] = (await failure(lambda: prefixed.messages.batches.list()))[:3]
    print(json.dumps(seen), flush=True)


async def faults(url: str, counts: dict[str, int]) -> None:
    """Make each call as often as it fails, in each namespace, and then once more."""
    settings: dict[str, Any] = {"api_key": "sk-test", "base_url": url, "max_retries": 0}
    with anthropic.Anthropic(**settings) as client:
        async with anthropic.AsyncAnthropic(**settings) as asynchronous:
            spaces = {
                "ga": client.messages.batches,
                "beta": client.beta.messages.batches,
                "async-ga": asynchronous.messages.batches,
                "async-beta": asynchronous.beta.messages.batches,
            }
            print(json.dumps(await fail(spaces, counts)), flush=True)


async def fail(spaces: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
    seen: dict[str, Any] = {name: {} for name in spaces}
    made = dict.fromkeys(spaces, "msgbatch_not_made_yet")
    for call, count in counts.items():
        for name, batches in spaces.items():

            def make(call: str = call, name: str = name, batches: Any = batches) -> Any:
                match call:
                    case "create":
                        return batches.create(requests=[request(f"faults-{name}")])
                    case "list":
                        return batches.list(limit=1)
                    case "results":
                        return everything(batches.results(made[name]))
                    case _:
                        return getattr(batches, call)(made[name])

            seen[name][call] = [await failure(make) for _ in range(count)]
        # The faults of this call are used up: now it must work.
        if call == "create":
            for name, batches in spaces.items():
                good = [request(f"good-{n}") for n in range(3)]
                made[name] = (await settled(batches.create(requests=good))).id
        elif call == "retrieve":
            for name, batches in spaces.items():
                await wait_ended(batches, made[name])
    for name, batches in spaces.items():
        listed = [batch.id for batch in await everything(batches.list(limit=100))]
        seen[name]["at last"] = [
            made[name] in listed,
            (await settled(batches.cancel(made[name]))).processing_status,
            sorted(line.custom_id for line in await everything(batches.results(made[name]))),
            (await settled(batches.delete(made[name]))).type,
        ]
    return seen


def create(url: str, custom_id: str) -> None:
    with anthropic.Anthropic(api_key="sk-proxy", base_url=url) as client:
        batch: Any = client.messages.batches.create(requests=[request(custom_id)])  # type: ignore[list-item]
        print(json.dumps({"version": anthropic.__version__, "id": batch.id}), flush=True)


match sys.argv[1:]:
    case ["lifecycle", url]:
        asyncio.run(lifecycle(url))
    case ["faults", url, counts]:
        asyncio.run(faults(url, json.loads(counts)))
    case ["create", url, custom_id]:
        create(url, custom_id)
    case other:
        raise SystemExit(f"unknown: {other}")
