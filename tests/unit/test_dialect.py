"""One text of SQL for two databases: what is exchanged, and that nothing else is."""

from __future__ import annotations

import re

import pytest

from batchyard.ledger import dialect

TEXTS = dialect.statements()


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_statement_is_one_that_both_take(name: str) -> None:
    text = TEXTS[name]
    names = set(re.findall(r":(\w+)", text))
    sqlite = dialect.sqlite_statement(text)
    assert set(re.findall(r":(\w+)", sqlite)) == names
    assert "greatest" not in sqlite
    for own_clock in (False, True):
        postgres = dialect.postgres_statement(text, own_clock=own_clock)
        leases = own_clock and bool(names & {"lease_us", "lease_now"})
        expected = names | ({"host_now"} if leases else set())
        assert set(re.findall(r"%\((\w+)\)s", postgres)) == expected
        assert not re.search(r"INDEXED BY|--|/\*|(?<!:):\w", postgres)


def test_only_claims_lock_rows_and_they_skip_those_of_others() -> None:
    locking = {
        n
        for n, t in TEXTS.items()
        if "SKIP LOCKED" in dialect.postgres_statement(t, own_clock=False)
    }
    assert locking == {"claim", "claim_apart", "claim_void"}
    for name in locking:
        assert re.search(r"LIMIT (:limit|1) /\* FOR UPDATE .*SKIP LOCKED \*/\)", TEXTS[name])


def test_a_lease_is_as_far_from_now_in_the_database_as_on_the_host() -> None:
    text = dialect.postgres_statement("SELECT :lease_us, :now, a::bigint", own_clock=True)
    assert text == (
        "SELECT (%(lease_us)s - %(host_now)s + "
        "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint), %(now)s, a::bigint"
    )


def test_times_and_lengths_are_wide_and_counts_are_not() -> None:
    tables = "\n".join(dialect.postgres_schema())
    wide = set(re.findall(r"^\s+(\w+)\s+BIGINT", tables, flags=re.MULTILINE))
    narrow = set(re.findall(r"^\s+(\w+)\s+INTEGER", tables, flags=re.MULTILINE))
    assert {"seq", "off", "len", "crc", "lease_us", "created_us", "until_us"} <= wide
    # A sum of these is an integer of eight bytes; one of wider ones would be no integer any more.
    assert {"n", "inflight", "succeeded", "errored", "canceled", "expired", "requests"} <= narrow
    assert not re.search(r"STRICT|ROWID|BLOB|AUTOINCREMENT|TEXT(?! COLLATE)", tables)
