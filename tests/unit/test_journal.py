"""The journal of a run: a fold over events."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from batchyard.client.problems import JournalError
from batchyard.client.running import durable, folding, journal
from batchyard.client.running.journal import (
    Approved,
    Collected,
    Config,
    Created,
    Disowned,
    Downloaded,
    Duplicate,
    Ended,
    Extended,
    Finished,
    Intent,
    Left,
    NotCreated,
    Phase,
    PlannedShard,
    Started,
    Terms,
    Withdrawn,
)  # fmt: skip

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
    return [shard.phase for shard in folding.fold(events).shards]


def test_a_shard_goes_its_way_and_the_others_stay():
    events = [START, INTENT, CREATED, ENDED, DOWNLOADED, COLLECTED]

    seen = [phases(*events[:n])[0] for n in range(1, 7)]

    assert seen == ["planned", "intended", "created", "ended", "downloaded", "collected"]
    assert phases(*events)[1] is Phase.PLANNED


def test_a_new_intent_after_certain_failure_is_a_new_generation():
    state = folding.fold([START, INTENT, NotCreated(shard=0, reason="refused")])

    assert state.shards[0].phase is Phase.PLANNED
    assert state.shards[0].generation == 1
    assert state.nothing_sent


def test_a_repeated_intent_keeps_the_time_of_the_first():
    state = folding.fold([START, INTENT, Intent(at=99, shard=0, generation=0, key="k")])

    assert state.shards[0].intent_us == 2


def test_a_disowned_batch_stays_known_and_the_intent_open():
    state = folding.fold([START, INTENT, CREATED, ENDED, DOWNLOADED,
                          Disowned(shard=0, batch="b0")])  # fmt: skip

    assert state.shards[0].phase is Phase.INTENDED
    assert state.taken(0) == {"b0"}
    assert not state.nothing_sent


def test_a_batch_that_another_shard_gave_back_may_still_be_ours():
    state = folding.fold([START, INTENT, CREATED, ENDED, DOWNLOADED, Disowned(shard=0, batch="b0"),
                          Intent(at=2, shard=1, generation=0, key="k")])  # fmt: skip

    assert state.taken(1) == set()


def test_a_batch_that_another_shard_adopted_since_our_call_may_be_ours_until_its_results_tell():
    ours = Intent(at=2, shard=1, generation=0, key="k")
    adopted = Created(at=3, shard=0, batch="b0", adopted=True)
    earlier = [START, INTENT, Created(at=1, shard=0, batch="b0", adopted=True), ours]

    assert folding.fold([START, INTENT, ours, adopted]).taken(1) == set()
    assert folding.fold([START, INTENT, ours, CREATED]).taken(1) == {"b0"}
    assert folding.fold(earlier).taken(1) == {"b0"}
    confirmed = [START, INTENT, ours, adopted, ENDED, DOWNLOADED, COLLECTED]
    assert folding.fold(confirmed).taken(1) == {"b0"}


def test_a_withdrawn_shard_is_collected_without_being_sent():
    assert phases(START, Withdrawn(shard=1), Collected(shard=1))[1] is Phase.COLLECTED


def collected(shard: int, **classes: int) -> list[journal.Event]:
    return [
        Intent(shard=shard, generation=0, key="k"), Created(shard=shard, batch=f"b{shard}"),
        Ended(shard=shard, counts={}), Downloaded(shard=shard, bytes=1),
        Collected(shard=shard, classes=classes),
    ]  # fmt: skip


RETRY = Extended(round=1, why="retry", shards=SHARDS[:1], again={"expired": 3})


def test_a_run_that_was_finished_and_grows_is_under_way_again():
    events = [START, *collected(0, succeeded=3), *collected(1, expired=3), Finished(at=9)]

    state = folding.fold([*events, RETRY])

    assert folding.fold(events).finished_us == 9
    assert state.finished_us is None
    assert [(s.index, s.round, s.why, s.phase) for s in state.shards[1:]] == [
        (1, 0, "first", "collected"), (2, 1, "retry", "planned"),
    ]  # fmt: skip


def test_a_document_that_is_sent_again_counts_once_in_the_class_that_it_had_last():
    events = [START, *collected(0, succeeded=3), *collected(1, expired=3)]

    under_way = folding.fold([*events, RETRY])
    over = folding.fold([*events, RETRY, *collected(2, succeeded=2, expired=1)])

    assert folding.fold(events).classes == {"succeeded": 3, "expired": 3}
    assert under_way.classes == {"succeeded": 3}
    assert over.classes == {"succeeded": 5, "expired": 1}
    assert over.documents == 6


def test_a_round_of_several_shards_counts_as_one_one_by_hand_not_and_new_inputs_begin_anew():
    more = Extended(round=1, why="retry", shards=SHARDS)
    cut = Extended(round=1, why="retry", shards=SHARDS, replaces=(2,))
    second = Extended(round=2, why="retry", shards=SHARDS[:1])
    by_hand = Extended(round=3, why="retry", shards=SHARDS[:1], by_hand=True)

    assert folding.fold([START, more, cut]).automatic_rounds == 1
    assert folding.fold([START, more, cut, second]).automatic_rounds == 2
    assert folding.fold([START, more, cut, second, by_hand]).automatic_rounds == 2
    rerun = Extended(round=3, why="rerun", shards=SHARDS[:1], by_hand=True)
    assert folding.fold([START, more, cut, second, rerun]).automatic_rounds == 0


def test_a_shard_that_is_cut_has_its_documents_in_the_pieces_and_is_never_sent():
    cut = Extended(round=0, why="rest", shards=SHARDS, replaces=(1,))

    state = folding.fold([START, cut])

    assert [shard.phase for shard in state.shards] == ["planned", "replaced", "planned", "planned"]
    assert state.nothing_sent
    assert state.documents == 6
    with pytest.raises(JournalError, match="cannot follow"):
        folding.apply(state, Intent(shard=1, generation=0, key="k"))


def test_the_rest_waits_until_the_pilot_was_looked_at():
    shards = (PlannedShard(requests=1, bytes=1, sha256="a", why="pilot"),
              PlannedShard(requests=5, bytes=1, sha256="b", why="rest"))  # fmt: skip
    started = Started(run="r", config=CONFIG, shards=shards, format=2)

    before = folding.fold([started])
    after = folding.fold([started, Approved()])

    assert [before.is_held(shard) for shard in before.shards] == [False, True]
    assert [after.is_held(shard) for shard in after.shards] == [False, False]


def test_a_journal_of_the_first_format_is_read():
    line = (
        b'{"event":"run","at":1,"run":"r","config":{"model":"m","max_tokens":1,"prompt":"p",'
        b'"prompt_sha256":"0","shard_requests":10},"shards":[{"requests":3,"bytes":9,"sha256":"a"}]}'
    )

    state = folding.read([line, b'{"event":"intent","at":2,"shard":0,"generation":0,"key":"k"}'])

    assert (state.shards[0].phase, state.shards[0].round, state.documents) == ("intended", 0, 3)


def test_a_journal_begins_with_its_terms_and_later_ones_count():
    terms = journal.Terms(budget_micros=5, retries=0)
    saving = journal.Saving(formats=("csv",))
    started = Started(run="r", config=CONFIG, shards=SHARDS, terms=terms, saving=saving, format=3)
    later = journal.Terms(at=3, retries=2)

    read = [folding.read(lines) for lines in (
        [journal.encode(started)],
        [journal.encode(started), journal.encode(later)],
        [journal.encode(structs.replace(started, terms=None, saving=None, format=2)),
         journal.encode(terms), journal.encode(saving)],
    )]  # fmt: skip

    assert [state.terms for state in read] == [terms, later, terms]
    assert [state.saving for state in read] == [saving] * 3


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
        [Started(run="r", config=CONFIG, shards=SHARDS, format=journal.FORMAT + 1)],
        [Extended(round=1, why="retry", shards=SHARDS)],
        [START, INTENT, Extended(round=0, why="rest", shards=SHARDS, replaces=(0,))],
        [START, Extended(round=0, why="rest", shards=SHARDS, replaces=(2,))],
        [START, Duplicate(shard=0, batch="b")],
    ],
)
def test_an_event_that_cannot_follow_is_refused(events: list[journal.Event]):
    with pytest.raises(JournalError):
        folding.fold(events)


@pytest.mark.parametrize(
    "event",
    [START, INTENT, CREATED, ENDED, DOWNLOADED, COLLECTED, Finished(at=1), Left(at=2),
     NotCreated(shard=0, reason="x"), Disowned(shard=0, batch="b"), Withdrawn(shard=1),
     Extended(round=2, why="retry", shards=SHARDS, replaces=(0,), again={"expired": 2},
              documents=7, by_hand=True),
     Terms(budget_micros=1, retries=0, on_orphan="adopt"), Approved(),
     Duplicate(shard=0, batch="b"),
     Collected(shard=0, classes={"succeeded": 1}, cost_micros=3),
     Intent(shard=0, generation=1, key="k", ceiling_micros=9)],
)  # fmt: skip
def test_every_event_survives_its_line(event: journal.Event):
    assert journal.decode(journal.encode(event), 1) == event


def test_an_event_of_a_later_version_is_passed_over():
    lines = [journal.encode(START), b'{"event":"of later","to":"x"}', journal.encode(INTENT)]

    assert folding.read(lines).shards[0].phase is Phase.INTENDED


def test_a_damaged_line_is_named():
    with pytest.raises(JournalError, match=r"journal\.jsonl:2: not an event"):
        folding.read([journal.encode(START), b'{"event":"intent","shard":"x"}'])


def test_a_torn_last_line_never_happened_and_is_overwritten(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal.encode(START) + b"\n" + journal.encode(INTENT)[:20])

    assert folding.read(durable.whole_lines(path)).shards[0].phase is Phase.PLANNED
    log = durable.Log(path)
    log.append(journal.encode(INTENT))
    log.close()

    assert folding.read(durable.whole_lines(path)).shards[0].phase is Phase.INTENDED


@contextlib.contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Let writes beyond `size` fail, as on a full disk: the first in part, the next at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_line_that_could_not_be_written_leaves_the_log_as_it_was_for_the_next_process(
    tmp_path: Path, room: int
):
    path = tmp_path / "journal.jsonl"
    log = durable.Log(path)
    log.append(journal.encode(START))
    before = path.read_bytes()

    with files_no_longer_than(len(before) + room), pytest.raises(OSError):  # noqa: PT011
        log.append(journal.encode(INTENT))
    with pytest.raises(OSError, match="an earlier line could not be written"):
        log.append(journal.encode(INTENT))

    log.close()
    assert path.read_bytes() == before
    again = durable.Log(path)
    again.append(journal.encode(INTENT))
    again.close()
    assert folding.read(durable.whole_lines(path)).shards[0].phase is Phase.INTENDED


def test_a_file_is_whole_or_as_before(tmp_path: Path):
    path = tmp_path / "f"
    durable.write(path, [b"old"])

    def failing():
        yield b"new"
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        durable.write(path, failing())

    assert path.read_bytes() == b"old"
