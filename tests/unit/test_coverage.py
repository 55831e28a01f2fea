"""Whether blocks tile a shape, against counting every element."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from paraload.geometry.coverage import coverage_fault, meeting_pair


def counts(shape, blocks):
    """How many blocks each element is in."""
    found = np.zeros(shape, dtype=int)
    for offsets, lengths in blocks:
        found[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))] += 1
    return found


@st.composite
def tilings(draw):
    """A shape, cut in two again and again, each piece along a dimension of its own."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    blocks = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6)) if shape else 0):
        number = draw(st.integers(0, len(blocks) - 1))
        offsets, lengths = blocks.pop(number)
        dim = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, lengths[dim]))
        rest = lengths[dim] - at
        blocks.append((offsets, (*lengths[:dim], at, *lengths[dim + 1 :])))
        moved = (*offsets[:dim], offsets[dim] + at, *offsets[dim + 1 :])
        blocks.append((moved, (*lengths[:dim], rest, *lengths[dim + 1 :])))
    return shape, draw(st.permutations(blocks))


@given(tilings())
def test_what_was_cut_tiles(tiling):
    assert coverage_fault(*tiling) is None


@given(tilings(), st.data())
def test_tiling_agrees_with_counting_elements(tiling, data):
    shape, blocks = tiling
    for _ in range(data.draw(st.integers(1, 3))):
        offsets = [data.draw(st.integers(0, size)) for size in shape]
        lengths = [
            data.draw(st.integers(0, size - o)) for o, size in zip(offsets, shape, strict=True)
        ]
        changed = (tuple(offsets), tuple(lengths))
        number = data.draw(st.integers(0, len(blocks)))
        blocks = [*blocks[:number], changed, *blocks[number + data.draw(st.integers(0, 1)) :]]
    fault = coverage_fault(shape, blocks)
    found = counts(shape, blocks)
    event("tiled" if fault is None else fault.split(" has ")[0])
    if (found > 1).any():
        assert fault.startswith("two chunks have")
    elif (found == 0).any():
        assert fault.startswith("no chunk has")
    else:
        assert fault is None
    pair = meeting_pair([block for block in blocks if 0 not in block[1]])
    assert (pair is not None) == bool((found > 1).any())


@pytest.mark.parametrize(
    ("shape", "blocks", "says"),
    [
        ((4,), [], "no chunk has the elements from (0,) to (4,)"),
        ((), [], "no chunk has the elements from () to ()"),
        ((), [((), ()), ((), ())], "two chunks have the elements from () to ()"),
        ((4, 4), [((0, 0), (4, 3))], "no chunk has the elements from (0, 3) to (4, 4)"),
        ((4,), [((1,), (4,))], "a chunk of shape (4,) at (1,) does not lie inside of it"),
        ((4,), [((-1,), (5,))], "a chunk of shape (5,) at (-1,) does not lie inside of it"),
        ((4,), [((0, 0), (4, 1))], "another number of dimensions"),
        ((4,), [((0,), (4, 1))], "another number of dimensions"),
        ((-1,), [], "impossible"),
        ((1,) * 65, [((0,) * 65, (1,) * 65)], "impossible"),
    ],
)
def test_what_is_said(shape, blocks, says):
    assert says in coverage_fault(shape, blocks)


def test_empty_tensors_need_no_chunks():
    assert coverage_fault((0, 4), []) is None
    assert coverage_fault((0,), [((0,), (0,))]) is None


def test_a_large_grid_takes_one_look_at_each_block():
    side = 100
    blocks = [((r, c), (1, 1)) for r in range(side) for c in range(side)]
    assert coverage_fault((side, side), blocks) is None
    assert "from (99, 99) to (100, 100)" in coverage_fault((side, side), blocks[:-1])
