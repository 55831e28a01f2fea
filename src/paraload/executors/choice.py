"""Chooses the executor of a load, its number of workers and its memory. No torch."""

import sys
from dataclasses import dataclass
from typing import Final

from paraload.executors.base import ReadExecutor
from paraload.executors.processes.slots import SLOTS_PER_WORKER
from paraload.executors.ramp import RampLimits
from paraload.executors.threads import SequentialExecutor, ThreadExecutor
from paraload.options import DEFAULT_MEMORY_BUDGET_BYTES, MIN_MEMORY_BUDGET_BYTES, ReadOptions
from paraload.planning.read_tasks import PlanKnobs
from paraload.planning.task_sizes import TaskSizes
from paraload.runtime import resources
from paraload.sources import ByteSource
from paraload.sources.direct_io import READ_BYTES as DIRECT_READ_BYTES

#: One worker reads less than this before a second one has started.
_SHARE_FROM_BYTES: Final = 1 << 20
#: Longer slots of shared memory leave the processor's cache before the caller copies them on,
#: shorter ones cost more messages; 1, 2 and 8 MiB were all slower.
_MAX_SLOT_BYTES: Final = 4 << 20
_MIN_SLOT_BYTES: Final = 1 << 18
_IN_PROCESSES: Final = frozenset({"processes", "pool"})

#: Most threads at the start, of all ranks of the host. On a network file system, where each waits
#: for a server, also the fewest; no page cache was faster with more.
_START: Final = 16
#: Most threads later, of all ranks: one stream of a shared file system gave 2.0 GiB/s, 32 gave 8.5.
#: Distant servers need more.
_LIMIT: Final = 32
_NETWORK_LIMIT: Final = 64
#: One thread alone would be the sequential executor, which cannot become more.
_FEWEST: Final = 2
#: Memory of a thread (a block of small records and its results) and of a process with two slots.
_THREAD_BYTES: Final = 8 << 20
_PROCESS_BYTES: Final = 40 << 20
#: The share of the free memory that a load may use.
_USABLE_PART: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """An executor and the sizes that suit it.

    Attributes:
        staging_bytes: budget for bytes that wait for torch.
        task_limit_bytes: bytes that one task may deliver: what a slot of shared memory holds.
        downgrade: why this is not the requested executor; "" if it is.
    """

    executor: ReadExecutor
    staging_bytes: int
    sizes: TaskSizes
    task_limit_bytes: int
    downgrade: str = ""


def choose_execution(
    options: ReadOptions, *, source: ByteSource, total_bytes: int, not_in_processes: str
) -> Execution:
    """The executor that the options ask for, as far as memory and the work allow it.

    ``total_bytes``: of all records; ``not_in_processes``: why worker processes cannot do the work.
    """
    budget_bytes = options.memory_budget_bytes or resources.default_budget_bytes(
        DEFAULT_MEMORY_BUDGET_BYTES, MIN_MEMORY_BUDGET_BYTES
    )
    name = "threads" if options.executor == "auto" else options.executor
    downgrade = ""
    not_in_processes = not_in_processes or getattr(source, "not_in_processes", "")
    if not_in_processes and name in _IN_PROCESSES:
        downgrade = f"threads instead of {name}: {not_in_processes}"
        name = "threads"
    in_processes = name in _IN_PROCESSES
    workers, ramp = _workers(options, source, total_bytes, budget_bytes, in_processes=in_processes)
    slot_bytes = 0
    if body_bytes := source.limits.body_bytes:
        most = max(1, budget_bytes // 2 // body_bytes)
        if workers > most and options.max_workers is not None:
            downgrade = downgrade or f"{most} readers, whose responses fit into the budget"
        workers, ramp = min(workers, most), ramp and ramp.at_most(most)
        held_bytes = body_bytes * (ramp.limit if ramp else workers)
        budget_bytes = max(budget_bytes - held_bytes, budget_bytes // 2)
    if in_processes:
        # Slots get one half of the budget, staging behind them the other.
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


def _workers(
    options: ReadOptions,
    source: ByteSource,
    total_bytes: int,
    budget_bytes: int,
    *,
    in_processes: bool,
) -> tuple[int, RampLimits | None]:
    """The number of workers at the start, and its limits if it adapts."""
    if options.is_sequential or total_bytes < _SHARE_FROM_BYTES:
        return 1, None
    if options.max_workers is not None:
        return options.max_workers, None
    if in_processes:
        return choose_processes(), None
    ramp = choose_ramp(getattr(source, "root", None), source.limits.requests_in_flight)
    if options.direct_io:  # each thread has a buffer of its own
        ramp = ramp.at_most(budget_bytes // DIRECT_READ_BYTES)
    return ramp.start, ramp


def make_executor(
    name: str, *, workers: int, slot_bytes: int, ramp: RampLimits | None = None
) -> ReadExecutor:
    """The executor that is called ``name`` in the options; threads adapt their number to a ramp."""
    if name == "sequential":
        return SequentialExecutor()
    if name == "threads":
        return ThreadExecutor(workers, ramp)
    # Only on demand: importing multiprocessing and its pools takes 10 ms.
    from paraload.executors.processes.executor import ProcessExecutor  # noqa: PLC0415

    return ProcessExecutor(name, workers, slot_bytes)


def choose_ramp(path: str | None, requests_in_flight: int | None = None) -> RampLimits:
    """The number of reader threads for a storage.

    It does not depend on the size of files, since a reader holds a block and not a file. The limit
    does not depend on the cores, since a reader that waits for storage needs memory but no core.

    ``path``: a folder, if the storage is a file system; ``requests_in_flight``: its own number.
    """
    cores, ranks = _cores(), resources.local_ranks()
    start, limit = min(_START, cores), _LIMIT // ranks
    if requests_in_flight is not None:
        # Each connection has a rate of its own, so ranks may have more of them together.
        start, limit = min(_LIMIT, requests_in_flight) // ranks, requests_in_flight
    elif path is not None and resources.is_network_path(path):
        start, limit = _START // ranks, _NETWORK_LIMIT // ranks
    start = max(_FEWEST, start)
    most = _affordable(_THREAD_BYTES)
    if requests_in_flight is not None:  # which may be one, of a storage that has one connection
        most = min(most, requests_in_flight)
    return RampLimits(start=start, limit=max(start, limit), cores=cores).at_most(most)


def choose_processes() -> int:
    """One worker process for each core, as far as memory allows."""
    return min(_cores(), _affordable(_PROCESS_BYTES))


def _cores() -> int:
    return max(1, resources.usable_cores() // resources.local_ranks())


def _affordable(cost_bytes: int) -> int:
    """Workers that fit into this rank's share of the free memory; at least one."""
    usable_bytes = int(resources.available_memory_bytes() * _USABLE_PART)
    return max(1, usable_bytes // resources.local_ranks() // cost_bytes)
