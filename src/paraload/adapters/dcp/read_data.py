"""One load of a reader: its configuration, the items of the plan, checks, then the engine.

reader         --> ReaderConfig
plan, planner  --> PlanItems --preflight--> LoadSetup --> Load --> reader.last_report
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from paraload.adapters.dcp.plan_items import items_of
from paraload.adapters.dcp.preflight import require_loadable
from paraload.adapters.dcp.reader_config import ReaderConfig
from paraload.destinations.tensor_memory import dispatch_modes_off
from paraload.engine.file_checks import changed_files, seen_files, unpinned
from paraload.engine.load import Load
from paraload.engine.setup import LoadSetup
from paraload.errors import CheckpointReadError, StalledReadError, summarize
from paraload.progress import progress_hook
from paraload.report import ReadReport
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.runtime.gc_pause import collector_paused, objects_frozen
from paraload.runtime.interrupts import stopped_by_signals
from paraload.sources import FileStat


@stopped_by_signals
def read_with(
    reader: Any,
    plan: LoadPlan,
    planner: LoadPlanner,
    *,
    defaults: type,
    file_callback: Callable[[int, int], object] | None = None,
    **overrides: Any,
) -> Future[None]:
    """Read ``plan`` for any object that has ``path`` and ``storage_data``.

    ``defaults`` is the class with the steps that the reader lacks. ``file_callback`` is called with
    ``(files done, files)``. ``overrides`` are options that override the reader's, unless ``None``.
    """
    started_s = time.monotonic()
    config = ReaderConfig(reader, defaults, **overrides)
    source, options = config.source, config.options
    with ExitStack() as stack:
        stack.enter_context(dispatch_modes_off())
        stack.enter_context(closing(source))
        on_progress = stack.enter_context(progress_hook(options.progress, file_callback))
        looker = stack.enter_context(DaemonThreads.for_looks(options.stall_timeout_s))
        process = config.step("_process_results")
        with collector_paused():
            setup = setup_of(config, plan, planner, started_s)
            load = Load(
                setup, process=lambda done: process(done, plan, planner), on_progress=on_progress
            )
            load.prepare()
            seen = seen_files(
                source, setup.specs, looker, path=config.path, retries=options.retries
            )
            setup.read_context.file_sizes = {path: stat.size for path, stat in seen.items()}
            seen = unpinned(source, seen, getattr(reader, "_metadata_before", {}))
            setup.targets.note_writes()
            stack.enter_context(objects_frozen())
        reader.last_report = _run(load, setup, seen, looker)
    done: Future[None] = Future()
    done.set_result(None)
    return done


def setup_of(
    config: ReaderConfig, plan: LoadPlan, planner: LoadPlanner, started_s: float
) -> LoadSetup:
    """Collect and check everything that is known before the first byte is read."""
    items = items_of(config, plan, planner)
    read_context = config.read_context(items.specs)
    require_loadable(items, config, read_context, plan, planner)
    return LoadSetup(
        path=config.path,
        options=config.options,
        specs=items.specs,
        tasks=items.tasks,
        make_tasks=config.make_tasks,
        read_context=read_context,
        started_s=started_s,
        targets=items.targets,
        destination=config.step("_make_destination")(),
        ordered=items.ordered,
        not_in_processes=config.not_in_processes,
        # The commit of a planner that is resolved ahead is torch's, which does nothing.
        hand_over_landed=config.is_overridden("_process_results") or not items.resolved_ahead,
        watch_targets=items.resolved_ahead,
    )


def _run(
    load: Load, setup: LoadSetup, seen: Mapping[str, FileStat], looker: DaemonThreads
) -> ReadReport:
    """Run ``load``, and require that no file changes meanwhile."""
    source, retries = setup.read_context.source, setup.read_context.retries
    try:
        report, failures = load.run()
        if failures:
            raise summarize(list(failures.values()), items=len(setup.specs), path=setup.path)
    except StalledReadError:
        raise  # checking the files of a stalled storage would stall too
    except CheckpointReadError as error:
        note: object
        try:
            note = changed_files(source, seen, looker, retries=0)  # most likely the reason
        except StalledReadError as stalled:
            note = f"could not check whether files have changed: {stalled}"
        if note is not None:
            error.add_note(str(note))
        raise
    if (changed := changed_files(source, seen, looker, retries=retries)) is not None:
        raise changed
    return report
