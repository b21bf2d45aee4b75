-- Every statement of the ledger, by name. Parameters are bound, never pasted.

-- name: batch_insert
INSERT INTO batches
  (id, workspace, requests, version, betas, user_profile, billing, created_us, expires_us)
VALUES
  (:id, :workspace, :requests, :version, :betas, :user_profile, :billing, :created_us, :expires_us)
RETURNING seq

-- name: shard_insert
INSERT INTO shards (batch, idx, seq, workspace, pool, off, len, crc, n)
VALUES (:batch, :idx, :seq, :workspace, :pool, :off, :len, :crc, :n)

-- name: create_find
-- The live create call under this key.
SELECT digest, batch FROM creates
WHERE workspace = :workspace AND key = :key AND until_us > :now

-- name: create_put
INSERT OR REPLACE INTO creates (workspace, key, digest, batch, until_us)
VALUES (:workspace, :key, :digest, :batch, :until_us)

-- name: creates_purge
DELETE FROM creates WHERE until_us <= :now

-- name: batch_get
SELECT * FROM batches WHERE id = :id AND workspace = :workspace

-- name: batch_seq
-- Where a batch stands in the list, or stood before it was deleted.
SELECT seq FROM batches WHERE id = :id AND workspace = :workspace
UNION ALL
SELECT seq FROM deleted WHERE id = :id AND workspace = :workspace

-- name: batches_newest
SELECT * FROM batches WHERE workspace = :workspace ORDER BY seq DESC LIMIT :limit

-- name: batches_after
-- The page that follows a batch in the list: older ones.
SELECT * FROM batches WHERE workspace = :workspace AND seq < :seq ORDER BY seq DESC LIMIT :limit

-- name: batches_before
-- The page that precedes a batch in the list, nearest first: newer ones.
SELECT * FROM batches WHERE workspace = :workspace AND seq > :seq ORDER BY seq ASC LIMIT :limit

-- name: batch_cancel
UPDATE batches SET cancel_us = max(:now, created_us)
WHERE id = :id AND workspace = :workspace AND cancel_us IS NULL AND ended_us IS NULL

-- name: batch_delete
DELETE FROM batches WHERE id = :id AND workspace = :workspace AND ended_us IS NOT NULL
RETURNING seq

-- name: deleted_put
INSERT INTO deleted (workspace, id, seq, deleted_us) VALUES (:workspace, :id, :seq, :now)

-- name: deleted_purge
DELETE FROM deleted WHERE deleted_us <= :before

-- name: creates_of_batch_delete
DELETE FROM creates WHERE batch = :batch

-- name: progress
-- What is known of an open batch: the sums over its shards.
SELECT count(*) AS shards,
  coalesce(sum(state = 2), 0) AS shards_done,
  coalesce(sum(CASE WHEN state = 1 THEN inflight ELSE 0 END), 0) AS inflight,
  coalesce(sum(succeeded), 0) AS succeeded, coalesce(sum(errored), 0) AS errored,
  coalesce(sum(canceled), 0) AS canceled, coalesce(sum(expired), 0) AS expired
FROM shards WHERE batch = :batch

-- name: progress_pools
SELECT DISTINCT pool FROM shards WHERE batch = :batch AND state < 2

-- name: queued
-- How many requests of a workspace are in batches that have not ended.
SELECT coalesce(sum(requests), 0) FROM batches INDEXED BY batches_open
WHERE ended_us IS NULL AND workspace = :workspace;

-- name: pools_ready
-- Pools with a ready shard, by skipping through the index.
WITH RECURSIVE p(pool) AS (
  SELECT min(pool) FROM shards WHERE state = 0
  UNION ALL
  SELECT (SELECT min(pool) FROM shards WHERE state = 0 AND pool > p.pool)
  FROM p WHERE p.pool IS NOT NULL
)
SELECT pool FROM p WHERE pool IS NOT NULL

-- name: lane
-- The workspace that waits in this pool with the fewest requests in flight.
WITH RECURSIVE w(workspace) AS (
  SELECT min(workspace) FROM shards WHERE state = 0 AND pool = :pool
  UNION ALL
  SELECT (SELECT min(workspace) FROM shards
          WHERE state = 0 AND pool = :pool AND workspace > w.workspace)
  FROM w WHERE w.workspace IS NOT NULL
)
SELECT workspace FROM w WHERE workspace IS NOT NULL
ORDER BY coalesce((
  SELECT sum(n - succeeded - errored - canceled - expired) FROM shards AS s
  WHERE s.state = 1 AND s.pool = :pool AND s.workspace = w.workspace), 0), workspace
LIMIT 1

-- name: turn
-- The batch whose turn it is in a lane: of the 64 that wait longest, the one with the fewest running
-- shards.
WITH RECURSIVE waiting(seq) AS (
  SELECT min(seq) FROM shards WHERE state = 0 AND pool = :pool AND workspace = :workspace
  UNION ALL
  SELECT (SELECT min(seq) FROM shards
          WHERE state = 0 AND pool = :pool AND workspace = :workspace AND seq > waiting.seq)
  FROM waiting WHERE waiting.seq IS NOT NULL LIMIT 64
)
SELECT seq FROM waiting WHERE seq IS NOT NULL
ORDER BY (SELECT count(*) FROM shards AS s
          WHERE s.state = 1 AND s.pool = :pool AND s.workspace = :workspace
            AND s.seq = waiting.seq), seq
