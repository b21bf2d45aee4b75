"""What `serve` says of upstreams without a key, before the first request waits for it."""

import logging

import pytest

from batchyard.cli.serve import keyless
from batchyard.server import config as settings


def said(url: str, **environment: str) -> list[tuple[int, str]]:
    loaded = settings.load(file=None, environment=environment, upstreams=[f"my-up={url}"])
    return keyless(loaded)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost:1", "http://vllm:8000", "http://10.0.0.7",
            "http://model.team.svc", "http://[::1]:8000"],
)  # fmt: skip
def test_a_model_of_ones_own_without_a_key_is_a_remark(url: str):
    ((level, text),) = said(url)

    assert level == logging.INFO
    assert text == (
        "upstream my-up has no key, and is called without (BATCHYARD_UPSTREAM_MY_UP_KEY sets one)"
    )


def test_a_service_elsewhere_without_a_key_is_a_warning_that_says_what_happens():
    ((level, text),) = said("https://relay.example.com/api")

    assert level == logging.WARNING
    assert "set BATCHYARD_UPSTREAM_MY_UP_KEY and start again" in text
    assert "relay.example.com will refuse the calls; requests wait meanwhile" in text
    assert "BATCHYARD_UPSTREAM_MY_UP_KEY or ANTHROPIC_API_KEY" in said(
        "https://api.anthropic.com"
    )[0][1]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        ("simulated:", {}),
        ("https://api.anthropic.com", {"ANTHROPIC_API_KEY": "k"}),
        ("https://relay.example.com", {"BATCHYARD_UPSTREAM_MY_UP_KEY": "k"}),
    ],
)
def test_nothing_is_said_where_no_key_is_missing(url: str, environment: dict[str, str]):
    assert said(url, **environment) == []
