"""Byte runs against numpy's strided slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraload.geometry import runs as geometry
from paraload.geometry.runs import Run
from paraload.geometry.staging_block import staging_region


@st.composite
def blocks(draw):
    """A shape, a permutation that says how it is stored, and a slice of it."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=4)))
    order = tuple(draw(st.permutations(range(len(shape)))))
    offsets, lengths = [], []
    for size in shape:
        start = draw(st.integers(0, size))
        offsets.append(start)
        lengths.append(draw(st.integers(0, size - start)))
    return shape, order, tuple(offsets), tuple(lengths)


def strided(shape, order, itemsize):
    """Bytes, and a view of them with dimensions stored in ``order``."""
    count = int(np.prod(shape, dtype=int))
    data = np.arange(count, dtype=np.int64).astype(f"<i{itemsize}")
    strides = geometry.packed_strides(shape, order)
    view = np.lib.stride_tricks.as_strided(data, shape, [s * itemsize for s in strides])
    return data.tobytes(), view, strides


def apply(runs, source, size):
    target = bytearray(b"\xff" * size)
    for src, dst, nbytes in geometry.rows(runs):
        target[dst : dst + nbytes] = source[src : src + nbytes]
    return bytes(target)


def cut(view, offsets, lengths):
    return view[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]


@given(blocks(), st.sampled_from([1, 2, 8]))
def test_runs_move_exactly_the_slice(block, itemsize):
    shape, order, offsets, lengths = block
    source, view, strides = strided(shape, order, itemsize)
    wanted = np.ascontiguousarray(cut(view, offsets, lengths))
    runs = geometry.slice_runs(
        lengths,
        src_strides=strides,
        dst_strides=geometry.contiguous_strides(lengths),
        itemsize=itemsize,
        src=sum(o * s for o, s in zip(offsets, strides, strict=True)) * itemsize,
    )
    assert apply(runs, source, wanted.nbytes) == wanted.tobytes()
    assert sum(run.total_bytes for run in runs) == wanted.nbytes


@given(blocks(), st.integers(1, 40))
def test_splitting_keeps_every_byte_and_bounds_every_group(block, max_bytes):
    shape, order, _, lengths = block
    _, _, strides = strided(shape, order, 4)
    runs = geometry.slice_runs(
        lengths,
        src_strides=strides,
        dst_strides=geometry.contiguous_strides(lengths),
        itemsize=4,
        src=0,
    )
    groups = geometry.split_runs(runs, max_bytes)
    moved = [(s + k, d + k) for s, d, n in geometry.rows(runs) for k in range(n)]
    split = [(s + k, d + k) for g in groups for s, d, n in geometry.rows(g) for k in range(n)]
    assert split == moved
    assert all(0 < sum(run.total_bytes for run in group) <= max_bytes for group in groups)


@given(
    blocks(),
    st.integers(0, 30),
    st.integers(1, 40),
    st.integers(2, 6),
)
def test_reads_cover_the_runs_within_their_bounds(block, max_gap, max_read, max_pieces):
    shape, order, offsets, lengths = block
    source, view, strides = strided(shape, order, 2)
    wanted = np.ascontiguousarray(cut(view, offsets, lengths))
    runs = geometry.slice_runs(
        lengths,
        src_strides=strides,
        dst_strides=geometry.contiguous_strides(lengths),
        itemsize=2,
        src=sum(o * s for o, s in zip(offsets, strides, strict=True)) * 2,
    )
    target = bytearray(wanted.nbytes)
    for start, pieces in geometry.plan_reads(
        runs, max_gap_bytes=max_gap, max_read_bytes=max_read, max_pieces=max_pieces
    ):
        assert sum(nbytes for _, nbytes in pieces) <= max_read
        assert len(pieces) <= max_pieces
        at = start
        for dst, nbytes in pieces:
            if dst is None:
                assert nbytes <= max_gap
            else:
                target[dst : dst + nbytes] = source[at : at + nbytes]
            at += nbytes
    assert bytes(target) == wanted.tobytes()


@given(blocks(), st.integers(1, 60))
def test_split_block_covers_each_element_once(block, max_bytes):
    shape, order, _, _ = block
    seen = np.zeros(shape, dtype=int)
    for offsets, lengths in geometry.split_block(shape, order, itemsize=2, max_bytes=max_bytes):
        seen[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))] += 1
        assert geometry.block_bytes(lengths, 2) <= max(max_bytes, 2)
    assert (seen == 1).all()


@given(blocks())
def test_a_staging_region_contains_the_slice(block):
    shape, order, offsets, lengths = block
    strides = geometry.packed_strides(shape, order)
    region = staging_region(shape, strides, offsets, lengths, 4)
    for o, n, ro, rn, size in zip(
        offsets, lengths, region.offsets, region.lengths, shape, strict=True
    ):
        assert 0 <= ro <= o
        assert o + n <= ro + rn <= size


def test_a_column_is_one_series_of_rows():
    region = staging_region((1000, 256), (256, 1), (0, 3), (1000, 1), 4)
    assert region.lengths == (1000, 1)
    assert len(region.runs((256, 1), 4, 12)) == 1


def test_windows_of_many_filters_are_staged_with_whole_filters():
    region = staging_region((1000, 8, 3, 3), (72, 9, 3, 1), (0, 2, 1, 1), (1000, 4, 2, 2), 4)
    assert (region.offsets, region.lengths) == ((0, 0, 0, 0), (1000, 8, 3, 3))


def test_whole_contiguous_tensors_are_one_run():
    strides = geometry.contiguous_strides((7, 5, 3))
    assert geometry.slice_runs(
        (7, 5, 3), src_strides=strides, dst_strides=strides, itemsize=2, src=64
    ) == (Run(64, 0, 210),)


def test_a_million_rows_are_one_run_object():
    (run,) = geometry.slice_runs(
        (1_000_000, 2), src_strides=(8, 1), dst_strides=(2, 1), itemsize=4, src=0
    )
    assert (run.count, run.nbytes, run.src_step, run.dst_step) == (1_000_000, 8, 32, 8)


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [((), (), 4), ((0, 3), (3, 1), 0), ((2, 3), (3, 1), 24), ((2, 3), (10, 2), 60)],
)
def test_extent_reaches_the_last_element(shape, strides, expected):
    assert geometry.extent_bytes(shape, strides, 4) == expected