LIMIT 1

-- name: claim
UPDATE shards SET state = 1, owner = :owner, attempt = attempt + 1, lease_us = :lease_us, inflight = 0
WHERE (batch, idx) IN (
  SELECT batch, idx FROM shards
  WHERE state = 0 AND pool = :pool AND workspace = :workspace AND seq = :seq
  ORDER BY idx LIMIT :limit)
RETURNING batch, idx, workspace, pool, off, len, crc, n, attempt, manifest

-- name: claim_void
-- Ready shards that need no upstream any more: their batch was canceled or has expired.
-- CROSS JOIN keeps the order: from the few open batches to their shards, never over all ready shards.
UPDATE shards SET state = 1, owner = :owner, attempt = attempt + 1, lease_us = :lease_us, inflight = 0
WHERE (batch, idx) IN (
  SELECT s.batch, s.idx FROM batches AS b CROSS JOIN shards AS s ON s.batch = b.id
  WHERE b.ended_us IS NULL AND (b.cancel_us IS NOT NULL OR b.expires_us <= :now) AND s.state = 0
  LIMIT :limit)
RETURNING batch, idx, workspace, pool, off, len, crc, n, attempt, manifest

-- name: batch_of_shard
SELECT version, betas, user_profile, expires_us, cancel_us FROM batches WHERE id = :batch

-- name: renew
UPDATE shards SET lease_us = :lease_us, inflight = :inflight, succeeded = :succeeded,
  errored = :errored, canceled = :canceled, expired = :expired
WHERE batch = :batch AND idx = :idx AND owner = :owner AND attempt = :attempt AND state = 1

-- name: held
-- What this owner still holds, and whether the batch goes on.
SELECT s.batch, s.idx, s.attempt, b.cancel_us
FROM shards AS s JOIN batches AS b ON b.id = s.batch
WHERE s.batch = :batch AND s.idx = :idx AND s.owner = :owner AND s.attempt = :attempt
  AND s.state = 1

-- name: adopt
UPDATE shards SET manifest = :manifest
WHERE batch = :batch AND idx = :idx AND owner = :owner AND attempt = :attempt AND state = 1

-- name: commit
UPDATE shards SET state = 2, manifest = :manifest, tokens = :tokens, inflight = 0,
  succeeded = :succeeded, errored = :errored, canceled = :canceled, expired = :expired
WHERE batch = :batch AND idx = :idx AND owner = :owner AND attempt = :attempt AND state = 1

-- name: committed
-- Whether a commit whose answer was lost has happened.
SELECT 1 FROM shards WHERE batch = :batch AND idx = :idx AND state = 2 AND manifest = :manifest

-- name: release
UPDATE shards SET state = 0, owner = NULL, inflight = 0 WHERE owner = :owner AND state = 1

-- name: take_back
-- Shards whose owner, another one, has not renewed in time.
UPDATE shards SET state = 0, owner = NULL, inflight = 0
WHERE state = 1 AND lease_us < :now AND owner <> :owner

-- name: take_back_all
UPDATE shards SET state = 0, owner = NULL, inflight = 0 WHERE state = 1

-- name: finished
-- Batches with all shards done that have not ended yet.
SELECT id FROM batches AS b
WHERE ended_us IS NULL
  AND NOT EXISTS (SELECT 1 FROM shards WHERE batch = b.id AND state < 2)

-- name: is_finished
SELECT 1 FROM batches
WHERE id = :batch AND ended_us IS NULL
  AND NOT EXISTS (SELECT 1 FROM shards WHERE batch = :batch AND state < 2)

-- name: manifest
SELECT idx, manifest, tokens FROM shards WHERE batch = :batch ORDER BY idx

-- name: end
UPDATE batches SET ended_us = max(:now, created_us, coalesce(cancel_us, 0)), tokens = :tokens,
  succeeded = (SELECT coalesce(sum(succeeded), 0) FROM shards WHERE batch = :batch),
  errored = (SELECT coalesce(sum(errored), 0) FROM shards WHERE batch = :batch),
  canceled = (SELECT coalesce(sum(canceled), 0) FROM shards WHERE batch = :batch),
  expired = (SELECT coalesce(sum(expired), 0) FROM shards WHERE batch = :batch)
WHERE id = :batch AND ended_us IS NULL
  AND NOT EXISTS (SELECT 1 FROM shards WHERE batch = :batch AND state < 2)
RETURNING requests, succeeded + errored + canceled + expired AS results

-- name: shards_delete
DELETE FROM shards WHERE batch = :batch

-- name: outdated
-- Ended batches whose results have been kept long enough.
SELECT id FROM batches
WHERE ended_us IS NOT NULL AND archived_us IS NULL AND created_us <= :before LIMIT :limit

-- name: archive
UPDATE batches SET archived_us = max(:now, ended_us) WHERE id = :id AND ended_us IS NOT NULL AND archived_us IS NULL

-- name: ids
-- Every batch there is, to tell orphaned segments from owned ones.
SELECT id, archived_us FROM batches
