"""Adoption: what a later attempt takes over, whatever a crash has left."""

from __future__ import annotations

import json
import random
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard import limits, result, segments
from batchyard.dispatch import adopt as adopting
from batchyard.dispatch.adopt import Adopted, Tally
from batchyard.errors import DamagedError, StoreError
from batchyard.ledger import Claim
from batchyard.model import Extent
from batchyard.price import Usage
from batchyard.segments.directory import DirectorySegments
from store.making import NOW

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from batchyard.segments import Segments

BATCH = "msgbatch_01abc"
USAGE = (
    b'{"input_tokens":3,"output_tokens":5,"cache_creation_input_tokens":7,'
    b'"cache_read_input_tokens":11}'
)


def make_claim(*frozen: Extent) -> Claim:
    return Claim(
        batch=BATCH,
        index=0,
        attempt=9,
        workspace="w",
        pool="p",
        offset=0,
        length=0,
        crc=None,
        requests=100,
        version="",
        betas=(),
        user_profile=None,
        expires_us=NOW,
        canceled=False,
        frozen=frozen,
    )


KNOWN = frozenset("abcdexyz") | {f"r{n}" for n in range(30)}


def adopt(store: Segments, claim: Claim) -> Adopted:
    return adopting.adopt(store, claim, KNOWN)


def name(attempt: int, nonce: str = "aa") -> str:
    return f"{segments.results_prefix(BATCH, 0)}{attempt}.{nonce}"


def line(custom_id: str, kind: str = "succeeded") -> bytes:
    if kind == "succeeded":
        text = json.dumps(f"füß{custom_id}", ensure_ascii=False).encode()
        return result.succeeded(custom_id, b'{"content":[%b],"usage":%b}' % (text, USAGE))
    if kind == "errored":
        return result.errored(custom_id, "api_error", "no")
    return result.unsent(custom_id, "canceled" if kind == "canceled" else "expired")


def write(store: Segments, segment: str, chunks: Sequence[bytes]) -> None:
    if BATCH not in store.batches():
        store.put(segments.requests_name(BATCH), [b"x"])
    appender = store.appender(segment)
    appender.append(chunks)
    appender.sync()
    appender.close()


def tally_of(lines: Iterable[tuple[str, str]]) -> Tally:
    tally = Tally()
    for _, kind in lines:
        usage = Usage(3, 5, 7, 0, 11) if kind == "succeeded" else Usage()
        tally.add(kind, usage)  # type: ignore[arg-type]
    return tally


LINES = [
    ("a", "succeeded"),
    ("b", "errored"),
    ("c", "canceled"),
    ("d", "expired"),
    ("e", "succeeded"),
]
BYTES = [line(*each) for each in LINES]
WHOLE = b"".join(BYTES)
ENDS = [sum(map(len, BYTES[: n + 1])) for n in range(len(BYTES))]


class _Memory:
    """Segments in a dictionary: adoption over thousands of damaged ones, quickly."""

    def __init__(self, **data: bytes) -> None:
        self.data = {f"{segments.results_prefix(BATCH, 0)}{k}": v for k, v in data.items()}
        self.synced: list[str] = []

    def names(self, prefix: str) -> list[str]:
        return sorted(n for n in self.data if n.startswith(prefix))

    def size(self, segment: str) -> int:
        return len(self.data[segment])

    def read(self, segment: str, offset: int, length: int) -> bytes:
        part = self.data[segment][offset : offset + length]
        if len(part) != length:
            raise StoreError("short")
        return part

    def sync(self, segment: str) -> None:
        self.synced.append(segment)


def adopt_bytes(data: bytes) -> Adopted:
    return adopt(_Memory(s=data), make_claim())  # type: ignore[arg-type]


def test_whole_segments_are_taken_and_made_durable(store: Segments) -> None:
    write(store, name(1), BYTES[:2])
    write(store, name(2), BYTES[2:])
    adopted = adopt(store, make_claim())
    assert adopted.covered == {"a", "b", "c", "d", "e"}
    first, second = WHOLE[: ENDS[1]], WHOLE[ENDS[1] :]
    assert adopted.extents == [
        Extent(name(1), len(first), (zlib.crc32(first),)),
        Extent(name(2), len(second), (zlib.crc32(second),)),
    ]
    assert adopted.tally == tally_of(LINES)


def test_nothing_left_is_nothing_adopted(store: Segments) -> None:
    assert adopt(store, make_claim()) == Adopted()


