"""ReadExecutor: runs tasks. Each way of running them is one file beside this one.

    engine: start, then again and again:   submit ---> workers ---> ready ---> TaskResult
                                             ^                                     |
                                             +------ results lead to new tasks ----+

The engine owns the loop: an executor neither asks for tasks nor decides how long to wait, so that
a load can also wait for something else, and has one deadline for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from paraload.core.memory import TargetMemory
from paraload.core.results import TaskResult
from paraload.core.tasks import ReadTask
from paraload.runtime.daemon_threads import PATIENCE_S
from paraload.workers.read_context import Work


class ReadExecutor(Protocol):
    """Runs tasks and returns their results in the order of completion.

    Only one thread, the caller's, calls the methods. After :meth:`close` it can be started again.

    Attributes:
        name: as reports have it.
        workers: readers at once; of an executor that finds out how many, the most so far.
        downgrades: why the run is slower than requested; grows during the run.
        stuck_hint: what becomes of tasks that are still running when a stalled load ends.
    """

    name: str
    workers: int
    downgrades: list[str]
    stuck_hint: str

    def start(self, work: Work, targets: Mapping[int, TargetMemory]) -> None:
        """Begin a run.

        Args:
            work: what all tasks need.
            targets: memory by item or staging number; may grow while the run goes on.

        Raises:
            InvalidOptionError: the executor cannot run ``work``, as with hooks that do not pickle.
        """

    def capacity(self) -> int:
        """How many more tasks it takes now; not positive if none."""

    def submit(self, task: ReadTask) -> None:
        """Run ``task``."""

    def ready(self, timeout_s: float | None) -> Sequence[TaskResult]:
        """Wait for results.

        Tasks that no other thread may run, such as hooks of sequential loads, run in this call and
        take as long as they take.

        Args:
            timeout_s: how long to wait; ``None`` waits forever.

        Returns:
            One or more results; their ``data`` is valid until the next :meth:`submit` or
            :meth:`ready`. None after ``timeout_s``.

        Raises:
            WorkerDiedError: a worker process has died.
        """

    def running(self) -> Sequence[ReadTask]:
        """The tasks that were begun and have not come back."""

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """End the run at any time, even before it started: no result comes any more.

        No thread, process, descriptor or shared memory is left when it returns, except for threads
        that are still stuck in one read after ``patience_s``.
        """
