-- Every statement of the ledger, by name, for SQLite and PostgreSQL: see `dialect.py`.
-- Parameters are bound, never pasted.

-- name: batch_insert
INSERT INTO batches
  (id, workspace, requests, version, betas, user_profile, billing, priority, created_us, expires_us)
VALUES
  (:id, :workspace, :requests, :version, :betas, :user_profile, :billing, :priority, :created_us,
   :expires_us)
ON CONFLICT (id) DO NOTHING
RETURNING seq

-- name: shard_insert
INSERT INTO shards (batch, idx, seq, workspace, pool, off, len, crc, n, priority, head)
VALUES (:batch, :idx, :seq, :workspace, :pool, :off, :len, :crc, :n, :priority, :head)

-- name: create_find
-- The live create call under this key.
SELECT digest, batch FROM creates
WHERE workspace = :workspace AND key = :key AND until_us > :now

-- name: create_put
-- Remembers a call, unless a live one under this key is to stand.
INSERT INTO creates (workspace, key, digest, batch, until_us)
VALUES (:workspace, :key, :digest, :batch, :until_us)
ON CONFLICT (workspace, key) DO UPDATE
SET digest = excluded.digest, batch = excluded.batch, until_us = excluded.until_us
WHERE :replaces = 1 OR creates.until_us <= :now OR creates.batch = excluded.batch

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
UPDATE batches SET cancel_us = greatest(:now, created_us)
WHERE id = :id AND workspace = :workspace AND cancel_us IS NULL AND ended_us IS NULL

-- name: batch_delete
DELETE FROM batches WHERE id = :id AND workspace = :workspace AND ended_us IS NOT NULL
RETURNING seq

-- name: deleted_put
INSERT INTO deleted (workspace, id, seq, deleted_us) VALUES (:workspace, :id, :seq, :now)

-- name: deleted_get
SELECT seq FROM deleted WHERE id = :id AND workspace = :workspace

-- name: deleted_purge
DELETE FROM deleted WHERE deleted_us <= :before

-- name: creates_of_batch_delete
DELETE FROM creates WHERE batch = :batch

-- name: progress
-- What is known of an open batch: the sums over its shards.
SELECT count(*) AS shards,
  coalesce(sum(CASE WHEN state = 2 THEN 1 ELSE 0 END), 0) AS shards_done,
  coalesce(sum(CASE WHEN state = 1 THEN inflight ELSE 0 END), 0) AS inflight,
  coalesce(sum(succeeded), 0) AS succeeded, coalesce(sum(errored), 0) AS errored,
  coalesce(sum(canceled), 0) AS canceled, coalesce(sum(expired), 0) AS expired
FROM shards WHERE batch = :batch

-- name: progress_pools
-- The pools of the shards that are not done, each with its requests that have no result: taken up,
-- of the same shards not taken up, and of shards that nobody works on.
SELECT pool, coalesce(sum(CASE WHEN state = 1 THEN inflight ELSE 0 END), 0) AS inflight,
  coalesce(sum(CASE WHEN state = 1
    THEN n - succeeded - errored - canceled - expired - inflight ELSE 0 END), 0) AS unsent,
  coalesce(sum(CASE WHEN state = 1
    THEN 0 ELSE n - succeeded - errored - canceled - expired END), 0) AS queued
FROM shards WHERE batch = :batch AND state < 2 GROUP BY pool ORDER BY pool

-- name: queued
-- How many requests of a workspace are in batches that have not ended.
SELECT coalesce(sum(requests), 0) AS requests FROM batches INDEXED BY batches_open
WHERE ended_us IS NULL AND workspace = :workspace

-- name: pools_ready
-- Pools with a ready shard, by skipping through the index.
WITH RECURSIVE p(pool) AS (
  SELECT min(pool) FROM shards WHERE state = 0
  UNION ALL
  SELECT (SELECT min(pool) FROM shards WHERE state = 0 AND pool > p.pool)
  FROM p WHERE p.pool IS NOT NULL
)
SELECT pool FROM p WHERE pool IS NOT NULL

