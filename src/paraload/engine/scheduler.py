"""What is read next, and whether there is memory for it.

    next_task:   ready  >  waiting for memory  >  new ground
                   ^              |                    |
                   +--- begin() --+                    +-- headers, or blocks of small records

A storage whose streams only go forward has one task of a file at a time; the others are behind it.
Where commits have an order too, there is only one task at all.

Ready tasks have their memory. Work that waits is begun as soon as the budget admits it, before new
ground is broken. Where commits have an order, all headers are read first, and memory is given out
in that order: otherwise items that are read, and wait for an earlier one, could hold the memory
that the earlier one needs.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from paraload.core.results import LandedItems, TaskResult
from paraload.core.tasks import LocateTask, ReadTask, RecordsTask
from paraload.engine.budget import MemoryBudget


@dataclass(slots=True)
class _Reservation:
    """Memory of a task of whole records, held until all of its items are done."""

    cost_bytes: int
    items_left: int


@dataclass(order=True, slots=True)
class _Waiting:
    """Work that waits for memory; ``begin`` takes the memory and makes the tasks."""

    rank: tuple[int, ...]
    cost_bytes: int = field(compare=False)
    begin: Callable[[], Iterable[ReadTask]] = field(compare=False)


class Feed:
    """Gives tasks to an executor.

    Args:
        budget: staging memory.
        rank: the place of an item in the order of commits; ``None`` if commits have no order.

    Attributes:
        in_flight: tasks that were given and have not come back.
    """

    def __init__(
        self, budget: MemoryBudget, *, rank: Callable[[int], tuple[int, ...]] | None = None
    ) -> None:
        self.in_flight = 0
        self._budget = budget
        self._rank = rank
        self._first: deque[ReadTask] = deque()
        self._ready: deque[ReadTask] = deque()
        self._waiting: list[_Waiting] = []
        self._sequence = itertools.count()
        self._holding: dict[int, _Reservation] = {}  # by item
        self._behind: dict[str, deque[ReadTask]] = {}  # by file
        self._one_by_one = False
        self._locates_left = 0

    def start(self, tasks: Sequence[ReadTask]) -> None:
        """The tasks that a load begins with."""
        for task in tasks:
            in_sequence = isinstance(task, RecordsTask) and task.in_sequence
            if in_sequence and self._rank is not None:
                self._one_by_one = True
            elif in_sequence and task.path in self._behind:
                self._behind[task.path].append(task)
                continue
            elif in_sequence:
                self._behind[task.path] = deque()
            self._enter(task)

    def _enter(self, task: ReadTask, *, ahead: bool = False) -> None:
        if isinstance(task, LocateTask):
            self._locates_left += 1
        elif self._rank is not None:
            self.wait(task.items[0], task.cost_bytes, lambda: [task])
            return
        if ahead:
            self._first.appendleft(task)
        else:
            self._first.append(task)

    def ready(self, tasks: Iterable[ReadTask]) -> None:
        """Add tasks that need no memory, or have it."""
        self._ready.extend(tasks)

    def wait(self, item: int, cost_bytes: int, begin: Callable[[], Iterable[ReadTask]]) -> None:
        """Call ``begin`` when ``cost_bytes`` are reserved; :meth:`release` gives them back."""
        rank = self._rank(item) if self._rank is not None else ()
        heapq.heappush(self._waiting, _Waiting((*rank, next(self._sequence)), cost_bytes, begin))

    def release(self, cost_bytes: int) -> None:
        """Memory that :meth:`wait` reserved is free again."""
        self._budget.release(cost_bytes)

    def item_left(self, item: int) -> None:
        """An item is done or has failed; with the last one of a task, its memory is free."""
        if (reservation := self._holding.pop(item, None)) is not None:
            reservation.items_left -= 1
            if not reservation.items_left:
                self._budget.release(reservation.cost_bytes)

    def returned(self, result: TaskResult) -> None:
        """A task came back. Its memory is free when none of its items is waiting any more."""
        task = result.task
        self.in_flight -= 1
        self._locates_left -= isinstance(task, LocateTask)
        if task.cost_bytes:
            waiting = [o.item for o in result.outcomes if not isinstance(o, LandedItems)]
            if waiting:
                held = _Reservation(task.cost_bytes, len(waiting))
                self._holding.update(dict.fromkeys(waiting, held))
            else:
                self._budget.release(task.cost_bytes)
        if behind := self._behind.get(task.path):
            self._enter(behind.popleft(), ahead=True)

    def next_task(self) -> ReadTask | None:
        """A task that can run now; ``None`` if all others wait for one that is running."""
        if self._one_by_one and self.in_flight:
            return None
        task = self._choose()
        self.in_flight += task is not None
        return task

    def _choose(self) -> ReadTask | None:
        while not self._ready:
            if self._rank is not None and self._locates_left:
                return self._first.popleft() if self._first else None
            if not self._waiting:
                return self._break_ground()
            if not self._budget.reserve(self._waiting[0].cost_bytes):
                return None if self._rank is not None else self._break_ground()
            self._ready.extend(heapq.heappop(self._waiting).begin())
        return self._ready.popleft()

    def _break_ground(self) -> ReadTask | None:
        # The cost of reading headers is 0, which a full budget would refuse too.
        if self._first and (
            isinstance(self._first[0], LocateTask)
            or self._budget.reserve(self._first[0].cost_bytes)
        ):
            return self._first.popleft()
        return None
