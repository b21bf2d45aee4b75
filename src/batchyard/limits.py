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
DESCRIPTOR_WAIT_S = 0.1  # where there is none: until the next try
DESCRIPTOR_TRIES = 600
LEASE_US = 30 * SECOND_US
RENEW_INTERVAL_S = 1.0
FLUSH_INTERVAL_S = 0.005  # a result line is written about this long after its answer
DISK_RESERVE_BYTES_DEFAULT = 512 * MIB  # new batches leave this much free
BALLAST_BYTES = 64 * MIB
DISK_FULL_RETRY_AFTER_S = 60
DISK_FULL_WAIT_S = 1.0  # between two tries on a full disk
SYNC_INTERVAL_S = 1.0  # and survives a power cut this long after
IDLE_POLL_S = 1.0
NEWS_AGE_MAX = 3.0  # times the interval at which a worker looks for cancels of other processes
SLOTS_TURN_US = 5 * SECOND_US  # slots that cannot be divided go round among the workers
LEARNED_KEPT_US = 600 * SECOND_US  # for the next worker, after the last one of a pool has left it
SLOTS_DIVIDED_MIN = 32  # fewer slots are all of one worker: parts would be too small to learn from
FAILURES_TO_SET_APART = 3  # then a shard is claimed one at a time with other such ones
SETTLING_S = 5.0  # so long a worker has to live before it takes up one of those
PROBATION_S = 30.0  # after so long without harm, the next one is
FAILURES_TO_GIVE_UP = 8  # in a row without a result, before the request sent alone is given up
FAILURES_MAX = 13  # before the rest of the shard is
DAMAGES_MAX = 5  # attempts at a shard whose results were damaged, before the rest is given up
ACCOUNTS_KEPT_US = 2 * DAY_US  # since a worker told of them; no batch works for longer
ACCOUNT_CHARS_MAX = 4_096  # of one worker, of one batch
WORKERS_MAX = 64
WORKER_SILENT_S = 30.0  # a worker process that gives no sign of life for so long is ended
WORKER_RESTART_S = 0.5  # before a worker that died is started again; doubles each time
WORKER_RESTART_MAX_S = 30.0
NEWS_POLL_S = 0.1  # how often a worker process looks for new and canceled batches
CLAIM_AHEAD_S = 0.25  # of work that is claimed at once where answers come quickly
OPEN_BYTES_MAX = 64 * MIB  # of requests; above it only pools that run dry open another shard
ENDS_AT_ONCE = 16  # batches that end in one transaction
FRESH_PER_ROUND = 16  # batches that a pool begins in one transaction
KEEPER_INTERVAL_S = 60.0
UNWRITTEN_BYTES_MAX = 64 * MIB  # the pools pause above this much that the disk has not taken
DRAIN_GRACE_S = 60.0  # calls in flight at cancel, expiry and shutdown get this long
ATTEMPTS_MAX = 8
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
RETRY_AFTER_CAP_S = 900.0
UPSTREAM_PAUSE_S = 30.0  # after 401, 402 or 403
WINDOW_FIRST = 16  # calls in flight that a pool begins with, of which nothing is known
WINDOW_START = 64  # up to here it doubles in tenths of a second
BREAKER_FAILURES = 16  # in a row, before all calls of a pool stop
BREAKER_BASE_S = 1.0  # until a single call probes; doubles while the probes fail
BREAKER_CAP_S = 30.0
UPSTREAM_REPLY_BYTES_MAX = 64 * MIB
UPSTREAM_HEAD_BYTES_MAX = 64 * KIB
UPSTREAM_CONNECT_TIMEOUT_S = 10.0
UPSTREAM_IDLE_CONNECTION_S = 4.0  # many servers close after five; a call must not meet that
UPSTREAM_STALE_S = 1.0  # a used connection that closes sooner had been given up before the call
UPSTREAM_TIMEOUT_S = 3_600.0

# Prompt caches. An upstream that does not stream begins to answer when it has the whole answer;
# the prompt was read long before that.
PRIMER_ANSWER_S = 30.0  # the rest of a group waits no longer for a primer that was sent
CACHE_LAPSE_MARGIN_S = 10.0  # a request sent so shortly before an entry lapses may come too late
PRIMED_PREFIXES_MAX = 20_000  # known for each pool
PARKED_BYTES_MAX = 64 * MIB  # a pool claims no more while so much waits for primers

# Streamed answers. Official clients make no plain call of more than 8,192 tokens to some models,
# and to none one that may take ten minutes: what is silent for so long, somebody in between cuts.
STREAM_ABOVE_TOKENS = 8_192
UPSTREAM_STREAM_TIMEOUT_S = 6 * 3_600.0  # 300,000 tokens at 14 a second
UPSTREAM_FIRST_BYTE_TIMEOUT_S = 600.0
UPSTREAM_IDLE_TIMEOUT_S = 300.0
UPSTREAM_STREAM_BYTES_MAX = 1_024 * MIB  # an event of 100 bytes may bring one character
UPSTREAM_BLOCKS_MAX = 10_000

# New objects before Python looks for cycles. Every call in flight is a live task; to look through
# thousands of them as often as it does by itself (700) took an eighth of all time.
GC_THRESHOLD = 20_000

# The store.
DISK_CHUNK_BYTES = 256 * KIB
SPOOL_PIECE_BYTES = MIB  # of a body that arrives: what is written and checked in one go
ARRIVING_BYTES_MAX = 8 * MIB  # of one request that is split off while the body arrives
SETTLE_BYTES = 32 * MIB  # of a large segment: begin to sync before it is whole
LEDGER_AWAY_WAIT_S = 10.0  # a client waits no longer for a database that is away
LEDGER_AWAY_RETRY_AFTER_S = 5
LEDGER_CONNECT_TIMEOUT_S = 10
LEDGER_IDLE_S = 10.0  # the database ends the transaction of a process that is frozen within it
LEDGER_RECONNECT_S = 0.1  # between two tries to reach it; doubles each time
LEDGER_RECONNECT_MAX_S = 2.0
SHARED_POLL_S = 1.0  # how often, about, a worker looks into a database that others use too
SHARED_RENEW_INTERVAL_S = 5.0  # each shard that is held is a row to write; nothing waits for it
SHARED_KEEPER_INTERVAL_S = 5.0
GIVE_UP_AFTER_US = 120 * SECOND_US  # of a cancel or the expiry: whoever had calls then is done
LEFTOVERS_AGE_US = DAY_US  # no sooner are segments without a batch removed: of a create, perhaps
OBJECTS_SYNC_INTERVAL_S = 5.0  # where each sync of a shard is a call that costs money
OBJECTS_SYNCS_AT_ONCE = 16
OBJECTS_RETRY_S = 180.0  # a call is tried again for so long, then the process ends
OBJECTS_DOUBT_S = 10.0  # a call for one object, until it is asked whether that one alone is refused
OBJECTS_CALL_TIMEOUT_S = 60.0
REFUSED_WAIT_S = 60.0  # until a segment that was refused is asked for again by the same worker
OBJECTS_LOOK_TIMEOUT_S = 10.0  # of a call that only asks whether the store answers

assert BATCH_REQUESTS_MAX <= SHARD_REQUESTS * BATCH_SHARDS_MAX
assert PROCESSING_WINDOW_US < RETENTION_US
assert RENEW_INTERVAL_S * SECOND_US * 5 <= LEASE_US
assert SHARED_RENEW_INTERVAL_S * SECOND_US * 5 <= LEASE_US
assert LIST_LIMIT_DEFAULT <= LIST_LIMIT_MAX