-- name: lanes
-- The workspaces that wait in this pool, each with its requests that are taken up and unanswered.
WITH RECURSIVE w(workspace) AS (
  SELECT min(workspace) FROM shards WHERE state = 0 AND pool = :pool
  UNION ALL
  SELECT (SELECT min(workspace) FROM shards
          WHERE state = 0 AND pool = :pool AND workspace > w.workspace)
  FROM w WHERE w.workspace IS NOT NULL
)
SELECT workspace FROM w WHERE workspace IS NOT NULL

-- name: lanes_fresh
-- The workspaces with a batch that has not begun in this pool.
WITH RECURSIVE w(workspace) AS (
  SELECT min(workspace) FROM shards WHERE state = 0 AND head = 1 AND pool = :pool
  UNION ALL
  SELECT (SELECT min(workspace) FROM shards
          WHERE state = 0 AND head = 1 AND pool = :pool AND workspace > w.workspace)
  FROM w WHERE w.workspace IS NOT NULL
)
SELECT workspace FROM w WHERE workspace IS NOT NULL

-- name: taken_up
-- The requests of each workspace that are taken up in this pool and unanswered.
SELECT workspace, sum(n - succeeded - errored - canceled - expired) AS requests
FROM shards WHERE state = 1 AND pool = :pool GROUP BY workspace

-- name: fresh
-- The batches of a workspace that have not begun in this pool, the next one first.
SELECT priority, seq, n FROM shards
WHERE state = 0 AND head = 1 AND pool = :pool AND workspace = :workspace
ORDER BY priority DESC, seq LIMIT :limit

-- name: begun
-- Of a workspace, the next batch that waits in this pool and is not among some that are open. At one
-- more place than there are of them, at the latest, is one that is not.
WITH RECURSIVE waiting(priority, seq, place) AS (
  VALUES (0, CAST(0 AS BIGINT), 0), (1, 0, 0), (2, 0, 0)
  UNION ALL
  SELECT priority, (
    SELECT min(s.seq) FROM shards AS s
    WHERE s.state = 0 AND s.pool = :pool AND s.workspace = :workspace
      AND s.priority = waiting.priority AND s.seq > waiting.seq), place + 1
  FROM waiting WHERE waiting.seq IS NOT NULL AND place < :places
)
SELECT priority, seq FROM waiting
WHERE place > 0 AND seq IS NOT NULL
  AND CAST(seq AS TEXT) NOT IN (SELECT value FROM json_each(:open))
ORDER BY priority DESC, seq LIMIT 1

-- name: turns
-- Of a workspace and a priority, the 64 batches that wait longest in this pool, and whether each has
-- not begun.
WITH RECURSIVE waiting(seq, place) AS (
  SELECT min(seq), 1 FROM shards
  WHERE state = 0 AND pool = :pool AND workspace = :workspace AND priority = :priority
  UNION ALL
  SELECT (SELECT min(seq) FROM shards
          WHERE state = 0 AND pool = :pool AND workspace = :workspace AND priority = :priority
            AND seq > waiting.seq), place + 1
  FROM waiting WHERE waiting.seq IS NOT NULL AND place < 64
)
SELECT waiting.seq, b.expires_us, EXISTS (
  SELECT 1 FROM shards AS s WHERE s.state = 0 AND s.head = 1 AND s.pool = :pool
    AND s.workspace = :workspace AND s.priority = :priority AND s.seq = waiting.seq) AS is_fresh
FROM waiting JOIN batches AS b ON b.seq = waiting.seq

-- name: running
-- How many shards of each batch of a workspace, of those between two, run in this pool.
SELECT seq, count(*) AS shards FROM shards
WHERE state = 1 AND pool = :pool AND workspace = :workspace AND seq >= :first AND seq <= :last
GROUP BY seq

-- name: is_waiting
SELECT idx FROM shards
WHERE state = 0 AND pool = :pool AND workspace = :workspace AND priority = :priority AND seq = :seq
LIMIT 1

-- name: claim
-- Chosen first and apart: PostgreSQL may look again for each row otherwise, and lock more.
WITH taken(batch, idx) AS (
  SELECT batch, idx FROM shards
  WHERE state = 0 AND pool = :pool AND workspace = :workspace AND priority = :priority
    AND seq = :seq
  ORDER BY idx LIMIT :limit /* FOR UPDATE SKIP LOCKED */)
