"""What was read when: one entry for each task, as many as there is room for.

    TaskResult ---> Timeline.add ---> entries() ---> ReadReport.timeline
                        |
             full: neighbours become one

A load of 1 GiB has about a hundred tasks, one of a TiB some seventy thousand. So that a report
stays small, a full time line joins neighbours: tasks that one worker did one after the other in one
file, two of them at first, then four, eight and so on, everywhere alike. The picture gets coarser,
and no byte of it is lost. Where even that makes no room (nearly as many files as entries), later
tasks are counted and not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from paraload.report import TaskTiming

if TYPE_CHECKING:
    from paraload._result import TaskResult

__all__ = ["MAX_ENTRIES", "Timeline"]

#: About 3 MiB, and every single task of a load of 100 GiB.
MAX_ENTRIES: Final = 10_000


class Timeline:
    """Collects the entries of one load, whose clock began at ``started_s``.

    Attributes:
        tasks: that were added, those that found no room among them.
    """

    def __init__(self, *, started_s: float, max_entries: int = MAX_ENTRIES) -> None:
        self._started_s = started_s
        self._max_entries = max_entries
        self._entries: list[TaskTiming] = []
        self._tasks_an_entry = 1
        self._is_full = False
        self.tasks = 0

    def add(self, result: TaskResult) -> None:
        """Note one task."""
        if len(self._entries) >= self._max_entries and not self._is_full:
            self._make_room()
        self.tasks += 1
        if self._is_full:
            return
        self._entries.append(
            TaskTiming(
                worker=result.worker,
                path=result.task.path,
                start=result.task.start,
                end=result.task.end,
                bytes_read=result.tally.bytes_read,
                started_s=result.started_s - self._started_s,
                ended_s=result.ended_s - self._started_s,
            )
        )

    def entries(self) -> tuple[TaskTiming, ...]:
        """All that is known, in the order of the beginnings."""
        return tuple(sorted(self._entries, key=_started))

    def _make_room(self) -> None:
        while self.tasks > self._tasks_an_entry * self._max_entries // 2:
            self._tasks_an_entry *= 2
        self._entries = _joined(self._entries, self._tasks_an_entry)
        # Joining costs as much as so many tasks: with less room it would soon be done for each one.
        self._is_full = len(self._entries) > self._max_entries * 3 // 4


def _started(entry: TaskTiming) -> float:
    return entry.started_s


def _joined(entries: list[TaskTiming], most_tasks: int) -> list[TaskTiming]:
    """Each worker's neighbours in one file as one entry, of ``most_tasks`` tasks at most."""
    joined: list[TaskTiming] = []
    growing: dict[str, TaskTiming] = {}
    for entry in sorted(entries, key=_started):
        earlier = growing.get(entry.worker)
        if earlier is None:
            growing[entry.worker] = entry
        elif earlier.path == entry.path and earlier.tasks + entry.tasks <= most_tasks:
            growing[entry.worker] = _join(earlier, entry)
        else:
            joined.append(earlier)
            growing[entry.worker] = entry
    return [*joined, *growing.values()]


def _join(first: TaskTiming, second: TaskTiming) -> TaskTiming:
    return TaskTiming(
        worker=first.worker,
        path=first.path,
        start=min(first.start, second.start),
        end=max(first.end, second.end),
        bytes_read=first.bytes_read + second.bytes_read,
        started_s=first.started_s,
        ended_s=max(first.ended_s, second.ended_s),
        tasks=first.tasks + second.tasks,
    )
