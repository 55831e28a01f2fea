"""What was read when: one entry for each task, up to a limit.

    TaskResult ---> Timeline.add ---> entries() ---> ReadReport.timeline
                        |
             full: neighbours are joined

A load of 1 TiB has some seventy thousand tasks. A full time line joins consecutive tasks of one
worker in one file: two at first, then four, eight and so on. The picture gets coarser; no byte is
lost. If that makes too little room, as with many files, later tasks are counted but not kept.
"""

from dataclasses import replace
from operator import attrgetter
from typing import Final

from paraload.core.results import TaskResult
from paraload.report import FileTiming
from paraload.report.trace import TaskTiming

#: About 3 MiB, and every single task of a load of 100 GiB.
MAX_ENTRIES: Final = 10_000


class Timeline:
    """Collects the entries of one load; ``tasks`` and ``files`` also have what has no entry."""

    def __init__(self, *, started_s: float, max_entries: int = MAX_ENTRIES) -> None:
        self.tasks = 0
        self.files: dict[str, FileTiming] = {}
        self._started_s = started_s
        self._max_entries = max_entries
        self._entries: list[TaskTiming] = []
        self._tasks_an_entry = 1
        self._is_full = False

    def add(self, result: TaskResult) -> None:
        if len(self._entries) >= self._max_entries and not self._is_full:
            self._make_room()
        self.tasks += 1
        entry = TaskTiming(
            worker=result.worker,
            path=result.task.path,
            start=result.task.start,
            end=result.task.end,
            bytes_read=result.tally.bytes_read,
            started_s=result.started_s - self._started_s,
            ended_s=result.ended_s - self._started_s,
        )
        if not self._is_full:
            self._entries.append(entry)
        known = self.files.get(entry.path)
        self.files[entry.path] = FileTiming(
            started_s=min(entry.started_s, known.started_s) if known else entry.started_s,
            ended_s=max(entry.ended_s, known.ended_s) if known else entry.ended_s,
            bytes_read=entry.bytes_read + (known.bytes_read if known else 0),
        )

    def entries(self) -> tuple[TaskTiming, ...]:
        return tuple(sorted(self._entries, key=attrgetter("started_s")))

    def _make_room(self) -> None:
        while self.tasks > self._tasks_an_entry * self._max_entries // 2:
            self._tasks_an_entry *= 2
        self._entries = _joined(self._entries, self._tasks_an_entry)
        # With less room than this, joining would soon be repeated for every task.
        self._is_full = len(self._entries) > self._max_entries * 3 // 4


def _joined(entries: list[TaskTiming], most_tasks: int) -> list[TaskTiming]:
    """Join each worker's consecutive entries in one file, up to ``most_tasks`` tasks each."""
    joined: list[TaskTiming] = []
    for entry in sorted(entries, key=attrgetter("worker", "started_s")):
        last = joined[-1] if joined else entry
        tasks = last.tasks + entry.tasks
        is_next = joined and (last.worker, last.path) == (entry.worker, entry.path)
        if is_next and tasks <= most_tasks:
            joined[-1] = replace(
                last,
                start=min(last.start, entry.start),
                end=max(last.end, entry.end),
                bytes_read=last.bytes_read + entry.bytes_read,
                ended_s=max(last.ended_s, entry.ended_s),
                tasks=tasks,
            )
        else:
            joined.append(entry)
    return joined
