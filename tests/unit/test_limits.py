"""The bounds that the API documents, and how they hang together."""

from __future__ import annotations

from batchyard import limits


def test_documented_bounds() -> None:
    assert limits.BATCH_REQUESTS_MAX == 100_000
    assert limits.BATCH_BODY_BYTES_MAX == 256 * 1024 * 1024
    assert limits.MESSAGE_BODY_BYTES_MAX == 32 * 1024 * 1024
    assert limits.CUSTOM_ID_CHARS_MAX == 64
    assert (limits.LIST_LIMIT_DEFAULT, limits.LIST_LIMIT_MAX) == (20, 1_000)
    assert limits.PROCESSING_WINDOW_US == 24 * 3_600 * 1_000_000
    assert limits.RETENTION_US == 29 * 24 * 3_600 * 1_000_000
    assert limits.RETRIEVE_RETRY_AFTER_S == 10
    assert limits.IDEMPOTENCY_WINDOW_US == 24 * limits.HOUR_US
    assert limits.SDK_RETRY_WINDOW_US == limits.HOUR_US


def test_a_lease_outlives_several_missed_renewals() -> None:
    for interval_s in (limits.RENEW_INTERVAL_S, limits.SHARED_RENEW_INTERVAL_S):
        assert 5 * interval_s * limits.SECOND_US <= limits.LEASE_US


def test_a_line_is_written_before_it_is_synced_before_the_lease_is_over() -> None:
    lease_s = limits.LEASE_US / limits.SECOND_US
    assert limits.FLUSH_INTERVAL_S < limits.SYNC_INTERVAL_S < lease_s


def test_a_call_ends_before_its_batch_expires() -> None:
    window_s = limits.PROCESSING_WINDOW_US / limits.SECOND_US
    assert limits.UPSTREAM_CONNECT_TIMEOUT_S < limits.UPSTREAM_TIMEOUT_S < window_s
    assert window_s > limits.RETRY_AFTER_CAP_S
    assert limits.BACKOFF_BASE_S < limits.BACKOFF_CAP_S < limits.RETRY_AFTER_CAP_S


def test_a_full_batch_fits_its_shards() -> None:
    assert limits.BATCH_REQUESTS_MAX / limits.SHARD_REQUESTS <= limits.BATCH_SHARDS_MAX
    assert limits.BATCH_BODY_BYTES_MAX / limits.SHARD_BYTES_MAX <= limits.BATCH_SHARDS_MAX
