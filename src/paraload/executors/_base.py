"""ReadExecutor: who runs tasks. One way of running them is one file beside this one.

      feed() ---> submit ---> workers ---> wait ---> TaskResult ---> caller
        ^                                                              |
        +---------------- may have new tasks because of it <-----------+

The caller's thread alone drives this loop: it asks the feed for tasks while there is room, hands
one result at a time to the caller, and asks again. A feed that answers ``None`` has nothing *now*;
with nothing in flight either, the run is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from paraload._daemons import no_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from paraload._result import TaskResult
    from paraload._sink import TargetMemory
    from paraload._task import ReadTask
    from paraload._work import Work
    from paraload.errors import StalledReadError

__all__ = ["STUCK", "ReadExecutor", "drive", "stalled"]

Result = TypeVar("Result")


STUCK: Final = (
    "A thread that is stuck cannot be ended: it may still write to the tensors that it reads into,"
    " so do not use them again in this process"
)


class ReadExecutor(Protocol):
    """Runs tasks and yields their results in the order of completion.

    Closing the generator, an exception in it, and its end all tear down everything it made: no
    thread, process, descriptor or shared memory is left when control returns.
    """

    name: str
    #: Readers at once; of an executor that finds out how many, the most that there have been.
    workers: int
    #: Why the run is slower than requested; grows during the run.
    downgrades: list[str]

    def run(
        self,
        work: Work,
        feed: Callable[[], ReadTask | None],
        targets: Mapping[int, TargetMemory],
    ) -> Generator[TaskResult, None, None]:
        """Run what ``feed`` gives until it is dry and nothing is in flight.

        Args:
            work: what all tasks need.
            feed: the next task, or ``None``; called on the caller's thread only.
            targets: memory by item or staging number; may grow while the run goes on.

        Yields:
            results; their ``data`` is valid until the next one is asked for.
        """


def stalled(tasks: Iterable[ReadTask], timeout_s: float, hint: str) -> StalledReadError:
    """The error for ``tasks`` that were begun and are not heard of any more."""
    held = "; ".join(f"{task.path!r} bytes [{task.start}, {task.end})" for task in tasks)
    return no_answer(timeout_s, f"these were being read: {held}", hint)


def drive(
    feed: Callable[[], ReadTask | None],
    capacity: Callable[[], int],
    submit: Callable[[ReadTask], None],
    wait: Callable[[], Result],
    help_out: Callable[[ReadTask], Result | None] | None = None,
) -> Generator[Result, None, None]:
    """Keep up to ``capacity()`` tasks in flight; the loop that every executor shares.

    Args:
        feed: the next task, or ``None``.
        capacity: tasks in flight at most; may change.
        submit: give a task to a worker.
        wait: the next result of a worker.
        help_out: called when all workers are busy: the result of a task, done on this thread; or
            ``None`` to wait for a worker instead.
    """
    in_flight = 0
    held: ReadTask | None = None
    while True:
        while in_flight < capacity() and (task := held or feed()) is not None:
            held = None
            submit(task)
            in_flight += 1
        if not in_flight:
            return
        held = held or (feed() if help_out is not None else None)
        if held is not None and help_out is not None and (helped := help_out(held)) is not None:
            held = None
            yield helped
            continue
        result = wait()
        in_flight -= 1
        yield result
