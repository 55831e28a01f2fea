"""One task after the other: the caller waits for each of them.

    caller ---task---> one thread: plain reads      a storage that stands still is an error
       |
       `-----task---> the caller's thread: hooks, streams of another file system

A system call cannot be given a deadline, so plain reads are made by a thread that the caller waits
for. Hooks stay on the caller's thread, where a debugger finds them.
"""

from __future__ import annotations

from collections.abc import Mapping

from paraload.core.memory import TargetMemory
from paraload.core.tasks import ReadTask, RecordsTask
from paraload.executors.threads import ThreadExecutor, ThreadTeam
from paraload.runtime.daemon_threads import PATIENCE_WITH_STALLED_S
from paraload.workers.read_context import Work
from paraload.workers.sinks import TargetSink


class SequentialExecutor(ThreadExecutor):
    """:class:`~paraload.executors.base.ReadExecutor` without any concurrency."""

    name = "sequential"

    def __init__(self) -> None:
        super().__init__(workers=1)

    def start(self, work: Work, targets: Mapping[int, TargetMemory]) -> None:
        """Start the thread, if there is anything for it to do."""
        refusals: list[str] = []  # no downgrade: the caller's thread is not slower
        self._team = ThreadTeam(work, TargetSink(targets), refusals)
        if work.stall_timeout_s is not None and not work.hooks:
            self._team.resize(1)

    def capacity(self) -> int:
        return 1 - self._team.in_flight

    def submit(self, task: ReadTask) -> None:
        self._team.submit(task, here=isinstance(task, RecordsTask) and task.as_stream)

    def close(self, patience_s: float = PATIENCE_WITH_STALLED_S) -> None:
        super().close(min(patience_s, PATIENCE_WITH_STALLED_S))
