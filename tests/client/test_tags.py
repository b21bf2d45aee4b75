"""The mark on one id of each batch: whose batch it is, when nothing else tells."""

from dataclasses import replace
from pathlib import Path

import pytest

from batchyard.client.inputs.custom_ids import Decoded, from_custom_id
from batchyard.client.planning.plan import Request, Shard, pack
from batchyard.client.running import journal, tags
from client.conftest import Bench, WaitingClock
from client.fake_api import FakeApi, errored


def shard_of(*ids: str, text: str = "x") -> Shard:
    requests = [
        Request(each, each, "", f"{each}.md", b'{"custom_id":"%b","params":{"t":"%b"}}'
                % (each.encode(), text.encode()))
        for each in ids
    ]  # fmt: skip
    return pack(requests, 100)[0]


def ids(shard: Shard) -> list[str]:
    return [request.custom_id for request in shard.requests]


def test_one_id_has_the_mark_and_stays_readable():
    shard = tags.tagged(shard_of("a_Dmd", "b_Dmd"))

    first, second = ids(shard)
    assert tags.plain(first) == "a_Dmd"
    assert from_custom_id(first) == Decoded("a.md", is_hashed=False)
    assert second == "b_Dmd"
    assert shard.size == len(b"".join(shard.body()))


def test_a_repetition_keeps_its_round_before_the_mark():
    first, _ = ids(tags.tagged(shard_of("a_Dmd_R2", "b_Dmd_R2")))

    assert first.startswith("a_Dmd_R2-")
    assert tags.plain(first) == "a_Dmd_R2"
    assert from_custom_id(first) == Decoded("a.md", is_hashed=False, round=2)


def test_the_mark_follows_the_content_and_a_marked_shard_can_be_marked_anew():
    one, other = shard_of("a", "b"), shard_of("a", "b", text="y")

    assert ids(tags.tagged(one)) == ids(tags.tagged(one))
    assert ids(tags.tagged(one)) != ids(tags.tagged(other))
    again = tags.tagged(replace(tags.tagged(one), requests=tags.tagged(one).requests[:1]))
    assert tags.plain(ids(again)[0]) == "a"


def test_the_mark_goes_where_there_is_room_for_it():
    long = "a" * 64

    assert ids(tags.tagged(shard_of(long)))[0] == long
    first, second = ids(tags.tagged(shard_of(long, "b")))
    assert first == long
    assert second.startswith("b_R0-")


@pytest.mark.parametrize(
    ("found", "wanted", "is_ours"),
    [
        (["b", "a_R0-1234"], ["a_R0-1234", "b"], True),
        (["b", "a_R0-9999"], ["a_R0-1234", "b"], False),
        (["b", "a"], ["a_R0-1234", "b"], False),
        (["b"], ["a_R0-1234", "b"], True),
        (["c"], ["a_R0-1234", "b"], False),
        (["c", "b"], ["a_R0-1234", "b"], False),
        (["c", "a_R0-1234"], ["a_R0-1234", "b"], True),
        (["b_R1-9999", "c_R1"], ["a_R1-1234", "b_R1", "c_R1"], False),
        (["a", "b"], ["a", "b"], True),
    ],
)
def test_results_are_ours_when_they_have_our_mark(
    tmp_path: Path, found: list[str], wanted: list[str], is_ours: bool
):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f'{{"custom_id":"{each}"}}\n' for each in found) + "{torn")

    assert tags.confirms(path, wanted) == is_ours


def test_two_runs_over_the_same_documents_never_take_each_others_batch(
    tmp_path: Path, server: FakeApi
):
    """Same ids, same number, same moment, other prompts, and both create calls not answered."""
    clock = WaitingClock(server)
    folders = [tmp_path / "one", tmp_path / "two"]
    benches = []
    for number, path in enumerate(folders):
        path.mkdir()
        bench = Bench(path, server, clock)
        bench.prompt.write_text(f"Prompt {number}: {{{{ text }}}}")
        benches.append(bench)
    server.fail("create", "drop", "drop")
    server.polls = 0
    writers = [bench.writer() for bench in benches]
    pipelines = [bench.pipeline(w) for bench, w in zip(benches, writers, strict=True)]
    bodies = [bench.files.requests(0) for bench in benches]
    for number in (1, 0):  # the second is first at the server
        api = pipelines[number]._api
        with pytest.raises(Exception, match="127"):
            api.create(bodies[number], f"key {number}")

    for pipeline, writer in zip(pipelines, writers, strict=True):
        intend(writer)
        pipeline.run()

    kept = [writer.state.shards[0].batch for writer in writers]
    assert kept == ["msgbatch_02", "msgbatch_01"]
    assert len(server.batches) == 2
    for writer in writers:
        writer.close()


def intend(writer) -> None:
    """Record the create call that was made, as the run does before it."""
    writer.record(journal.Intent(shard=0, generation=0, key="k"))


def test_a_round_of_another_run_over_some_of_the_same_documents_is_not_taken_for_ours(
    bench: Bench, server: FakeApi
):
    """Same size, same moment, ids in common, and the answer to our own create call is lost."""
    ours = ("a_Dmd", "b_Dmd", "sub_-c_Dmd")
    server.outcomes = {each: errored("api_error", "no") for each in ours}
    server.fail("create", None, "drop")
    theirs = ("b_Dmd_R1-9999", "d_Dmd_R1", "sub_-c_Dmd_R1")
    server.accept([{"custom_id": each, "params": {"model": "m"}} for each in theirs])

    bench.run()

    state = bench.files.read_state()
    assert [shard.batch for shard in state.shards] == ["msgbatch_02", "msgbatch_03"]
    assert len(server.batches) == 3
    assert bench.reports() == {
        "a.md": "Report on a_Dmd_R1.\n",
        "b.md": "Report on b_Dmd_R1.\n",
        "sub/c.md": "Report on sub_-c_Dmd_R1.\n",
    }