UPDATE shards SET state = 1, owner = :owner, attempt = attempt + 1, lease_us = :lease_us, inflight = 0,
  at_risk = 1
WHERE (batch, idx) IN (SELECT batch, idx FROM taken)
RETURNING batch, idx, seq, workspace, pool, off, len, crc, n, attempt, manifest, failures

-- name: has_void
-- Whether `claim_void` would find a shard.
SELECT s.batch FROM batches AS b CROSS JOIN shards AS s
WHERE s.batch = b.id AND s.state <= 0 AND b.id IN (
  SELECT id FROM batches WHERE cancel_us IS NOT NULL AND ended_us IS NULL
  UNION ALL
  SELECT id FROM batches WHERE expires_us <= :now AND ended_us IS NULL)
LIMIT 1

-- name: claim_void
-- Ready shards that need no upstream any more: their batch was canceled or has expired.
-- CROSS JOIN keeps the order: from the few open batches to their shards, never over all ready shards.
WITH taken(batch, idx) AS (
  SELECT s.batch, s.idx FROM batches AS b CROSS JOIN shards AS s
  WHERE s.batch = b.id AND s.state <= 0 AND b.id IN (
    SELECT id FROM batches WHERE cancel_us IS NOT NULL AND ended_us IS NULL
    UNION ALL
    SELECT id FROM batches WHERE expires_us <= :now AND ended_us IS NULL)
  LIMIT :limit /* FOR UPDATE OF s SKIP LOCKED */)
UPDATE shards SET state = 1, owner = :owner, attempt = attempt + 1, lease_us = :lease_us, inflight = 0,
  at_risk = 1
WHERE (batch, idx) IN (SELECT batch, idx FROM taken)
RETURNING batch, idx, seq, workspace, pool, off, len, crc, n, attempt, manifest, failures

-- name: apart
-- Pools with shards that may be what ends workers.
SELECT DISTINCT pool FROM shards WHERE state = -1 ORDER BY pool

-- name: claim_apart
-- Of these the one that is least likely to be it.
WITH taken(batch, idx) AS (
  SELECT batch, idx FROM shards WHERE state = -1 AND pool = :pool
  ORDER BY failures, seq, idx LIMIT 1 /* FOR UPDATE SKIP LOCKED */)
UPDATE shards SET state = 1, owner = :owner, attempt = attempt + 1, lease_us = :lease_us, inflight = 0,
  at_risk = 1
WHERE (batch, idx) IN (SELECT batch, idx FROM taken)
RETURNING batch, idx, seq, workspace, pool, off, len, crc, n, attempt, manifest, failures

-- name: newest
-- The place of the newest batch in the list.
SELECT coalesce(max(seq), 0) AS seq FROM batches

-- name: canceling
SELECT id FROM batches WHERE cancel_us IS NOT NULL AND ended_us IS NULL

-- name: batch_of_shard
SELECT requests, version, betas, user_profile, priority, expires_us, cancel_us FROM batches
WHERE id = :batch

-- name: renew
UPDATE shards SET lease_us = :lease_us, inflight = :inflight,
  succeeded = coalesce(:succeeded, succeeded), errored = coalesce(:errored, errored),
  canceled = coalesce(:canceled, canceled), expired = coalesce(:expired, expired), at_risk = :at_risk
WHERE batch = :batch AND idx = :idx AND owner = :owner AND attempt = :attempt AND state = 1

-- name: held
-- What this owner still holds, and whether the batch goes on.
SELECT s.batch, s.idx, s.attempt, b.cancel_us
FROM shards AS s JOIN batches AS b ON b.id = s.batch
WHERE s.batch = :batch AND s.idx = :idx AND s.owner = :owner AND s.attempt = :attempt
  AND s.state = 1

-- name: adopt
-- What earlier attempts have left is progress.
UPDATE shards SET manifest = :manifest,
  failures = CASE WHEN :has_gained = 1 THEN 0 ELSE failures END
WHERE batch = :batch AND idx = :idx AND owner = :owner AND attempt = :attempt AND state = 1

