"""Keys and contents stay where they belong: canaries, and a look at everything that was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers_yard import BATCHES, HEADERS, QUICK, Yard, request

if TYPE_CHECKING:
    from pathlib import Path

    from helpers_upstream import Upstream

UPSTREAM_KEY = "sk-up-canary-Ab12Cd34"
CLIENT_KEY = "sk-client-canary-Ef56Gh78"
CONTENT = "canary-content-Ij90"


def exercise(yard: Yard) -> None:
    """Make every kind of call, right and wrong, with the canaries in it."""
    headers = HEADERS | {"x-api-key": CLIENT_KEY}
    prompts = (
        f"private-1 {CONTENT}",
        f"private-2 {CONTENT}|500,message",
        f"private-3 {CONTENT}|400",
        f"private-4 {CONTENT}|401,message",
    )
    requests = [request(prompt, f"r{n}") for n, prompt in enumerate(prompts)]
    requests.append(request(CONTENT, "bad", stream=True))
    answer = yard.post(BATCHES, {"requests": requests}, headers)
    assert answer.status == 200
    yard.wait_ended(answer.json()["id"])
    assert CONTENT in str(yard.results(answer.json()["id"])), "the canary was really there"
    twice = {"requests": [request(CONTENT, "a"), request(CONTENT, "a")]}
    wrong = (
        ("POST", BATCHES, f'{{"requests": "{CONTENT}"}}'.encode()),
        ("POST", BATCHES, b'{"requests":[{"custom_id":"a","params":{"x":"' + CONTENT.encode()),
        ("POST", "/v1/messages", CONTENT.encode()),
    )
    for method, path, body in wrong:
        answer = yard.request(method, path, body, headers)
        assert answer.status == 400
        assert CONTENT.encode() not in answer.body
        assert CLIENT_KEY.encode() not in answer.body
    assert yard.post(BATCHES, twice, headers).status == 400
    for path in (f"{BATCHES}/{CONTENT}", f"/v1/{CONTENT}"):
        yard.request("GET", path, headers=headers)
    both = headers | {"authorization": "Bearer another"}
    refused = yard.request("GET", BATCHES, headers=both)
    assert refused.status == 401
    assert CLIENT_KEY.encode() not in refused.body


def test_no_key_and_no_content_is_found_where_it_does_not_belong(
    upstream: Upstream, tmp_path: Path
) -> None:
    environment = {"BATCHYARD_UPSTREAM_UP_KEY": UPSTREAM_KEY}
    yard = Yard(tmp_path / "data", upstream.url, bounds=QUICK, environment=environment)
    with yard:
        exercise(yard)
        assert yard.stop() == 0
    private = [call for call in upstream.calls if "private-" in call.prompt]
    assert {call.headers["x-api-key"] for call in private} == {UPSTREAM_KEY}
    assert CLIENT_KEY not in str([call.headers for call in upstream.calls])

    log = yard.read_log()
    assert log
    for canary in (UPSTREAM_KEY, CLIENT_KEY):
        assert canary not in log
    assert "private-" not in log, "no content of a body"
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert UPSTREAM_KEY.encode() not in data, path
            assert CLIENT_KEY.encode() not in data, path
            if "segments" not in path.parts:
                assert CONTENT.encode() not in data, path
