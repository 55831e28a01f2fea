"""The scheduler: what is read next, within the memory budget."""

from __future__ import annotations

from paraload.core.results import LandedItems, Raw, ReadTally, TaskResult
from paraload.core.tasks import LocateTask, ReadTask, RecordsTask
from paraload.engine.budget import MemoryBudget
from paraload.engine.scheduler import Scheduler


def task(item, cost=0, path="a"):
    return ReadTask(path=path, start=0, end=1, items=(item,), cost_bytes=cost)


def records(item, cost=0, path="a"):
    return RecordsTask(
        path=path,
        start=0,
        end=1,
        items=(item,),
        cost_bytes=cost,
        specs=(),
        as_stream=True,
        in_sequence=True,
    )


def locate(item):
    return LocateTask(path="a", start=0, end=1, items=(item,), specs=())


def result(of, *outcomes):
    return TaskResult(
        task=of, outcomes=outcomes, tally=ReadTally(), started_s=0, ended_s=0, worker=""
    )


def waits(item):
    return Raw(item=item, data=memoryview(b""))


def landed(*items):
    return LandedItems(items=items, nbytes=0, verified_bytes=0, unverified=0)


def given_items(scheduler):
    """All items that can be given now."""
    items = []
    while (given := scheduler.next_task()) is not None:
        items.append(given.items[0])
    return items


def test_ready_comes_before_waiting_before_new_ground():
    scheduler = Scheduler(MemoryBudget(100))
    scheduler.start([task(1)])
    scheduler.wait(2, 10, lambda: [task(2)])
    scheduler.ready([task(3)])
    assert given_items(scheduler) == [3, 2, 1]


def test_the_budget_holds_new_ground_back_until_an_item_has_left():
    scheduler = Scheduler(MemoryBudget(100))
    first, second = task(1, 60), task(2, 60)
    scheduler.start([first, second])
    assert given_items(scheduler) == [1]
    scheduler.returned(result(first, waits(1)))
    assert given_items(scheduler) == []
    scheduler.item_left(1)
    assert given_items(scheduler) == [2]


def test_items_that_land_at_once_hold_nothing_and_the_others_of_their_task_do():
    scheduler = Scheduler(MemoryBudget(100))
    many = ReadTask(path="a", start=0, end=1, items=(1, 2, 3), cost_bytes=60)
    scheduler.start([many, task(4, 60), task(5, 60)])
    assert given_items(scheduler) == [1]
    scheduler.returned(result(many, landed(2), waits(1), waits(3)))
    scheduler.item_left(3)
    assert given_items(scheduler) == []
    scheduler.item_left(1)
    assert given_items(scheduler) == [4]
    scheduler.returned(result(task(4, 60), landed(4)))
    assert given_items(scheduler) == [5]


def test_an_oversize_item_goes_alone():
    scheduler = Scheduler(MemoryBudget(100))
    oversize = task(1, 1000)
    scheduler.start([oversize, task(2, 1)])
    assert given_items(scheduler) == [1]
    scheduler.returned(result(oversize, waits(1)))
    scheduler.item_left(1)
    assert given_items(scheduler) == [2]


def test_headers_need_no_memory():
    scheduler = Scheduler(MemoryBudget(10))
    scheduler.start([task(1, 10), locate(2), locate(3)])
    assert given_items(scheduler) == [1, 2, 3]


def test_where_order_matters_memory_is_given_in_that_order_after_all_headers():
    scheduler = Scheduler(MemoryBudget(100), rank=lambda item: (item,))
    header = locate(3)
    first = task(1, 60)
    scheduler.start([task(2, 60), header, first])
    assert given_items(scheduler) == [3]
    scheduler.returned(result(header))
    scheduler.wait(0, 60, lambda: [task(0)])
    assert given_items(scheduler) == [0]
    scheduler.release(60)
    assert given_items(scheduler) == [1]
    scheduler.returned(result(first, waits(1)))
    assert given_items(scheduler) == []
    scheduler.item_left(1)
    assert given_items(scheduler) == [2]


def test_a_file_whose_streams_go_forward_has_one_task_at_a_time():
    scheduler = Scheduler(MemoryBudget(100))
    first, second, third = records(1), records(2), records(3, path="b")
    scheduler.start([first, second, third])
    assert given_items(scheduler) == [1, 3]
    scheduler.returned(result(third))
    assert given_items(scheduler) == []
    scheduler.returned(result(first))
    assert given_items(scheduler) == [2]


def test_and_one_task_at_all_where_order_matters():
    scheduler = Scheduler(MemoryBudget(100), rank=lambda item: (item,))
    first, second = records(1), records(2, path="b")
    scheduler.start([second, first])
    assert given_items(scheduler) == [1]
    scheduler.returned(result(first))
    assert given_items(scheduler) == [2]