-- name: commit
UPDATE shards SET state = 2, manifest = :manifest, tokens = :tokens, inflight = 0,
  succeeded = :succeeded, errored = :errored, canceled = :canceled, expired = :expired
WHERE batch = :batch AND idx = :idx AND owner = :owner AND attempt = :attempt AND state = 1

-- name: committed
-- Whether a commit whose answer was lost has happened.
SELECT idx FROM shards WHERE batch = :batch AND idx = :idx AND state = 2 AND manifest = :manifest

-- name: cut_of_owner
-- What an owner had in flight that has ended, by its last word: one number for each batch.
INSERT INTO accounts (batch, owner, told_us, told)
SELECT b.id, '', b.created_us, CAST(sum(cut.inflight) AS TEXT)
FROM (SELECT batch, inflight FROM shards
      WHERE owner = :owner AND state = 1 /* FOR UPDATE */) AS cut
JOIN batches AS b ON b.id = cut.batch
WHERE cut.inflight > 0 GROUP BY b.id, b.created_us
ON CONFLICT (batch, owner) DO UPDATE
SET told = CAST(CAST(accounts.told AS INTEGER) + CAST(excluded.told AS INTEGER) AS TEXT)

-- name: cut_late
-- The same, of all that `take_back` frees.
INSERT INTO accounts (batch, owner, told_us, told)
SELECT b.id, '', b.created_us, CAST(sum(cut.inflight) AS TEXT)
FROM (SELECT batch, inflight FROM shards
      WHERE state = 1 AND lease_us < :lease_now AND owner <> :owner /* FOR UPDATE */) AS cut
JOIN batches AS b ON b.id = cut.batch
WHERE cut.inflight > 0 GROUP BY b.id, b.created_us
ON CONFLICT (batch, owner) DO UPDATE
SET told = CAST(CAST(accounts.told AS INTEGER) + CAST(excluded.told AS INTEGER) AS TEXT)

-- name: cut_all
INSERT INTO accounts (batch, owner, told_us, told)
SELECT b.id, '', b.created_us, CAST(sum(cut.inflight) AS TEXT)
FROM (SELECT batch, inflight FROM shards
      WHERE state = 1 /* FOR UPDATE */) AS cut
JOIN batches AS b ON b.id = cut.batch
WHERE cut.inflight > 0 GROUP BY b.id, b.created_us
ON CONFLICT (batch, owner) DO UPDATE
SET told = CAST(CAST(accounts.told AS INTEGER) + CAST(excluded.told AS INTEGER) AS TEXT)

-- name: release
UPDATE shards SET state = CASE WHEN failures >= :apart_from THEN -1 ELSE 0 END, owner = NULL,
  inflight = 0, at_risk = 0
WHERE owner = :owner AND state = 1

-- name: give_back
UPDATE shards SET state = CASE WHEN failures >= :apart_from THEN -1 ELSE 0 END, owner = NULL,
  inflight = 0, at_risk = 0
WHERE batch = :batch AND idx = :idx AND owner = :owner AND attempt = :attempt AND state = 1

-- name: release_dead
-- As `take_back`, of an owner that is known to have ended.
UPDATE shards SET state = CASE WHEN failures + at_risk >= :apart_from THEN -1 ELSE 0 END,
  failures = failures + at_risk, at_risk = 0, owner = NULL, inflight = 0
WHERE owner = :owner AND state = 1

-- name: take_back
-- Shards whose owner, another one, has not renewed in time. Those that have failed often are set
-- apart, so that one that ends workers does not end them while they work on the others.
UPDATE shards SET state = CASE WHEN failures + at_risk >= :apart_from THEN -1 ELSE 0 END,
  failures = failures + at_risk, at_risk = 0, owner = NULL, inflight = 0
WHERE state = 1 AND lease_us < :lease_now AND owner <> :owner

-- name: take_back_all
UPDATE shards SET state = CASE WHEN failures + at_risk >= :apart_from THEN -1 ELSE 0 END,
  failures = failures + at_risk, at_risk = 0, owner = NULL, inflight = 0
WHERE state = 1

