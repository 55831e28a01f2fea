"""Which targets share memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paraload.geometry.overlap import Block, overlapping_items


def items_in(spans, block_of):
    first, end = np.array([spans[n] for n in range(len(spans))], dtype=np.int64).reshape(-1, 2).T
    return overlapping_items(first, end, block_of)


def overlapping(spans, *blocks):
    return items_in(spans, blocks.__getitem__)


def test_items_that_fill_disjoint_blocks_of_one_tensor_do_not_overlap():
    # Columns of a matrix: their addresses interleave, their elements do not.
    spans = {0: (0, 14), 1: (2, 16)}
    blocks = Block("t", (0, 0), (4, 2)), Block("t", (0, 2), (4, 2))
    assert overlapping(spans, *blocks) == set()


def test_blocks_that_meet_do():
    spans = {0: (0, 16), 1: (15, 31)}
    blocks = Block("t", (0, 0), (4, 4)), Block("t", (3, 3), (4, 4))
    assert overlapping(spans, *blocks) == {0, 1}


def test_tensors_that_share_addresses_do_and_others_do_not():
    blocks = [Block(f"t{n}", (0,), (1,)) for n in range(4)]
    spans = {0: (0, 100), 1: (50, 60), 2: (100, 200), 3: (300, 400)}
    assert overlapping(spans, *blocks) == {0, 1}


def test_blocks_are_compared_only_if_addresses_overlap():
    assert items_in({0: (0, 4), 1: (4, 8), 2: (8, 12)}, None) == set()
    assert items_in({0: (8, 12), 1: (0, 0), 2: (9, 9), 3: (0, 8)}, None) == set()
    assert items_in({}, None) == set()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=12))
def test_every_pair_of_tensors_that_meets_is_found(ranges):
    spans = {n: (first, first + size) for n, (first, size) in enumerate(ranges)}
    blocks = [Block(f"t{n}", (0,), (1,)) for n in range(len(ranges))]
    found = overlapping(spans, *blocks)
    for one, (first, end) in spans.items():
        meets = any(first < e and f < end for other, (f, e) in spans.items() if other != one)
        assert meets <= (one in found)
