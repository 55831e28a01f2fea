"""Rows copied by one strided copy, against rows copied one by one."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraload.geometry import runs as geometry
from paraload.geometry import strided_copy as strided
from paraload.geometry.runs import Run

DATA = random.Random(7).randbytes(60_000)


@st.composite
def series(draw):
    """A series of rows that do not meet in the target, and lie inside of ``DATA``."""
    nbytes = draw(st.integers(1, 40))
    count = draw(st.integers(1, 300))
    src_step = nbytes + draw(st.integers(0, 60))
    dst_step = nbytes + draw(st.integers(0, 60))
    return Run(
        draw(st.integers(0, 50)), draw(st.integers(0, 50)), nbytes, count, src_step, dst_step
    )


def one_by_one(runs, size):
    target = bytearray(size)
    for src, dst, nbytes in geometry.rows(runs):
        target[dst : dst + nbytes] = DATA[src : src + nbytes]
    return target


@given(series())
def test_copied_rows_are_where_they_belong(run):
    target = bytearray(40_000)
    assert strided.copy_runs((run,), memoryview(DATA), memoryview(target)) == run.total_bytes
    assert target == one_by_one((run,), 40_000)


@given(series(), st.integers(1, 500), st.integers(0, 100))
def test_gathered_rows_are_too_and_every_byte_is_read_once(run, scratch, base):
    reads, seen, target = [], bytearray(), bytearray(40_000)

    def read_into(start, buffers):
        (buffer,) = buffers
        reads.append((start - base, start - base + len(buffer)))
        buffer[:] = DATA[start - base : start - base + len(buffer)]
        seen.extend(buffer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided, "_SCRATCH_BYTES", scratch)
        strided.gather([(run, memoryview(target))], read_into, base)
    assert target == one_by_one((run,), 40_000)
    end = run.src + (run.count - 1) * run.src_step + run.nbytes
    assert (reads[0][0], reads[-1][1]) == (run.src, end)
    assert all(one[1] <= other[0] for one, other in pairwise(reads))
    assert all(stop - start <= max(scratch, run.nbytes) for start, stop in reads)
    if run.src_step == run.nbytes:
        assert bytes(seen) == DATA[run.src : end]


def test_rows_outside_of_their_memory_are_refused():
    run = Run(0, 0, 10, 20, 10, 10)
    with pytest.raises((TypeError, ValueError)):
        strided.copy_runs((run,), memoryview(DATA)[:199], memoryview(bytearray(200)))
    with pytest.raises((TypeError, ValueError)):
        strided.copy_runs((run,), memoryview(DATA), memoryview(bytearray(199)))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (Run(0, 0, 1408, 4096, 11264, 1408), True),
        (Run(0, 0, 1408, 4, 11264, 1408), False),  # few
        (Run(0, 0, 1 << 20, 4096, 1 << 20, 1 << 20), False),  # long
        (Run(0, 0, 1408, 4096, 1408 + 100_001, 1408), False),  # far apart
        (Run(0, 0, 1408, 4096, 1000, 1408), False),  # rows that overlap in the file
    ],
)
def test_what_is_gathered(run, expected):
    assert strided.is_gathered(run, 100_000) is expected


COLUMNS = Run(0, 0, 1408, 4096, 11264, 1408)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([COLUMNS], True),
        ([replace(COLUMNS, count=7)], False),
        ([replace(COLUMNS, nbytes=9_300, dst_step=9_300)], False),  # little lies between
        ([replace(COLUMNS, dst_step=1409)], False),  # scattered, and little lies between
        ([replace(COLUMNS, dst_step=1409, src_step=20_000)], True),
        ([replace(COLUMNS, nbytes=17_000, dst_step=17_000, src_step=100_000)], False),  # long
        ([replace(COLUMNS, src_step=600_000)], False),  # far apart
        ([replace(COLUMNS, src_step=1000)], False),  # rows that overlap in the file
        ([replace(COLUMNS, src_step=4096)], False),  # reading through is cheap
        ([replace(COLUMNS, src_step=20_000)] * 2, True),
        ([replace(COLUMNS, src_step=20_000)] * 3, False),  # each costs a search of the cache
    ],
)
def test_what_is_picked(wanted, expected):
    asked = []

    def read_rows(base, run, memory):
        asked.append((base, run, memory))
        return True

    wanted = [(run, memoryview(bytes([n]))) for n, run in enumerate(wanted)]
    assert strided.pick(wanted, read_rows, 5) is expected
    assert asked == ([(5, run, memory) for run, memory in wanted] if expected else [])


def test_rows_that_cannot_be_picked_are_reported():
    assert not strided.pick([(COLUMNS, memoryview(b""))] * 2, lambda *_: False, 0)


@given(st.lists(series(), max_size=3))
def test_what_was_packed_can_be_unpacked(runs):
    packed = bytearray(sum(run.total_bytes for run in runs))
    strided.copy_runs(geometry.packed(runs), memoryview(DATA), memoryview(packed))
    target, expected = bytearray(40_000), bytearray(40_000)
    strided.copy_runs(geometry.unpacked(runs), memoryview(packed), memoryview(target))
    strided.copy_runs(runs, memoryview(DATA), memoryview(expected))
    assert target == expected