-- name: spare
-- The owner ends for a reason that is none of its shards.
UPDATE shards SET at_risk = 0 WHERE owner = :owner AND state = 1

-- name: spare_all
-- All owners ended for a reason that is none of their shards.
UPDATE shards SET at_risk = 0 WHERE state = 1

-- name: absolve
-- A worker that lives has lost this attempt: that it was taken from it is no failure of the shard.
UPDATE shards SET failures = CASE WHEN failures > 0 THEN failures - 1 ELSE 0 END
WHERE batch = :batch AND idx = :idx AND attempt >= :attempt AND state < 2

-- name: shares_of_others
-- What the other workers have of a pool, and what they know of it.
SELECT owner, slots, note, told FROM shares
WHERE pool = :pool AND owner <> :owner AND lease_us >= :lease_now

-- name: share_lock
-- Holds off all others that ask for more of this pool, until this transaction ends.
INSERT INTO shares (pool, owner, slots, lease_us) VALUES (:pool, '', 0, -1)
ON CONFLICT (pool, owner) DO UPDATE SET slots = 0

-- name: share_put
INSERT INTO shares (pool, owner, slots, lease_us, note, told)
VALUES (:pool, :owner, :slots, :lease_us, :note, :told)
ON CONFLICT (pool, owner) DO UPDATE
SET slots = excluded.slots, lease_us = excluded.lease_us, note = excluded.note, told = excluded.told

-- name: share_of_owner
SELECT slots FROM shares WHERE pool = :pool AND owner = :owner AND lease_us >= :lease_now

-- name: shares_of_owner
SELECT pool FROM shares WHERE owner = :owner

-- name: share_hand_on
-- What a worker with slots knew of a pool, or of each for an empty name, is kept for the next one.
INSERT INTO shares (pool, owner, slots, lease_us, told)
SELECT '#known/' || pool, '', 0, lease_us + :kept_us, told FROM shares
WHERE owner = :owner AND (pool = :pool OR :pool = '') AND slots > 0 AND told IS NOT NULL
ORDER BY pool
ON CONFLICT (pool, owner) DO UPDATE SET lease_us = excluded.lease_us, told = excluded.told

-- name: share_known
SELECT told FROM shares
WHERE pool = '#known/' || :pool AND owner = '' AND lease_us >= :lease_now

-- name: share_drop
DELETE FROM shares WHERE pool = :pool AND owner = :owner

-- name: shares_drop
DELETE FROM shares WHERE owner = :owner

-- name: shares_expire
DELETE FROM shares WHERE lease_us < :lease_now AND owner <> :owner

-- name: shares_clear
DELETE FROM shares

-- name: sweep_begin
-- Changes a row when the last sweep is over for a while. Who comes sooner locks nothing.
INSERT INTO shares (pool, owner, slots, lease_us)
SELECT '#sweep', '', 0, :lease_us WHERE NOT EXISTS (
  SELECT 1 FROM shares WHERE pool = '#sweep' AND owner = '' AND lease_us > :lease_now)
ON CONFLICT (pool, owner) DO UPDATE SET lease_us = excluded.lease_us
WHERE shares.lease_us <= :lease_now

-- name: tellings
-- What the workers that live know of their pools, and how long their leases last. What else they
-- divide in the same way has names that begin with a #, as no pool's does.
SELECT pool, owner, slots, note, told, lease_us - :lease_now AS left_us FROM shares
WHERE lease_us >= :lease_now AND substr(pool, 1, 1) <> '#' ORDER BY pool, owner

-- name: account_put
-- Not of a batch that was deleted meanwhile.
INSERT INTO accounts (batch, owner, told_us, told)
SELECT id, :owner, :now, :told FROM batches WHERE id = :batch
ON CONFLICT (batch, owner) DO UPDATE SET told_us = excluded.told_us, told = excluded.told

-- name: accounts_of_batch
SELECT owner, told FROM accounts WHERE batch = :batch ORDER BY told_us, owner

-- name: accounts_of_batch_delete
DELETE FROM accounts WHERE batch = :batch

-- name: accounts_purge
DELETE FROM accounts WHERE told_us <= :before

