"""How a load is run: executor, workers, memory, and progress hooks. No torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

from paraload.core.tasks import RecordSpec
from paraload.executors import make_executor
from paraload.executors.base import ReadExecutor
from paraload.executors.processes.slots import SLOTS_PER_WORKER
from paraload.executors.ramp import RampLimits
from paraload.executors.width import choose_processes, choose_ramp
from paraload.options import DEFAULT_MEMORY_BUDGET_BYTES, MIN_MEMORY_BUDGET_BYTES, ReadOptions
from paraload.planning.read_tasks import PlanKnobs, split_bytes_for
from paraload.progress import ProgressBar, ProgressHook, ReadProgress
from paraload.runtime.resources import default_budget_bytes
from paraload.sources import ByteSource
from paraload.sources.direct_io import READ_BYTES as DIRECT_READ_BYTES

#: Less than this has been read before a second worker has started.
_SHARE_FROM_BYTES: Final = 1 << 20
#: A slot of shared memory at most. Longer ones leave the processor's cache before the caller
#: copies them on, shorter ones cost more messages; 1, 2 and 8 MiB were all slower.
_MAX_SLOT_BYTES: Final = 4 << 20
_MIN_SLOT_BYTES: Final = 1 << 18
_IN_PROCESSES: Final = frozenset({"processes", "pool"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """An executor and the sizes that suit it.

    Attributes:
        executor: who runs the tasks.
        staging_bytes: budget for bytes that wait for torch.
        sizes: of the tasks that read located records.
        task_limit_bytes: bytes that one task may deliver: what a slot of shared memory takes.
        downgrade: why this is not the executor that was asked for; "" if it is.
    """

    executor: ReadExecutor
    staging_bytes: int
    sizes: TaskSizes
    task_limit_bytes: int
    downgrade: str = ""


class TaskSizes:
    """Sizes of tasks: big while much is left to read, small towards the end.

    Big tasks cost least; small ones at the end let all readers end at about the same time.

    Args:
        total_bytes: of all records.
        limit_bytes: of a task.
        least_bytes: of a task.
        workers: readers at once, now.
    """

    def __init__(
        self, total_bytes: int, limit_bytes: int, least_bytes: int, workers: Callable[[], int]
    ) -> None:
        self._left_bytes = total_bytes
        self._limits = limit_bytes, least_bytes
        self._workers = workers
        self._record: tuple[str, int] | None = None
        self._split_bytes = 0

    def next_split_bytes(self, spec: RecordSpec) -> int:
        """Bytes that one task reads of the next record.

        Items of one record are cut alike, so that they can share its reads.
        """
        record = spec.path, spec.start
        if record != self._record:
            self._record = record
            workers = self._workers()
            self._split_bytes = split_bytes_for(self._left_bytes, workers, *self._limits)
            self._left_bytes -= spec.length
        return self._split_bytes


def choose_execution(
    options: ReadOptions, *, source: ByteSource, total_bytes: int, stays_here: str
) -> Execution:
    """What the options ask for, as far as reader and work allow it.

    Args:
        options: of the load.
        source: of the checkpoint.
        total_bytes: of the records.
        stays_here: why the work cannot be sent to other processes; "" if it can.
    """
    budget_bytes = options.memory_budget_bytes or default_budget_bytes(
        DEFAULT_MEMORY_BUDGET_BYTES, MIN_MEMORY_BUDGET_BYTES
    )
    name = "threads" if options.executor == "auto" else options.executor
    downgrade = ""
    if stays_here and name in _IN_PROCESSES:
        downgrade = f"threads instead of {name}: {stays_here}"
        name = "threads"
    in_processes = name in _IN_PROCESSES
    workers, ramp = 1, None
    if not options.is_sequential and total_bytes >= _SHARE_FROM_BYTES:
        workers, ramp = _choose_workers(options, source, budget_bytes, in_processes=in_processes)
    slot_bytes = 0
    if in_processes:
        # Half of the budget is for slots, so that staging behind them has the other.
        workers = max(1, min(workers, budget_bytes // 2 // SLOTS_PER_WORKER // _MIN_SLOT_BYTES))
        slot_bytes = min(_MAX_SLOT_BYTES, budget_bytes // 2 // (SLOTS_PER_WORKER * workers))
    if workers == 1:
        name, slot_bytes = "sequential", 0
    executor = make_executor(name, workers=workers, slot_bytes=slot_bytes, ramp=ramp)
    knobs = PlanKnobs.of(source.limits)
    limit_bytes = min(slot_bytes or knobs.split_bytes, knobs.split_bytes)
    return Execution(
        executor=executor,
        staging_bytes=budget_bytes - slot_bytes * SLOTS_PER_WORKER * workers,
        sizes=TaskSizes(total_bytes, limit_bytes, knobs.min_split_bytes, lambda: executor.workers),
        task_limit_bytes=slot_bytes or sys.maxsize,
        downgrade=downgrade,
    )


def _choose_workers(
    options: ReadOptions, source: ByteSource, budget_bytes: int, *, in_processes: bool
) -> tuple[int, RampLimits | None]:
    """The number that was asked for, exactly; or the one to begin with, and where it may lead."""
    if options.max_workers is not None:
        return options.max_workers, None
    if in_processes:
        return choose_processes(), None
    ramp = choose_ramp(getattr(source, "root", None), source.limits.requests_in_flight)
    if options.direct_io:
        ramp = ramp.at_most(budget_bytes // DIRECT_READ_BYTES)  # what they read through is memory
    return ramp.start, ramp


@contextmanager
def progress_hook(
    options: ReadOptions, file_callback: Callable[[int, int], object] | None
) -> Iterator[ProgressHook | None]:
    """One hook for all that the options and ``file_callback`` ask for; closes a bar at the end."""
    hooks: list[ProgressHook] = []
    if file_callback is not None:
        hooks.append(_count_files(file_callback))
    if callable(options.progress):
        hooks.append(options.progress)

    def tell(progress: ReadProgress, /) -> None:
        for hook in hooks:
            hook(progress)

    with ProgressBar() if options.progress is True else nullcontext() as bar:
        if bar is not None:
            hooks.append(bar)
        yield tell if hooks else None


def _count_files(callback: Callable[[int, int], object]) -> ProgressHook:
    """Calls ``callback(files done, files)`` once for each file."""
    told = 0

    def tell(progress: ReadProgress, /) -> None:
        nonlocal told
        while told < progress.files_done:
            told += 1
            callback(told, progress.files_total)

    return tell
