"""How descriptors are shared out: nobody takes what another needs."""

from __future__ import annotations

import resource

import pytest

from batchyard import descriptors, limits


def allowed(patch: pytest.MonkeyPatch, number: int) -> tuple[int, int, int]:
    """Return what there is of each kind where so many may be open."""
    patch.setattr(resource, "getrlimit", lambda _: (number, number))
    return (
        descriptors.calls_max(),
        descriptors.result_files_max(),
        descriptors.connections_max(),
    )


@pytest.mark.parametrize("number", [1_024, 4_096, 20_000, 65_536, 1_048_576])
def test_together_they_are_fewer_than_there_are(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls, files, clients = allowed(monkeypatch, number)
    assert calls + files + 2 * clients <= number - limits.DESCRIPTORS_SPARE // 2
    assert calls > number // 3 or calls == limits.CALLS_MAX


def test_20_000_are_enough_for_10_000_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert allowed(monkeypatch, 20_000)[0] >= 10_000


def test_there_is_always_something(monkeypatch: pytest.MonkeyPatch) -> None:
    assert allowed(monkeypatch, 64) == (1, 1, 12)


@pytest.mark.parametrize("number", [10_000_000, resource.RLIM_INFINITY])
def test_with_enough_of_them_other_bounds_hold(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    most = (limits.CALLS_MAX, limits.CALLS_MAX, limits.CONNECTIONS_MAX)
    assert allowed(monkeypatch, number) == most


def test_all_that_there_are_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, 4_096))
    monkeypatch.setattr(resource, "setrlimit", lambda *args: asked.append(args))
    descriptors.raise_limit()
    assert asked == [(resource.RLIMIT_NOFILE, (4_096, 4_096))]
