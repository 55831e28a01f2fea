"""ReadExecutor: runs tasks.

    engine: start, then again and again:   submit ---> workers ---> ready ---> TaskResult
                                             ^                                     |
                                             +------ results lead to new tasks ----+

The engine owns the loop: an executor neither asks for tasks nor decides how long to wait, so that
a load has one deadline for everything that it waits for.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from paraload.core.memory import TargetMemory
from paraload.core.results import TaskResult
from paraload.core.tasks import ReadTask
from paraload.runtime.daemon_threads import PATIENCE_S
from paraload.workers.read_context import ReadContext


class ReadExecutor(Protocol):
    """Runs tasks and returns their results in the order of completion.

    Only one thread, the caller's, calls the methods. After :meth:`close` it can be started again.

    Attributes:
        name: for reports.
        workers: concurrent readers; the most so far if the executor adapts their number.
        downgrades: why the run is slower than requested; grows during the run.
        stuck_hint: what happens to tasks that are still running when a stalled load ends.
    """

    name: str
    workers: int
    downgrades: list[str]
    stuck_hint: str

    def start(self, context: ReadContext, targets: Mapping[int, TargetMemory]) -> None:
        """Begin a run.

        Args:
            context: what all tasks need.
            targets: memory by item or staging number; may grow while the run goes on.

        Raises:
            InvalidOptionError: it cannot run the tasks: a hook does not pickle, say.
        """

    def capacity(self) -> int:
        """How many more tasks it takes now; zero or less if none."""

    def submit(self, task: ReadTask) -> None:
        """Run ``task``."""

    def ready(self, timeout_s: float | None) -> Sequence[TaskResult]:
        """Wait for one or more results; an empty sequence after ``timeout_s``, unless ``None``.

        Their ``data`` is valid until the next :meth:`submit` or :meth:`ready`. Tasks that must run
        on the caller's thread, such as hooks of sequential loads and what is longer than a slot of
        shared memory, run in this call, whatever the timeout.

        Raises:
            WorkerDiedError: a worker process has died.
        """

    def running(self) -> Sequence[ReadTask]:
        """The tasks that have started and not come back."""

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """End the run at any time, even before it started; drop the results that are left.

        No thread, process, descriptor or shared memory is left when it returns, except for threads
        that are still stuck in one read after ``patience_s``.
        """
