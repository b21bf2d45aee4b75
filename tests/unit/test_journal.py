"""The journal of a run: a fold over events."""

from pathlib import Path

import pytest

from batchyard.client import durable, journal
from batchyard.client.journal import (
    Collected,
    Config,
    Created,
    Disowned,
    Downloaded,
    Ended,
    Finished,
    Intent,
    Left,
    NotCreated,
    Phase,
    PlannedShard,
    Started,
    Withdrawn,
)  # fmt: skip
from batchyard.client.problems import JournalError

CONFIG = Config(
    model="m", max_tokens=1, prompt="p.j2", prompt_sha256="0", shard_requests=10,
    base_url="http://localhost",
)  # fmt: skip
SHARDS = (PlannedShard(requests=3, bytes=10, sha256="a"),) * 2
START = Started(at=1, run="r", config=CONFIG, shards=SHARDS)
INTENT = Intent(at=2, shard=0, generation=0, key="k")
CREATED = Created(at=3, shard=0, batch="b0")
ENDED = Ended(at=4, shard=0, counts={"succeeded": 3}, billing="batch")
DOWNLOADED = Downloaded(at=5, shard=0, bytes=7)
COLLECTED = Collected(at=6, shard=0)


def phases(*events: journal.Event) -> list[Phase]:
    return [shard.phase for shard in journal.fold(events).shards]


def test_a_shard_goes_its_way_and_the_others_stay():
    events = [START, INTENT, CREATED, ENDED, DOWNLOADED, COLLECTED]

    seen = [phases(*events[:n])[0] for n in range(1, 7)]

    assert seen == ["planned", "intended", "created", "ended", "downloaded", "collected"]
    assert phases(*events)[1] is Phase.PLANNED


def test_a_new_intent_after_certain_failure_is_a_new_generation():
    state = journal.fold([START, INTENT, NotCreated(shard=0, reason="refused")])

    assert state.shards[0].phase is Phase.PLANNED
    assert state.shards[0].generation == 1
    assert state.nothing_sent


def test_a_repeated_intent_keeps_the_time_of_the_first():
    state = journal.fold([START, INTENT, Intent(at=99, shard=0, generation=0, key="k")])

    assert state.shards[0].intent_us == 2


def test_a_disowned_batch_stays_known_and_the_intent_open():
    state = journal.fold([START, INTENT, CREATED, ENDED, DOWNLOADED,
                          Disowned(shard=0, batch="b0")])  # fmt: skip

    assert state.shards[0].phase is Phase.INTENDED
    assert state.batches == {"b0"}
    assert not state.nothing_sent


def test_a_withdrawn_shard_is_collected_without_being_sent():
    assert phases(START, Withdrawn(shard=1), Collected(shard=1))[1] is Phase.COLLECTED


@pytest.mark.parametrize(
    "events",
    [
        [INTENT],
        [START, START],
        [START, CREATED],
        [START, INTENT, CREATED, INTENT],
        [START, INTENT, Withdrawn(shard=0)],
        [START, INTENT, CREATED, COLLECTED],
        [START, Intent(shard=2, generation=0, key="k")],
        [Started(run="r", config=CONFIG, shards=SHARDS, format=2)],
    ],
)
def test_an_event_that_cannot_follow_is_refused(events: list[journal.Event]):
    with pytest.raises(JournalError):
        journal.fold(events)


@pytest.mark.parametrize(
    "event",
    [START, INTENT, CREATED, ENDED, DOWNLOADED, COLLECTED, Finished(at=1), Left(at=2),
     NotCreated(shard=0, reason="x"), Disowned(shard=0, batch="b"), Withdrawn(shard=1)],
)  # fmt: skip
def test_every_event_survives_its_line(event: journal.Event):
    assert journal.decode(journal.encode(event), 1) == event


def test_an_event_of_a_later_version_is_passed_over():
    lines = [journal.encode(START), b'{"event":"moved","to":"x"}', journal.encode(INTENT)]

    assert journal.read(lines).shards[0].phase is Phase.INTENDED


def test_a_damaged_line_is_named():
    with pytest.raises(JournalError, match=r"journal\.jsonl:2: not an event"):
        journal.read([journal.encode(START), b'{"event":"intent","shard":"x"}'])


def test_a_torn_last_line_never_happened_and_is_overwritten(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal.encode(START) + b"\n" + journal.encode(INTENT)[:20])

    assert journal.read(durable.whole_lines(path)).shards[0].phase is Phase.PLANNED
    log = durable.Log(path)
    log.append(journal.encode(INTENT))
    log.close()

    assert journal.read(durable.whole_lines(path)).shards[0].phase is Phase.INTENDED


def test_a_file_is_whole_or_as_before(tmp_path: Path):
    path = tmp_path / "f"
    durable.write(path, [b"old"])

    def failing():
        yield b"new"
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        durable.write(path, failing())

    assert path.read_bytes() == b"old"
