"""What was read when: one entry for each task, up to a limit.

    TaskResult ---> Timeline.add ---> entries() ---> ReadReport.timeline
                        |
             full: neighbours are joined

A load of 1 GiB has about a hundred tasks, one of a TiB some seventy thousand. To keep reports
small, a full time line joins consecutive tasks of one worker in one file: two of them at first,
then four, eight and so on. The picture gets coarser; no byte is lost. If joining makes too little
room, as with nearly as many files as entries, later tasks are counted but not kept.
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Final

from paraload._trace import TaskTiming
from paraload.core.results import TaskResult

#: About 3 MiB, and every single task of a load of 100 GiB.
MAX_ENTRIES: Final = 10_000

_started: Final = attrgetter("started_s")


class Timeline:
    """Collects the entries of one load. ``tasks`` counts all tasks, those without an entry too."""

    def __init__(self, *, started_s: float, max_entries: int = MAX_ENTRIES) -> None:
        self._started_s = started_s
        self._max_entries = max_entries
        self._entries: list[TaskTiming] = []
        self._tasks_an_entry = 1
        self._is_full = False
        self.tasks = 0

    def add(self, result: TaskResult) -> None:
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
        return tuple(sorted(self._entries, key=_started))

    def _make_room(self) -> None:
        while self.tasks > self._tasks_an_entry * self._max_entries // 2:
            self._tasks_an_entry *= 2
        self._entries = _joined(self._entries, self._tasks_an_entry)
        # With less room than this, joining would soon be repeated for every task.
        self._is_full = len(self._entries) > self._max_entries * 3 // 4


def _joined(entries: list[TaskTiming], most_tasks: int) -> list[TaskTiming]:
    """Join each worker's consecutive entries in one file, up to ``most_tasks`` tasks each."""
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
    return replace(
        first,
        start=min(first.start, second.start),
        end=max(first.end, second.end),
        bytes_read=first.bytes_read + second.bytes_read,
        ended_s=max(first.ended_s, second.ended_s),
        tasks=first.tasks + second.tasks,
    )
