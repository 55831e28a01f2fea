"""Options and machine -> executor, number of workers, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paraload.core.tasks import RecordSpec
from paraload.executors import choice as execution
from paraload.executors.choice import choose_execution
from paraload.executors.ramp import RampLimits
from paraload.options import ReadOptions
from paraload.planning.task_sizes import TaskSizes
from paraload.sources.local import LocalSource
from tests.sources import RemoteLikeSource

MIB = 1 << 20
RAMP = RampLimits(start=2, limit=32, cores=2)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Two cores."""
    monkeypatch.setattr(execution, "choose_ramp", lambda *_: RAMP)
    monkeypatch.setattr(execution, "choose_processes", lambda: 2)


def record(number, nbytes):
    return RecordSpec(number, "a", number << 30, (number << 30) + nbytes, "w", None)


def chosen(total_bytes=1024 * MIB, not_in_processes="", **options):
    return choose_execution(
        ReadOptions(**options),
        source=LocalSource("/ckpt"),
        total_bytes=total_bytes,
        not_in_processes=not_in_processes,
    )


@pytest.mark.parametrize(
    ("options", "name", "workers", "ramp"),
    [
        ({}, "threads", 2, RAMP),
        ({"executor": "threads"}, "threads", 2, RAMP),
        ({"max_workers": 5}, "threads", 5, None),
        ({"max_workers": 100}, "threads", 100, None),
        ({"max_workers": 1}, "sequential", 1, None),
        ({"enable_parallel": False}, "sequential", 1, None),
        ({"executor": "sequential"}, "sequential", 1, None),
        ({"executor": "sequential", "max_workers": 4}, "sequential", 1, None),
        ({"executor": "processes"}, "processes", 2, None),
        ({"executor": "pool", "max_workers": 3}, "pool", 3, None),
        ({"executor": "processes", "max_workers": 1}, "sequential", 1, None),
        ({"direct_io": True, "memory_budget_bytes": 128 * MIB}, "threads", 2, RAMP),
        (
            {"direct_io": True, "memory_budget_bytes": 35 * MIB},
            "threads",
            2,
            RampLimits(start=2, limit=8, cores=2),
        ),
        ({"direct_io": True, "memory_budget_bytes": MIB}, "sequential", 1, None),
        (
            {"direct_io": True, "memory_budget_bytes": MIB, "max_workers": 4},
            "threads",
            4,
            None,
        ),
    ],
)
def test_executor_and_workers(options, name, workers, ramp):
    executor = chosen(**options).executor
    assert (executor.name, executor.workers) == (name, workers)
    assert getattr(executor, "_ramp", None) == ramp


def test_readers_suit_the_source_and_not_the_file_system_of_its_path(monkeypatch):
    asked = []
    monkeypatch.setattr(execution, "choose_ramp", lambda *args: asked.append(args) or RAMP)
    for source in (LocalSource("/ckpt"), RemoteLikeSource({})):
        choose_execution(ReadOptions(), source=source, total_bytes=1 << 30, not_in_processes="")
    assert asked == [("/ckpt", None), (None, 32)]


def test_no_task_is_longer_than_a_request():
    plan = choose_execution(
        ReadOptions(max_workers=2),
        source=RemoteLikeSource({}),
        total_bytes=1 << 30,
        not_in_processes="",
    )
    assert plan.sizes.next_split_bytes(record(0, 512 * MIB)) == 8 * MIB


@pytest.mark.parametrize(
    ("options", "workers", "ramp", "staging"),
    [
        ({}, 2, RAMP.at_most(16), 128),
        ({"memory_budget_bytes": 1024 * MIB}, 2, RAMP, 1024 - 8 * RAMP.limit),
        ({"memory_budget_bytes": 48 * MIB}, 2, RAMP.at_most(3), 24),
        ({"max_workers": 5}, 5, None, 256 - 8 * 5),
        ({"max_workers": 500}, 16, None, 128),
        ({"max_workers": 500, "memory_budget_bytes": MIB}, 1, None, 0.5),
    ],
)
def test_bodies_of_responses_are_in_the_budget(options, workers, ramp, staging):
    source = RemoteLikeSource({})
    source.limits = replace(source.limits, body_bytes=8 * MIB)
    plan = choose_execution(
        ReadOptions(**{"memory_budget_bytes": 256 * MIB, **options}),
        source=source,
        total_bytes=1 << 30,
        not_in_processes="",
    )
    assert (plan.executor.workers, getattr(plan.executor, "_ramp", None)) == (workers, ramp)
    assert plan.staging_bytes == staging * MIB
    is_less = workers < options.get("max_workers", 0)
    assert plan.downgrade == (
        f"{workers} readers, whose responses fit into the budget" if is_less else ""
    )


def test_little_is_read_by_one():
    assert chosen(total_bytes=MIB - 1).executor.name == "sequential"


def test_where_memory_allows_one_reader_there_is_no_ramp(monkeypatch):
    one = RampLimits(start=1, limit=1, cores=2)
    monkeypatch.setattr(execution, "choose_ramp", lambda *_: one)
    assert chosen().executor.name == "sequential"


def test_tasks_become_smaller_towards_the_end():
    sizes = TaskSizes(1024 * MIB, 16 * MIB, 256 << 10, lambda: 8)
    split = [sizes.next_split_bytes(record(n, 64 * MIB)) for n in range(16)]
    assert split == sorted(split, reverse=True)
    assert (split[0], split[8], split[-1]) == (16 * MIB, 16 * MIB, 4 * MIB)
    assert sizes.next_split_bytes(record(16, MIB)) == MIB // 4, "a record that nobody has counted"


def test_tasks_suit_the_readers_that_there_are_now():
    workers = [2]
    sizes = TaskSizes(256 * MIB, 16 * MIB, 256 << 10, lambda: workers[0])
    assert sizes.next_split_bytes(record(0, 0)) == 16 * MIB
    workers[0] = 16
    assert sizes.next_split_bytes(record(1, 0)) == 8 * MIB


def test_items_of_one_record_are_cut_alike_and_it_is_counted_once():
    sizes = TaskSizes(128 * MIB, 16 * MIB, 256 << 10, lambda: 8)
    split = [sizes.next_split_bytes(record(0, 64 * MIB)) for _ in range(5)]
    assert split == [8 * MIB] * 5
    assert sizes.next_split_bytes(record(1, 64 * MIB)) == 4 * MIB


def test_no_task_is_larger_than_a_slot():
    plan = chosen(executor="processes", max_workers=2, memory_budget_bytes=4 * MIB)
    assert plan.executor.slot_bytes == plan.sizes.next_split_bytes(record(0, MIB)) == MIB // 2
