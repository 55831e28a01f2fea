"""One load of a reader: look at it, plan, read, report.

reader, plan, planner --> ReaderTraits, Job, Execution --> Load.run --> reader.last_report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from paraload.adapters.dcp import plan_items
from paraload.adapters.dcp import reader_config as adapter
from paraload.adapters.dcp.preflight import (
    require_decoders,
    require_fitting,
    require_whole_tensors,
    require_writable,
)
from paraload.destinations.host import Destinations
from paraload.destinations.tensor_memory import dispatch_modes_off
from paraload.engine.budget import MemoryBudget
from paraload.engine.file_checks import changed_files, require_inside, seen_files
from paraload.engine.load import Load
from paraload.engine.setup import Job
from paraload.errors import CheckpointReadError, StalledReadError, summarize
from paraload.executors.choice import Execution, choose_execution, progress_hook
from paraload.geometry.overlap import overlapping_items
from paraload.report import ReadReport
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.runtime.gc_pause import collector_paused, objects_frozen
from paraload.runtime.interrupts import stopped_by_signals
from paraload.sources import FileStat


class ReaderSteps:
    """The overridable steps of a load: a reader's own, or those of a class for one without.

    Args:
        reader: any object.
        defaults: the class.
    """

    def __init__(self, reader: Any, defaults: type) -> None:
        self._reader = reader
        self._defaults = defaults

    def __getitem__(self, name: str) -> Any:
        """The step, bound to the reader."""
        own = getattr(self._reader, name, None)
        return own if own is not None else getattr(self._defaults, name).__get__(self._reader)

    def are_own(self, *names: str) -> bool:
        """Whether the reader has one of these of its own, rather than the class's or none."""
        owns = {name: getattr(self._reader, name, None) for name in names}
        return any(
            own is not None and getattr(own, "__func__", own) is not getattr(self._defaults, name)
            for name, own in owns.items()
        )


@stopped_by_signals
def read_with(
    reader: Any,
    plan: LoadPlan,
    planner: LoadPlanner,
    *,
    defaults: type,
    executor: str | None = None,
    max_workers: int | None = None,
    file_callback: Callable[[int, int], object] | None = None,
) -> Future[None]:
    """Read ``plan`` for any object that has ``path`` and ``storage_data``.

    Args:
        reader: an instance of the mixin, any ``FileSystemReader``, or of a class that took the
            mixin's methods.
        plan: what to read.
        planner: where to.
        defaults: the class whose steps are taken where the reader has none of its own.
        executor: instead of the reader's.
        max_workers: instead of the reader's.
        file_callback: told ``(files done, files)``.
    """
    started_s = time.monotonic()
    options = adapter.options_of(reader, executor=executor, max_workers=max_workers)
    traits = adapter.ReaderTraits.of(reader, options)
    steps = ReaderSteps(reader, defaults)
    with ExitStack() as stack:
        stack.enter_context(dispatch_modes_off())
        stack.enter_context(closing(traits.source))
        process = steps["_process_results"]
        hook = stack.enter_context(progress_hook(options, file_callback))
        looker = stack.enter_context(DaemonThreads.for_looks(options.stall_timeout_s))
        with collector_paused():
            job, execution = plan_job(reader, steps, traits, plan, planner, started_s)
            load = Load(
                job,
                budget=MemoryBudget(execution.staging_bytes),
                process=lambda results: process(results, plan, planner),
                on_progress=hook,
            )
            seen = seen_files(
                traits.source, job.specs, looker, path=job.path, retries=traits.options.retries
            )
            job.work.file_sizes = {path: stat.size for path, stat in seen.items()}
            if hasattr(traits.source, "root"):  # the absolute path of .metadata means something
                seen |= getattr(reader, "_metadata_before", {})
            job.destinations.note_writes()
            stack.enter_context(objects_frozen())
        report = _run(load, job, execution, seen, looker)
        reader.last_report = report
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _run(
    load: Load,
    job: Job,
    execution: Execution,
    seen: Mapping[str, FileStat],
    looker: DaemonThreads,
) -> ReadReport:
    """Run ``load``, on files that are the same at its end."""
    source, retries = job.work.source, job.work.retries
    try:
        report, failures = load.run(execution.executor)
        if failures:
            raise summarize(list(failures.values()), items=len(job.specs), path=job.path)
    except StalledReadError:
        raise  # to look at the files of a storage that stands still would stand still as well
    except CheckpointReadError as error:
        try:
            changed = changed_files(source, seen, looker, retries=0)
        except StalledReadError as stalled:
            error.add_note(f"could not check whether files have changed: {stalled}")
        else:
            if changed is not None:
                error.add_note(str(changed))  # most likely the reason
        raise
    if (changed := changed_files(source, seen, looker, retries=retries)) is not None:
        raise changed
    return report


def plan_job(
    reader: Any,
    steps: ReaderSteps,
    traits: adapter.ReaderTraits,
    plan: LoadPlan,
    planner: LoadPlanner,
    started_s: float,
) -> tuple[Job, Execution]:
    """Everything that can be said before the first byte is read."""
    path = adapter.path_text(reader.path)
    with adapter.planning_with(reader, traits):
        first = steps["_create_read_tasks"](plan, reader.storage_data)
    specs = plan_items.specs_of(first)
    if not traits.options.allow_outside_paths:
        require_inside(specs, path=path)
    traits.remember(specs, plan, reader.storage_data)
    work = traits.work(specs, steps["_make_format"]())
    require_decoders(specs, work, path=path)
    # The commit of a planner that may be resolved ahead is torch's, which does nothing.
    is_plain = plan_items.may_resolve_ahead(planner)
    has_own_commit = steps.are_own("_process_results")
    if is_plain:
        require_whole_tensors(plan, planner, path=path)
        destinations = Destinations(plan_items.resolved_tensors(plan, planner))
        require_writable(destinations, plan, path=path)
        # A hook may change shape and dtype, and an overridden step may not use the target.
        if work.narrow_tensor is None and not has_own_commit:
            require_fitting(specs, destinations, strict=traits.options.strict, path=path)
        ordered = overlapping_items(
            *destinations.spans(), partial(plan_items.block_in_target, plan)
        )
    else:
        destinations, ordered = Destinations(), {spec.item for spec in specs}
    if ordered:
        first = traits.first_tasks(specs, in_plan_order=True)
    execution = choose_execution(
        traits.options,
        source=traits.source,
        total_bytes=sum([spec.end - spec.start for spec in specs]),
        stays_here=traits.stays_here,
    )
    job = Job(
        path=path,
        specs=specs,
        first=first,
        destinations=destinations,
        destination=steps["_make_destination"](),
        ordered=ordered,
        work=work,
        split_bytes=execution.sizes.next_split_bytes,
        task_limit_bytes=execution.task_limit_bytes,
        max_gap_bytes=traits.knobs.max_gap_bytes,
        hand_over_landed=not is_plain or has_own_commit,
        watch_targets=is_plain,
        slow_reasons=[reason for reason in (traits.stays_here, execution.downgrade) if reason],
        strict=traits.options.strict,
        started_s=started_s,
    )
    return job, execution
