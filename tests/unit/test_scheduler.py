"""The scheduler: what is read next, within the memory budget."""

from __future__ import annotations

from paraload.core.results import LandedItems, Raw, ReadTally, TaskResult
from paraload.core.tasks import LocateTask, ReadTask, RecordsTask
from paraload.engine.budget import MemoryBudget
from paraload.engine.scheduler import Feed


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


def given_items(feed):
    """All items that can be given now."""
    items = []
    while (given := feed.next_task()) is not None:
        items.append(given.items[0])
    return items


def test_ready_comes_before_waiting_before_new_ground():
    feed = Feed(MemoryBudget(100))
    feed.start([task(1)])
    feed.wait(2, 10, lambda: [task(2)])
    feed.ready([task(3)])
    assert given_items(feed) == [3, 2, 1]


def test_the_budget_holds_new_ground_back_until_an_item_has_left():
    feed = Feed(MemoryBudget(100))
    first, second = task(1, 60), task(2, 60)
    feed.start([first, second])
    assert given_items(feed) == [1]
    feed.returned(result(first, waits(1)))
    assert given_items(feed) == []
    feed.item_left(1)
    assert given_items(feed) == [2]


def test_items_that_land_at_once_hold_nothing_and_the_others_of_their_task_do():
    feed = Feed(MemoryBudget(100))
    many = ReadTask(path="a", start=0, end=1, items=(1, 2, 3), cost_bytes=60)
    feed.start([many, task(4, 60), task(5, 60)])
    assert given_items(feed) == [1]
    feed.returned(result(many, landed(2), waits(1), waits(3)))
    feed.item_left(3)
    assert given_items(feed) == []
    feed.item_left(1)
    assert given_items(feed) == [4]
    feed.returned(result(task(4, 60), landed(4)))
    assert given_items(feed) == [5]


def test_an_oversize_item_goes_alone():
    feed = Feed(MemoryBudget(100))
    oversize = task(1, 1000)
    feed.start([oversize, task(2, 1)])
    assert given_items(feed) == [1]
    feed.returned(result(oversize, waits(1)))
    feed.item_left(1)
    assert given_items(feed) == [2]


def test_headers_need_no_memory():
    feed = Feed(MemoryBudget(10))
    feed.start([task(1, 10), locate(2), locate(3)])
    assert given_items(feed) == [1, 2, 3]


def test_where_order_matters_memory_is_given_in_that_order_after_all_headers():
    feed = Feed(MemoryBudget(100), rank=lambda item: (item,))
    header = locate(3)
    first = task(1, 60)
    feed.start([task(2, 60), header, first])
    assert given_items(feed) == [3]
    feed.returned(result(header))
    feed.wait(0, 60, lambda: [task(0)])
    assert given_items(feed) == [0]
    feed.release(60)
    assert given_items(feed) == [1]
    feed.returned(result(first, waits(1)))
    assert given_items(feed) == []
    feed.item_left(1)
    assert given_items(feed) == [2]


def test_a_file_whose_streams_go_forward_has_one_task_at_a_time():
    feed = Feed(MemoryBudget(100))
    first, second, third = records(1), records(2), records(3, path="b")
    feed.start([first, second, third])
    assert given_items(feed) == [1, 3]
    feed.returned(result(third))
    assert given_items(feed) == []
    feed.returned(result(first))
    assert given_items(feed) == [2]


def test_and_one_task_at_all_where_order_matters():
    feed = Feed(MemoryBudget(100), rank=lambda item: (item,))
    first, second = records(1), records(2, path="b")
    feed.start([second, first])
    assert given_items(feed) == [1]
    feed.returned(result(first))
    assert given_items(feed) == [2]