-- name: finished
-- Batches with all shards done that have not ended yet.
SELECT id FROM batches AS b
WHERE ended_us IS NULL
  AND NOT EXISTS (SELECT 1 FROM shards WHERE batch = b.id AND state < 2)

-- name: is_finished
SELECT id FROM batches
WHERE id = :batch AND ended_us IS NULL
  AND NOT EXISTS (SELECT 1 FROM shards WHERE batch = :batch AND state < 2)

-- name: manifest
SELECT idx, attempt, manifest, tokens FROM shards WHERE batch = :batch ORDER BY idx

-- name: reopen
-- A done shard whose results the disk has damaged; its manifest is what the next attempt adopts.
UPDATE shards SET state = 0, owner = NULL, inflight = 0, tokens = '[0,0,0,0]',
  succeeded = 0, errored = 0, canceled = 0, expired = 0
WHERE batch = :batch AND idx = :idx AND state = 2

-- name: end
-- Not if a shard was taken up again since the manifest was made: that was another one's attempt.
UPDATE batches SET ended_us = greatest(:now, created_us, coalesce(cancel_us, 0)), tokens = :tokens,
  succeeded = (SELECT coalesce(sum(succeeded), 0) FROM shards WHERE batch = :batch),
  errored = (SELECT coalesce(sum(errored), 0) FROM shards WHERE batch = :batch),
  canceled = (SELECT coalesce(sum(canceled), 0) FROM shards WHERE batch = :batch),
  expired = (SELECT coalesce(sum(expired), 0) FROM shards WHERE batch = :batch)
WHERE id = :batch AND ended_us IS NULL
  AND NOT EXISTS (SELECT 1 FROM shards WHERE batch = :batch AND state < 2)
  AND (:attempts < 0
    OR :attempts = (SELECT coalesce(sum(attempt), 0) FROM shards WHERE batch = :batch))
RETURNING requests, succeeded + errored + canceled + expired AS results

-- name: shards_delete
DELETE FROM shards WHERE batch = :batch

-- name: outdated
-- Ended batches whose results have been kept long enough.
SELECT id FROM batches
WHERE ended_us IS NOT NULL AND archived_us IS NULL AND created_us <= :before LIMIT :limit

-- name: archive
UPDATE batches SET archived_us = greatest(:now, ended_us) WHERE id = :id AND ended_us IS NOT NULL AND archived_us IS NULL

-- name: live
-- Those of some batches that own their segments still.
SELECT id FROM batches WHERE archived_us IS NULL AND id IN (SELECT value FROM json_each(:ids))

-- name: backlog_waiting
-- How much of a pool waits to be taken up, counted up to a number of shards.
SELECT count(*) AS shards, coalesce(sum(n), 0) AS requests
FROM (SELECT n FROM shards WHERE state = 0 AND pool = :pool LIMIT :limit) AS waiting

-- name: backlog_apart
-- What waits to be claimed apart: few.
SELECT pool, count(*) AS shards, coalesce(sum(n), 0) AS requests
FROM shards WHERE state = -1 GROUP BY pool ORDER BY pool

-- name: backlog_running
-- What each worker has taken up, by pool.
SELECT owner, pool, count(*) AS shards,
  coalesce(sum(n - succeeded - errored - canceled - expired), 0) AS requests,
  coalesce(sum(inflight), 0) AS inflight
FROM shards WHERE state = 1 GROUP BY owner, pool ORDER BY owner, pool

-- name: left_batch
-- An open batch, for who takes it out.
SELECT cancel_us, expires_us FROM batches WHERE id = :batch AND ended_us IS NULL

-- name: left_shards
-- What of it is not done.
SELECT idx, off, len, crc, n FROM shards WHERE batch = :batch AND state < 2 ORDER BY idx

-- name: left_others
-- Some that have segments: ids are random, so the first are as good as any.
SELECT id FROM batches WHERE archived_us IS NULL AND id <> :batch ORDER BY id LIMIT :limit

-- name: left_forget
-- Of these, all that no worker has calls of.
DELETE FROM shards WHERE batch = :batch AND state < 2 AND inflight = 0

-- name: left_take
DELETE FROM batches WHERE id = :batch AND ended_us IS NULL RETURNING workspace, seq
