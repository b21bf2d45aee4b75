"""Every bound of the system, with its unit and its source.

Knows numbers only. A bound that a user can meet is named in the error that reports it.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
DAY_US = 24 * HOUR_US

# The wire. Source: api-reference of the Message Batches API, create and list.
BATCH_REQUESTS_MAX = 100_000
BATCH_BODY_BYTES_MAX = 256 * MIB  # the documents say "256 MB"; the larger reading refuses less
MESSAGE_BODY_BYTES_MAX = 32 * MIB
CUSTOM_ID_CHARS_MAX = 64
LIST_LIMIT_DEFAULT = 20
LIST_LIMIT_MAX = 1_000
MODEL_CHARS_MAX = 256
MESSAGES_MAX = 100_000

# Lifetimes, counted from the creation of the batch. Source: the batch processing guide.
PROCESSING_WINDOW_US = 24 * HOUR_US
RETENTION_US = 29 * DAY_US

# Polling. Source: observed on the hosted API, on an unfinished retrieve.
RETRIEVE_RETRY_AFTER_S = 10

# Requests to the yard: the head, the pace of a body, the connections.
HEAD_BYTES_MAX = 16 * KIB
HEAD_FIELDS_MAX = 100
URL_BYTES_MAX = 8 * KIB
HEAD_TIMEOUT_S = 10.0  # from the opening of a connection, or the first byte after an answer
UNREAD_TIMEOUT_S = 10.0  # for the rest of a body that nobody wants, after the answer
BODY_RATE_MIN = 1_000  # bytes per second of waiting for a body, over each window of
BODY_WINDOW_S = 30.0
CONNECTIONS_MAX = 10_000  # fewer where descriptors are short
FULL_RETRY_AFTER_S = 5

# The JSON of `params`. A value costs up to 100 bytes while it is checked.
PARAMS_DEPTH_MAX = 100
PARAMS_VALUES_MAX = 1_000_000

# Requests to the yard: what they say.
BETA_VALUES_MAX = 32
BETA_VALUE_CHARS_MAX = 128
CREDENTIAL_CHARS_MAX = 512
DRY_RUN_PROBLEMS_MAX = 1_000
REQUESTS_PER_MINUTE_DEFAULT = 60_000  # calls of a workspace to all batch endpoints
QUEUED_REQUESTS_DEFAULT = 10_000_000  # of a workspace, in batches that have not ended
QUEUE_FULL_RETRY_AFTER_S = 60
IDEMPOTENCY_KEY_CHARS_MAX = 256
IDEMPOTENCY_WINDOW_US = 24 * HOUR_US
SDK_RETRY_WINDOW_US = HOUR_US
DELETED_CURSOR_WINDOW_US = 24 * HOUR_US  # a deleted batch is a cursor of the list this long

# Shards: the unit of claiming and committing. A claim and a commit cost about a millisecond each,
# so that 500 requests make them disappear; one row each keeps the ledger small.
SHARD_REQUESTS = 500
SHARD_BYTES_MAX = 4 * MIB
BATCH_SHARDS_MAX = 1_000
BATCH_POOLS_MAX = 32  # models beyond these share one pool of their upstream

# The run. If a batch expires, no more than this is left over at once.
RUN_BATCH_REQUESTS_DEFAULT = 10_000

# The worker.
POOL_SLOTS_DEFAULT = 64
CALLS_MAX = 20_000  # in flight over all pools of a process; fewer where descriptors are short
DESCRIPTORS_SPARE = 256  # for the store, clients and logs
LEASE_US = 30 * SECOND_US
RENEW_INTERVAL_S = 1.0
FLUSH_INTERVAL_S = 0.005  # a result line is written about this long after its answer
DISK_RESERVE_BYTES_DEFAULT = 512 * MIB  # new batches leave this much free
BALLAST_BYTES = 64 * MIB
DISK_FULL_RETRY_AFTER_S = 60
DISK_FULL_WAIT_S = 1.0  # between two tries on a full disk
SYNC_INTERVAL_S = 1.0  # and survives a power cut this long after
IDLE_POLL_S = 1.0
KEEPER_INTERVAL_S = 60.0
UNWRITTEN_BYTES_MAX = 64 * MIB  # the pools pause above this much that the disk has not taken
DRAIN_GRACE_S = 60.0  # calls in flight at cancel, expiry and shutdown get this long
ATTEMPTS_MAX = 8
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
RETRY_AFTER_CAP_S = 900.0
UPSTREAM_PAUSE_S = 30.0  # after 401, 402 or 403
UPSTREAM_REPLY_BYTES_MAX = 64 * MIB
UPSTREAM_CONNECT_TIMEOUT_S = 10.0
UPSTREAM_TIMEOUT_S = 3_600.0

# The store.
DISK_CHUNK_BYTES = 256 * KIB

assert BATCH_REQUESTS_MAX <= SHARD_REQUESTS * BATCH_SHARDS_MAX
assert PROCESSING_WINDOW_US < RETENTION_US
assert RENEW_INTERVAL_S * SECOND_US * 5 <= LEASE_US
assert LIST_LIMIT_DEFAULT <= LIST_LIMIT_MAX
