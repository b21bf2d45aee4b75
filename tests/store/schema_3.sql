-- The ledger, in the words of SQLite (for PostgreSQL see `dialect.py`): which batches there are, who
-- works on which shard, and which bytes of which segments are the result. There is no row per
-- request: see ARCHITECTURE.md, "The one idea".
-- All times are microseconds since 1970, UTC.

CREATE TABLE batches (
  seq         INTEGER PRIMARY KEY AUTOINCREMENT, -- order of creation; never reused
  id          TEXT NOT NULL UNIQUE,
  workspace   TEXT NOT NULL,
  requests    INTEGER NOT NULL,
  version     TEXT NOT NULL,                     -- anthropic-version of the create call
  betas       TEXT NOT NULL,                     -- anthropic-beta of the create call, comma list
  billing     TEXT NOT NULL,                     -- what its calls cost: standard, batch, simulated
  created_us  INTEGER NOT NULL,
  expires_us  INTEGER NOT NULL,
  cancel_us   INTEGER,
  ended_us    INTEGER,
  archived_us INTEGER,
  succeeded   INTEGER NOT NULL DEFAULT 0,        -- the four counts and the tokens are set at the end
  errored     INTEGER NOT NULL DEFAULT 0,
  canceled    INTEGER NOT NULL DEFAULT 0,
  expired     INTEGER NOT NULL DEFAULT 0,
  tokens      TEXT NOT NULL DEFAULT '[0,0,0,0]', -- input, output, cache write, cache read
  user_profile TEXT,                             -- anthropic-user-profile-id of the create call
  priority    INTEGER NOT NULL DEFAULT 1         -- 0 low, 1 normal, 2 high
) STRICT;

CREATE INDEX batches_of_workspace ON batches (workspace, seq);
CREATE INDEX batches_open ON batches (expires_us) WHERE ended_us IS NULL;
CREATE INDEX batches_canceling ON batches (id) WHERE cancel_us IS NOT NULL AND ended_us IS NULL;
CREATE INDEX batches_kept ON batches (created_us) WHERE ended_us IS NOT NULL AND archived_us IS NULL;

-- Open work only: the rows of a batch go in the transaction that ends it.
CREATE TABLE shards (
  batch     TEXT NOT NULL,
  idx       INTEGER NOT NULL,
  seq       INTEGER NOT NULL,                    -- of the batch
  workspace TEXT NOT NULL,
  pool      TEXT NOT NULL,                       -- upstream and model
  off       INTEGER NOT NULL,                    -- byte range in the requests segment
  len       INTEGER NOT NULL,
  n         INTEGER NOT NULL,
  state     INTEGER NOT NULL DEFAULT 0,          -- 0 ready, 1 running, 2 done
  attempt   INTEGER NOT NULL DEFAULT 0,          -- the fence: raised by every claim
  owner     TEXT,
  lease_us  INTEGER,
  inflight  INTEGER NOT NULL DEFAULT 0,
  succeeded INTEGER NOT NULL DEFAULT 0,          -- so far while running, exact when done
  errored   INTEGER NOT NULL DEFAULT 0,
  canceled  INTEGER NOT NULL DEFAULT 0,
  expired   INTEGER NOT NULL DEFAULT 0,
  tokens    TEXT NOT NULL DEFAULT '[0,0,0,0]',
  manifest  TEXT NOT NULL DEFAULT '[]',          -- [[segment, length, [crc, ...]], ...]: the result,
                                                 -- or what an attempt adopted
  crc       INTEGER,                             -- CRC-32 of the byte range
  priority  INTEGER NOT NULL DEFAULT 1,          -- of the batch
  head      INTEGER NOT NULL DEFAULT 0,          -- 1 for the first shard of its batch in its pool
  PRIMARY KEY (batch, idx)
) STRICT, WITHOUT ROWID;

CREATE INDEX shards_ready ON shards (pool, workspace, priority, seq, idx) WHERE state = 0;
CREATE INDEX shards_fresh ON shards (pool, workspace, priority DESC, seq)
  WHERE state = 0 AND head = 1;
CREATE INDEX shards_running ON shards (pool, workspace) WHERE state = 1;

-- Create calls that may be repeated: the first batch is the answer to the repeat.
CREATE TABLE creates (
  workspace TEXT NOT NULL,
  key       TEXT NOT NULL,
  digest    BLOB NOT NULL,                       -- SHA-256 of what was asked for
  batch     TEXT NOT NULL,
  until_us  INTEGER NOT NULL,
  PRIMARY KEY (workspace, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX creates_until ON creates (until_us);
CREATE INDEX creates_of_batch ON creates (batch);

-- Where a deleted batch stood in the list: a client that deletes while it pages goes on from there.
CREATE TABLE deleted (
  workspace  TEXT NOT NULL,
  id         TEXT NOT NULL,
  seq        INTEGER NOT NULL,                   -- of the batch
  deleted_us INTEGER NOT NULL,
  PRIMARY KEY (workspace, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX deleted_since ON deleted (deleted_us);

-- How the slots of each pool are divided among the workers that have work there, where there are
-- several. The sum of `slots` over a pool is never more than the pool has.
CREATE TABLE shares (
  pool     TEXT NOT NULL,
  owner    TEXT NOT NULL,
  slots    INTEGER NOT NULL,                     -- those that it may fill, or still fills
  lease_us INTEGER NOT NULL,
  note     TEXT,                                 -- why its requests wait, if they do
  PRIMARY KEY (pool, owner)
) STRICT, WITHOUT ROWID;
