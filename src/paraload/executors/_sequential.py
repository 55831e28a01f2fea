"""One task after the other on the caller's thread."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from paraload._sink import TargetSink
from paraload._worker import run_task
from paraload.executors._base import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from paraload._result import TaskResult
    from paraload._sink import TargetMemory
    from paraload._task import ReadTask
    from paraload._work import Work

__all__ = ["SequentialExecutor"]


class SequentialExecutor:
    """:class:`~paraload.executors._base.ReadExecutor` without any concurrency."""

    name = "sequential"
    workers = 1

    def __init__(self) -> None:
        self.downgrades: list[str] = []

    def run(
        self,
        work: Work,
        feed: Callable[[], ReadTask | None],
        targets: Mapping[int, TargetMemory],
    ) -> Generator[TaskResult, None, None]:
        """Run each task when its result is asked for."""
        sink = TargetSink(targets)
        pending: deque[ReadTask] = deque()
        yield from drive(
            feed, lambda: 1, pending.append, lambda: run_task(pending.popleft(), work, sink)
        )
