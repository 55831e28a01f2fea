"""What is read next, and whether there is memory for it.

    next_task:   ready  >  waiting for memory  >  first tasks
                   ^              |                    |
                   +--- begin() --+                    +-- headers, or blocks of small records

Ready tasks have their memory. Queued work starts as soon as the budget allows; only then do first
tasks start. If commits have an order, all headers are read first, and memory is given out in that
order: otherwise items that wait for an earlier one could hold the memory that it needs.

If a storage's streams only go forward, a file has one running task, and the others are behind it.
If commits have an order too, only one task runs at all.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from paraload.core.results import LandedItems, TaskResult
from paraload.core.tasks import LocateTask, ReadTask, RecordsTask
from paraload.engine.budget import MemoryBudget

Begin = Callable[[], Iterable[ReadTask]]


class Scheduler:
    """Gives tasks to an executor; ``in_flight`` of them have not come back.

    ``rank`` is the place of an item in the order of commits; ``None`` if they have no order.
    """

    def __init__(
        self, budget: MemoryBudget, *, rank: Callable[[int], tuple[int, ...]] | None = None
    ) -> None:
        self.in_flight = 0
        self._budget = budget
        self._rank = rank
        self._first: deque[ReadTask] = deque()
        self._ready: deque[ReadTask] = deque()
        self._waiting: list[tuple[tuple[int, ...], int, Begin]] = []  # a heap
        self._sequence = itertools.count()
        #: By item: the items that share the memory of its task, and the size of that.
        self._holding: dict[int, tuple[set[int], int]] = {}
        self._behind: dict[str, deque[ReadTask]] = {}
        self._one_by_one = False
        self._locates_left = 0

    def start(self, tasks: Sequence[ReadTask]) -> None:
        """The tasks that a load begins with."""
        for task in tasks:
            if isinstance(task, RecordsTask) and task.in_sequence:
                if self._rank is not None:
                    self._one_by_one = True
                elif task.path in self._behind:
                    self._behind[task.path].append(task)
                    continue
                else:
                    self._behind[task.path] = deque()
            self._enter(task)

    def _enter(self, task: ReadTask) -> None:
        self._locates_left += isinstance(task, LocateTask)
        if self._rank is None or isinstance(task, LocateTask):
            self._first.append(task)
        else:
            self.wait(task.items[0], task.cost_bytes, lambda: (task,))

    def ready(self, tasks: Iterable[ReadTask]) -> None:
        """Add tasks that need no memory, or have it."""
        self._ready.extend(tasks)

    def wait(self, item: int, cost_bytes: int, begin: Begin) -> None:
        """Call ``begin`` when ``cost_bytes`` are reserved; :meth:`release` gives them back."""
        rank = self._rank(item) if self._rank is not None else ()
        heapq.heappush(self._waiting, ((*rank, next(self._sequence)), cost_bytes, begin))

    def release(self, cost_bytes: int) -> None:
        """Memory that :meth:`wait` reserved is free again."""
        self._budget.release(cost_bytes)

    def item_left(self, item: int) -> None:
        """An item is done or has failed. With the last one of a task, its memory is free."""
        if item in self._holding:
            items, cost_bytes = self._holding.pop(item)
            items.remove(item)
            if not items:
                self._budget.release(cost_bytes)

    def returned(self, result: TaskResult) -> None:
        """A task came back. Its memory is free when none of its items is waiting any more."""
        task = result.task
        self.in_flight -= 1
        self._locates_left -= isinstance(task, LocateTask)
        if task.cost_bytes:
            items = {o.item for o in result.outcomes if not isinstance(o, LandedItems)}
            self._holding.update(dict.fromkeys(items, (items, task.cost_bytes)))
            if not items:
                self._budget.release(task.cost_bytes)
        if behind := self._behind.get(task.path):
            self._first.appendleft(behind.popleft())

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
                return self._next_first_task()
            _, cost_bytes, begin = self._waiting[0]
            if not self._budget.reserve(cost_bytes):
                return None if self._rank is not None else self._next_first_task()
            heapq.heappop(self._waiting)
            self._ready.extend(begin())
        return self._ready.popleft()

    def _next_first_task(self) -> ReadTask | None:
        if self._first:
            task = self._first[0]
            # Headers need no memory, so they are read although the budget is exhausted.
            if isinstance(task, LocateTask) or self._budget.reserve(task.cost_bytes):
                return self._first.popleft()
        return None