def test_a_segment_cut_at_any_byte_gives_the_lines_before_the_cut() -> None:
    for cut in range(len(WHOLE) + 1):
        adopted = adopt_bytes(WHOLE[:cut])
        whole = sum(end <= cut for end in ENDS)
        assert adopted.covered == {custom_id for custom_id, _ in LINES[:whole]}
        assert adopted.tally == tally_of(LINES[:whole])
        length = ENDS[whole - 1] if whole else 0
        assert sum(extent.length for extent in adopted.extents) == length


@pytest.mark.parametrize(
    "filling", [b"\0" * 40, b"\n", b"\n\n", b"{}\n", b"null\n", b"\xff\n", b"[\n"]
)
def test_garbage_after_a_cut_ends_the_segment(filling: bytes) -> None:
    """A power cut may leave zeros or old bytes where the length had grown already."""
    for whole in range(len(LINES) + 1):
        start = ENDS[whole - 1] if whole else 0
        adopted = adopt_bytes(WHOLE[:start] + filling + WHOLE[start:])
        assert adopted.covered == {custom_id for custom_id, _ in LINES[:whole]}
        assert sum(extent.length for extent in adopted.extents) == start


def test_any_flipped_bit_still_gives_whole_lines_of_known_shape_and_no_id_twice() -> None:
    """A bit inside a text cannot be noticed: lines have no checksum. Their frame must hold."""
    for position in range(len(WHOLE)):
        for bit in range(8):
            damaged = bytearray(WHOLE)
            damaged[position] ^= 1 << bit
            data = bytes(damaged)
            adopted = adopt_bytes(data)
            length = sum(extent.length for extent in adopted.extents)
            before = sum(end <= position for end in ENDS)
            assert length >= (ENDS[before - 1] if before else 0), "lines before it were lost"
            lines = data[:length].split(b"\n")[:-1]
            ids = [json.loads(text)["custom_id"] for text in lines]
            assert len(set(ids)) == len(ids)
            assert set(ids) == adopted.covered <= KNOWN
            tally = adopted.tally
            assert tally.succeeded + tally.errored + tally.canceled + tally.expired == len(ids)


def test_an_id_twice_in_one_segment_ends_it() -> None:
    adopted = adopt_bytes(BYTES[0] + BYTES[1] + BYTES[0] + BYTES[2])
    assert adopted.covered == {"a", "b"}
    checksum = zlib.crc32(BYTES[0] + BYTES[1])
    name = f"{segments.results_prefix(BATCH, 0)}s"
    assert adopted.extents == [Extent(name, ENDS[1], (checksum,))]


def test_an_id_that_the_shard_does_not_have_ends_a_segment() -> None:
    adopted = adopt_bytes(BYTES[0] + line("stranger") + BYTES[1])
    assert adopted.covered == {"a"}


@pytest.mark.parametrize("overlap", ["a", "e"])
def test_a_segment_with_an_id_that_is_covered_is_taken_not_at_all(
    store: Segments, overlap: str
) -> None:
    write(store, name(1), BYTES)
    write(store, name(2), [line("x"), line(overlap), line("y")])
    write(store, name(3), [line("z")])
    adopted = adopt(store, make_claim())
    assert adopted.covered == {"a", "b", "c", "d", "e", "z"}
    assert [extent.segment for extent in adopted.extents] == [name(1), name(3)]


def test_frozen_extents_are_read_as_long_as_they_were_frozen_and_come_first(
    store: Segments,
) -> None:
    write(store, name(1), BYTES)  # a zombie wrote on after it was frozen
    write(store, name(2), [line("x")])
    frozen = Extent(name(1), ENDS[1])
    adopted = adopt(store, make_claim(frozen))
    assert adopted.covered == {"a", "b", "x"}
    second = Extent(name(2), len(line("x")), (zlib.crc32(line("x")),))
    assert adopted.extents == [frozen, second]
    assert adopted.tally == tally_of([*LINES[:2], ("x", "succeeded")])


def test_what_a_zombie_adds_to_a_frozen_segment_does_not_exist(store: Segments) -> None:
    write(store, name(1), BYTES)
    write(store, name(2), [line("c"), line("d")])  # what the next attempt answered instead
    adopted = adopt(store, make_claim(Extent(name(1), ENDS[1])))
    assert adopted.covered == {"a", "b", "c", "d"}
    assert [extent.length for extent in adopted.extents] == [
        ENDS[1],
        len(line("c")) + len(line("d")),
    ]


def test_a_frozen_segment_that_was_empty_stays_frozen_empty(store: Segments) -> None:
    write(store, name(1), BYTES)
    adopted = adopt(store, make_claim(Extent(name(1), 0)))
    assert adopted.extents == [Extent(name(1), 0)]
    assert adopted.covered == set()


