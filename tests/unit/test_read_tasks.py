"""From items to tasks: grouping, splitting, overlaps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paraload.core.records import TensorRecord
from paraload.core.tasks import (
    LocateTask,
    RecordSpec,
    RecordsTask,
    RunsTask,
    SharedTask,
    Stored,
    Wanted,
)
from paraload.geometry.runs import Run
from paraload.planning.read_tasks import (
    PlanKnobs,
    first_tasks,
    runs_tasks,
    share_reads,
    split_bytes_for,
)
from paraload.sources import SourceLimits

MIB = 1 << 20
KNOBS = PlanKnobs(locate_from_bytes=1000, locate_batch=2, block_bytes=600, max_gap_bytes=50)


def spec(item, start, length, *, path="a", fqn="t", descriptors=(), kind="tensor", at=(0,), n=(1,)):
    return RecordSpec(
        item=item,
        path=path,
        start=start,
        end=start + length,
        fqn=fqn,
        wanted=Wanted(kind, at, n, descriptors),
    )


def test_big_records_are_located_in_batches_and_small_ones_read_in_blocks():
    specs = [spec(0, 0, 200), spec(1, 200, 200), *(spec(n, n * 5000, 4000) for n in (2, 3, 4))]
    tasks = first_tasks(specs, knobs=KNOBS)
    assert [type(task) for task in tasks] == [RecordsTask, LocateTask, LocateTask]
    assert [task.items for task in tasks] == [(0, 1), (2, 3), (4,)]
    assert (tasks[0].start, tasks[0].end, tasks[0].cost_bytes) == (0, 400, 400)


def test_items_of_a_file_are_read_in_the_order_of_bytes():
    tasks = first_tasks([spec(0, 300, 100), spec(1, 0, 100), spec(2, 150, 100)], knobs=KNOBS)
    assert [task.items for task in tasks] == [(1, 2, 0)]


def test_or_in_the_order_of_the_plan():
    specs = [spec(0, 300, 100), spec(1, 0, 100)]
    tasks = first_tasks(specs, in_plan_order=True, knobs=KNOBS)
    assert [task.items for task in tasks] == [(0,), (1,)]


def test_a_wide_gap_or_a_full_block_begins_a_new_one():
    specs = [spec(0, 0, 300), spec(1, 300, 300), spec(2, 600, 300), spec(3, 951, 100)]
    assert [t.items for t in first_tasks(specs, knobs=KNOBS)] == [(0, 1), (2,), (3,)]


def test_transformed_records_are_never_located():
    (task,) = first_tasks([spec(0, 0, 5000, descriptors=("stream.zstd/1",))], knobs=KNOBS)
    assert isinstance(task, RecordsTask)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5000), st.integers(0, 3000)), max_size=30
    )
)
def test_every_item_is_in_exactly_one_task(records):
    specs = [spec(n, start, size, path=path) for n, (path, start, size) in enumerate(records)]
    tasks = first_tasks(specs, knobs=KNOBS)
    assert sorted(item for task in tasks for item in task.items) == list(range(len(specs)))
    for task in tasks:
        for item in task.items:
            assert task.path == specs[item].path
            assert task.start <= specs[item].start
            assert specs[item].end <= task.end


def test_streams_of_one_file_are_marked_when_they_only_go_forward():
    knobs = PlanKnobs(split_bytes=250)
    specs = [spec(n, n * 100, 100) for n in range(5)]
    tasks = first_tasks(specs, as_stream=True, in_sequence=True, knobs=knobs)
    assert [task.items for task in tasks] == [(0, 1), (2, 3), (4,)]
    assert all(task.as_stream and task.in_sequence for task in tasks)


def record(nbytes):
    return TensorRecord(
        dtype="uint8",
        itemsize=1,
        shape=(nbytes,),
        strides=(1,),
        storage_offset=0,
        start=64,
        end=64 + nbytes,
        trailer=(64 + nbytes, 64 + nbytes + 24),
    )


def test_a_record_is_split_and_its_last_part_reads_the_trailer():
    tasks = runs_tasks(
        spec(7, 1000, 300),
        record(200),
        (Run(0, 0, 200),),
        target=7,
        checksum=True,
        with_trailer=True,
        split_bytes=80,
        max_gap_bytes=0,
    )
    assert [(task.start, task.end) for task in tasks] == [(1064, 1144), (1144, 1224), (1224, 1264)]
    assert [task.trailer for task in tasks] == [None, None, (1264, 1288)]
    assert sum(task.needed_bytes for task in tasks) == 200


def test_the_sizes_of_a_file_system_are_the_defaults():
    assert PlanKnobs.of(SourceLimits()) == PlanKnobs()


def test_where_requests_are_dear_they_are_long_and_headers_are_not_worth_one():
    limits = SourceLimits(max_request_bytes=8 * MIB, max_gap_bytes=1 * MIB, requests_in_flight=32)
    assert PlanKnobs.of(limits) == PlanKnobs(
        locate_from_bytes=8 * MIB,
        locate_batch=1,
        block_bytes=8 * MIB,
        at_once_bytes=2 * MIB,
        max_gap_bytes=MIB,
        split_bytes=8 * MIB,
        min_split_bytes=2 * MIB,
    )


def test_no_task_of_records_is_longer_than_a_request_may_be():
    knobs = PlanKnobs.of(SourceLimits(max_request_bytes=MIB))
    assert (knobs.block_bytes, knobs.split_bytes) == (MIB, MIB)


@pytest.mark.parametrize(
    ("left", "workers", "limit", "expected"),
    [
        (0, 2, 16 * MIB, MIB // 4),
        (8 * MIB, 8, 16 * MIB, MIB // 2),
        (1024 * MIB, 2, 16 * MIB, 16 * MIB),
        (128 * MIB, 8, 16 * MIB, 8 * MIB),
        (32 * MIB, 8, 16 * MIB, 2 * MIB),
        (1024 * MIB, 2, MIB // 4, MIB // 4),
    ],
)
def test_tasks_suit_what_is_left_and_the_number_of_workers(left, workers, limit, expected):
    assert split_bytes_for(left, workers, limit, MIB // 4) == expected


def column(item, first, width, *, rows=100, step=1000, base=5000, path="a", checksum=False):
    """Columns ``[first, first + width)`` of a matrix with ``rows`` rows of ``step`` bytes."""
    return RunsTask(
        path=path,
        start=base + first,
        end=base + first + (rows - 1) * step + width,
        items=(item,),
        base=base,
        target=item,
        runs=(Run(first, 0, width, rows, step, width),),
        max_gap_bytes=1000,
        checksum=checksum,
    )


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([column(0, 0, 100), column(1, 300, 200)], [(0, 1)]),
        ([column(1, 300, 200), column(0, 0, 100)], [(0, 1)]),
        ([column(0, 0, 400), column(1, 200, 200), column(2, 900, 100)], [(0, 1, 2)]),
        ([column(0, 0, 100), column(1, 950, 100)], [(0,), (1,)]),  # goes on in the next row
        ([column(0, 0, 100), column(1, 1000, 100)], [(0,), (1,)]),  # is in the next row
        ([column(0, 0, 100), column(1, 300, 200, rows=99)], [(0,), (1,)]),
        ([column(0, 0, 100), column(1, 300, 200, step=999)], [(0,), (1,)]),
        ([column(0, 0, 100), column(1, 300, 200, base=6000)], [(0,), (1,)]),
        ([column(0, 0, 100), column(1, 300, 200, path="b")], [(0,), (1,)]),
        ([column(0, 0, 100), column(1, 300, 200, checksum=True)], [(0,), (1,)]),
        ([column(0, 0, 300), column(1, 300, 300), column(2, 600, 300)], [(0, 1), (2,)]),  # limit
    ],
)
def test_columns_of_the_same_rows_share_a_read(tasks, expected):
    shared = share_reads(tasks, limit_bytes=70_000, split_bytes=1)
    assert [task.items for task in shared] == expected
    for task in shared:
        if len(task.items) > 1:
            assert task.start == min(part.start for part in task.parts)
            assert task.end == max(part.end for part in task.parts)
            assert task.same_rows


def piece(item, start, nbytes, *, path="a"):
    """All bytes of a record."""
    return replace(
        column(item, 0, nbytes, base=start, path=path),
        end=start + nbytes,
        runs=(Run(0, 0, nbytes),),
    )


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([piece(0, 0, 400), piece(1, 400, 600), piece(2, 1000, 1)], [(0, 1), (2,)]),
        ([piece(0, 0, 400), piece(1, 4000, 600)], [(0, 1)]),  # not the bytes between them
        ([piece(0, 0, 400, path="a"), piece(1, 400, 400, path="b")], [(0,), (1,)]),
        ([piece(0, 0, 2000), piece(1, 2000, 1000), piece(2, 3000, 1)], [(0,), (1,), (2,)]),
        ([column(0, 0, 100, rows=4), column(1, 300, 100), piece(2, 0, 9)], [(0,), (1,), (2,)]),
        ([piece(0, 0, 9), column(1, 0, 100), column(2, 300, 100)], [(1, 2), (0,)]),
    ],
)
def test_small_tasks_are_joined(tasks, expected):
    joined = share_reads(tasks, limit_bytes=70_000, split_bytes=1000)
    assert [task.items for task in joined] == expected
    for task in joined:
        parts = task.parts if isinstance(task, SharedTask) else [task]
        assert [part.items for part in parts] == [(item,) for item in task.items]


@pytest.mark.parametrize(("straight_through", "expected"), [(False, [5, 1]), (True, [3, 1, 1, 1])])
def test_items_of_one_record_are_located_together(straight_through, expected):
    specs = [spec(n, start, 4000) for n, start in enumerate((0, 0, 0, 5000, 10_000, 15_000))]
    knobs = PlanKnobs(locate_from_bytes=1000, locate_batch=3, at_once_bytes=0)
    tasks = first_tasks(specs, straight_through=straight_through, knobs=knobs)
    assert [len(task.items) for task in tasks] == expected
    assert not any(task.at_once_bytes for task in tasks)


def rows_of(item, start, rows):
    """The first rows of a record of 100 rows of 40 bytes."""
    wanted = Wanted("tensor", (0, 0), (rows, 40), stored=Stored("uint8", (100, 40)))
    return RecordSpec(item, "a", start, start + 4000, "t", wanted)


def test_what_is_wanted_of_a_record_is_read_at_once_if_it_is_short():
    knobs = PlanKnobs(locate_from_bytes=1000, locate_batch=3, at_once_bytes=1000)
    specs = [
        *(rows_of(n, n * 5000, 1) for n in range(4)),  # as many headers as a task may have
        rows_of(4, 20_000, 25),  # as long as a task may read
        rows_of(5, 25_000, 1),
        rows_of(6, 30_000, 26),  # longer
        *(rows_of(n, 35_000, 1) for n in (7, 8)),  # two want this record
        spec(9, 40_000, 4000),  # no rows are known, so all of it
    ]
    tasks = first_tasks(specs, knobs=knobs)
    assert [(task.items, task.at_once_bytes > 0) for task in tasks] == [
        ((0, 1, 2), True),
        ((3,), True),
        ((4,), True),
        ((5,), True),
        ((6, 7, 8, 9), False),
    ]