class _Scratched(_Memory):
    """Its first segment has a block that the disk cannot read, from some read of it on."""

    def __init__(self, after: int = 0, **data: bytes) -> None:
        super().__init__(**data)
        self.bad = min(self.data)
        self.left = after
        self.is_sized = True

    def size(self, segment: str) -> int:
        if segment == self.bad and not self.is_sized:
            raise DamagedError("cannot be found: Input/output error")
        return super().size(segment)

    def read(self, segment: str, offset: int, length: int) -> bytes:
        if segment == self.bad and offset >= limits.MIB:
            self.left -= 1
            if self.left < 0:
                raise DamagedError("cannot be read: Input/output error")
        return super().read(segment, offset, length)


def test_a_segment_that_cannot_be_read_ends_there_and_the_next_ones_count() -> None:
    long = [result.succeeded("a", b'{"content":"%b","usage":{}}' % (b"x" * limits.MIB))]
    begun = [line("b"), *long, line("c")]
    store = _Scratched(a=b"".join(begun), b=line("d"))
    adopted = adopt(store, make_claim())  # type: ignore[arg-type]
    assert adopted.covered == {"b", "d"}
    assert [extent.length for extent in adopted.extents] == [len(begun[0]), len(line("d"))]
    assert adopted.damage is None, "nothing was promised"


def test_a_segment_that_cannot_be_found_or_read_a_second_time_is_left_out() -> None:
    """It is read once for its lines and once for its checksums."""
    long = [result.succeeded("a", b'{"content":"%b","usage":{}}' % (b"x" * limits.MIB)), line("c")]
    again, lost = _Scratched(1, a=b"".join(long), b=line("d")), _Scratched(a=line("c"), b=line("d"))
    lost.is_sized = False
    for store in (again, lost):
        adopted = adopt(store, make_claim())  # type: ignore[arg-type]
        assert adopted.covered == {"d"}
        assert adopted.tally == tally_of([("d", "succeeded")])
        assert len(adopted.extents) == 1


def test_only_what_is_newly_taken_is_synced_and_before_it_counts() -> None:
    store = _Memory(a=BYTES[0], b=BYTES[1], c=BYTES[0], d=b"torn")
    prefix = segments.results_prefix(BATCH, 0)
    adopt(store, make_claim(Extent(f"{prefix}a", ENDS[0])))  # type: ignore[arg-type]
    assert store.synced == [f"{prefix}b"]  # c repeats an id, d holds no line


def test_lines_across_the_borders_of_what_is_read_at_a_time() -> None:
    rng = random.Random(3)
    lines = [
        result.succeeded(f"r{n}", b'{"content":"%b","usage":{}}' % (b"x" * rng.randint(1, 300_000)))
        for n in range(30)
    ]
    data = b"".join(lines)
    assert len(data) > 3 * limits.MIB
    adopted = adopt_bytes(data + b"torn")
    assert len(adopted.covered) == 30
    assert adopted.extents[0].length == len(data)


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), max_size=6),  # ids, possibly again
            st.integers(0, 2_000),  # where the file is cut
        ),
        max_size=5,
    )
)
def test_whatever_attempts_left_behind_no_id_is_adopted_twice(
    attempts: list[tuple[list[int], int]],
) -> None:
    data = {
        f"{number}": b"".join(line(f"r{n}") for n in ids)[:cut]
        for number, (ids, cut) in enumerate(attempts)
    }
    store = _Memory(**data)
    first = adopt(store, make_claim())  # type: ignore[arg-type]
    _check(store, first)
    # The next attempt reads what this one froze, and finds the same.
    again = adopt(store, make_claim(*first.extents))  # type: ignore[arg-type]
    assert again.covered == first.covered
    assert again.extents == first.extents
    assert again.tally == first.tally


def _check(store: _Memory, adopted: Adopted) -> None:
    found = []
    for extent in adopted.extents:
        part = store.data[extent.segment][: extent.length]
        found += [result.read_line(text)[0] for text in part.split(b"\n")[:-1]]
    assert len(set(found)) == len(found)
    assert set(found) == adopted.covered
    assert adopted.tally == tally_of((custom_id, "succeeded") for custom_id in found)


def test_damage_on_disk_is_met_as_in_memory(tmp_path: Path) -> None:
    """The same over real files, at a few places."""
    store = DirectorySegments(tmp_path / "segments")
    write(store, name(1), BYTES)
    (path,) = tmp_path.rglob("0.1.aa")
    for cut in (len(WHOLE) - 1, ENDS[2] + 3, ENDS[0], 1, 0):
        with path.open("r+b") as file:
            file.truncate(cut)
        assert len(adopt(store, make_claim()).covered) == sum(end <= cut for end in ENDS)
