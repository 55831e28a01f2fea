"""``paraload.load``: ``dcp.load`` with a parallel reader, in one call.

It also avoids the overhead of ``dcp.load`` itself. With this reader, ``dcp.load`` of 50,000 small
tensors took 3.5 s, and only 0.5 s of that was reading. The rest was garbage collection of the new
metadata and plan (paused here, except while user code or the reader runs), ``isinstance(...,
Stateful)`` for each tensor (0.6 s; ``hasattr`` rules most of them out), and planning
(``quick_planner``).
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, closing, nullcontext
from traceback import StackSummary
from typing import Any, Final, Unpack, cast

from torch import distributed
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from paraload.adapters.dcp.planner_steps import steps_replaced
from paraload.adapters.dcp.planning_errors import misplanned_named
from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.adapters.dcp.rank_errors import portable, raising_portable, ranks_error
from paraload.adapters.dcp.reader_choice import Reader, has_not_answered, reader_for, source_of
from paraload.adapters.dcp.urls import require_path
from paraload.core.compat import load_state_dict
from paraload.errors import (
    CheckpointReadError,
    InvalidOptionError,
    MetadataError,
    MissingMetadataError,
    UnsafeMetadataError,
)
from paraload.options import ReadOptions, ReadOptionsDict
from paraload.report import ReadReport
from paraload.runtime.gc_pause import collector_paused, collector_resumed
from paraload.runtime.interrupts import carried, stopped_by_signals
from paraload.sources.urls import without_credentials

_log = logging.getLogger("paraload")

#: Marks the empty plan of a rank that keeps its own.
_KEPT: Final = "paraload: kept by its rank"


def load(
    state_dict: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    planner: LoadPlanner | None = None,
    process_group: ProcessGroup | None = None,
    no_dist: bool = False,
    options: ReadOptions | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **keywords: Unpack[ReadOptionsDict],
) -> ReadReport:
    """Load a checkpoint into ``state_dict``, in place, as ``dcp.load`` does.

    Args:
        state_dict: tensors of the saved shapes, on the devices that they should load to. Values
            with ``state_dict`` and ``load_state_dict`` methods, such as modules, load too.
        path: folder or URL of a DCP or safetensors checkpoint, or a ``.safetensors`` file.
        planner: a planner to use instead of torch's ``DefaultLoadPlanner``.
        process_group: the ranks that load together; by default the default process group.
        no_dist: load in this process alone, even if there is a process group.
        options: a :class:`~paraload.ReadOptions`, instead of keywords.
        storage_options: options of the storage of a URL, by the names of obstore or of the fsspec
            file system.
        **keywords: fields of :class:`~paraload.ReadOptions`; they override ``options``. For a URL,
            any other keyword is an option of its storage.

    Returns:
        What was read, and how.

    Raises:
        CheckpointReadError: something could not be read. The error names every item that failed.
            The targets must not be used unless its ``nothing_was_read`` is true. Under a process
            group every rank raises it, with the failures of all ranks; it is torch's
            ``CheckpointException`` too, and its ``by_rank`` has the error of each rank.
        InvalidOptionError: an option has an invalid value.
        torch.distributed.checkpoint.api.CheckpointException: under a process group, on ranks that
            succeeded, for an error of another rank that is no ``CheckpointReadError``, such as one
            of a planner or an interrupt.

    >>> import tempfile, torch, paraload, torch.distributed.checkpoint as dcp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save({"w": torch.arange(4.0)}, checkpoint_id=folder, no_dist=True)
    ...     state = {"w": torch.zeros(4)}
    ...     report = paraload.load(state, folder, no_dist=True)
    >>> state["w"], report.items
    (tensor([0., 1., 2., 3.]), 1)
    """
    if not isinstance(state_dict, MutableMapping):
        raise InvalidOptionError(
            f"state_dict: expected a dict of tensors by name, got a {type(state_dict).__name__};"
            " a module goes into one, such as {'model': model}"
        )
    is_alone = no_dist or not (distributed.is_available() and distributed.is_initialized())
    rank = 0 if is_alone else distributed.get_rank(process_group)
    reader: Any
    try:
        require_path(path)
        reader = reader_for(path, options=options, storage_options=storage_options, **keywords)
        source: Any = closing(source_of(reader))  # closed also if no data are read
    except Exception as error:
        if is_alone:
            raise
        reader, source = _NoReader(without_credentials(str(path)), error), nullcontext()
    planner = QuickLoadPlanner() if planner is None else planner
    keeps_plan = not is_alone and _plans_alone(planner)
    wrapped = _LoadReader(reader, is_alone=is_alone, rank=rank, keeps_plan=keeps_plan)
    stateful: dict[str, Stateful] = {}
    values: dict[str, Any] = {}
    # Closed also if no data are read.
    with source:
        # Sorted as in dcp.load: collectives in state_dict() need one order on all ranks.
        for name in sorted(state_dict):
            value = values[name] = state_dict[name]
            if hasattr(value, "state_dict") and isinstance(value, Stateful):
                stateful[name], values[name] = value, value.state_dict()
        done = _load(values, wrapped, planner, process_group=process_group, is_alone=is_alone)
    if isinstance(done, BaseException):
        raise done
    for name in sorted(state_dict):
        if name in stateful:
            stateful[name].load_state_dict(values[name])
        else:
            state_dict[name] = values[name]
    return done


def load_alone(
    values: dict[str, Any], reader: Reader, planner: LoadPlanner, *, metadata: Metadata
) -> ReadReport:
    """Load ``values`` in place, in this process alone, with metadata that were read before."""
    wrapped = _LoadReader(reader, metadata=metadata)
    done = _load(values, wrapped, planner, process_group=None, is_alone=True)
    if isinstance(done, BaseException):
        raise done
    return done


@stopped_by_signals  # of planning too, where an exception would look like a fault of the plan
def _load(
    values: dict[str, Any],
    reader: _LoadReader,
    planner: LoadPlanner,
    *,
    process_group: ProcessGroup | None,
    is_alone: bool,
) -> ReadReport | BaseException:
    """Load in place. Returns the report, or the error to raise, without torch's frames."""
    try:
        with (
            collector_paused(),
            misplanned_named(planner, str(reader.path)),
            nullcontext() if is_alone or reader.keeps_plan else _whole_plans_only(planner),
            nullcontext() if is_alone else _portable_errors(planner),
        ):
            load_state_dict(
                values,
                cast("StorageReader", reader),  # it has all that this calls
                process_group=process_group,
                no_dist=is_alone,
                planner=planner,
            )
    except CheckpointException as error:
        return _told(error, reader, process_group=process_group, is_alone=is_alone)
    report: ReadReport | None = reader.last_report
    return report or RuntimeError("the load ended without a call of read_data")


def _told(
    error: CheckpointException,
    reader: _LoadReader,
    *,
    process_group: ProcessGroup | None,
    is_alone: bool,
) -> BaseException:
    """The error to raise for what torch has collected from the ranks."""
    failures = error.failures
    for rank, (raised, trace) in failures.items():
        original = raised.args[0] if isinstance(raised, _UnreadableError) else carried(raised)
        if isinstance(original, CheckpointReadError | InvalidOptionError):
            # The text is complete, and every rank would print the tracebacks of all ranks.
            failures[rank] = original.with_traceback(None), StackSummary()
        else:
            failures[rank] = original, trace
    own = failures[reader.rank][0] if reader.rank in failures else None
    # torch wraps every error, Ctrl-C included, even if there is only one rank.
    if own is not None and (is_alone or not isinstance(own, Exception)):
        return own
    raised_by = [raised for raised, _ in failures.values()]
    # "except Exception" must not catch an interrupt, not even one of another rank.
    if any(isinstance(it, CheckpointReadError) for it in raised_by) and all(
        isinstance(it, Exception) for it in raised_by
    ):
        return ranks_error(
            failures,
            path=str(reader.path),
            world=distributed.get_world_size(process_group),
            before_reading=error.args[0] == "plan",
        )
    if isinstance(own, InvalidOptionError | ImportError):
        return own
    return error.with_traceback(None)


def _plans_alone(planner: LoadPlanner) -> bool:
    """Whether the plan of a rank depends on no other rank, as with torch's planner."""
    steps = ("create_global_plan", "finish_plan")
    return not vars(planner).keys() & {*steps} and all(
        getattr(type(planner), step, None) is getattr(DefaultLoadPlanner, step) for step in steps
    )


def _portable_errors(planner: LoadPlanner) -> AbstractContextManager[None]:
    """In the block, every error of a planning step can be sent to the other ranks."""
    steps = ("set_up_planner", "create_local_plan", "create_global_plan", "finish_plan")
    return steps_replaced(
        planner, {step: raising_portable(getattr(planner, step)) for step in steps}
    )


def _whole_plans_only(planner: LoadPlanner) -> AbstractContextManager[None]:
    """In the block, a planner that plans for all ranks refuses ranks that keep their plans."""
    create = planner.create_global_plan

    def checked(plans: list[LoadPlan]) -> list[LoadPlan]:
        if any(plan.planner_data == _KEPT for plan in plans):
            raise InvalidOptionError("planner= of rank 0 makes plans for all ranks: pass it on all")
        return create(plans)

    return steps_replaced(planner, {"create_global_plan": checked})


class _LoadReader:
    """A reader, without what torch's loading code does to errors and to the garbage collector."""

    def __init__(
        self,
        reader: Reader,
        *,
        is_alone: bool = True,
        rank: int = 0,
        metadata: Metadata | None = None,
        keeps_plan: bool = False,
    ) -> None:
        self.reader = reader
        self._is_alone = is_alone
        self.rank = rank
        self._metadata = metadata
        self.keeps_plan = keeps_plan
        self._plan: LoadPlan | None = None
        self._resumed = collector_resumed if gc.isenabled() else nullcontext

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the metadata for all ranks, or else the rank's own, unless they are known.

        torch itself falls back to the rank's own metadata. But it logs the first error with its
        traceback, and a rank that then fails leaves the others waiting forever.
        """
        if self._metadata is not None:
            return self._metadata
        reader = self.reader
        try:
            try:
                return reader.read_metadata(*args, **kwargs)
            except UnsafeMetadataError:
                raise
            except MetadataError as error:
                if has_not_answered(reader, error):
                    raise  # asking it for other files would take as long again
                is_missing = isinstance(error, MissingMetadataError)
                ranks = reader.ranks_with_metadata()
                if not (ranks if is_missing else self.rank in ranks):
                    raise
                if not is_missing:
                    _log.warning("%s. Reading the metadata of rank %d instead", error, self.rank)
            return reader.read_metadata(rank=self.rank)
        except Exception as error:  # noqa: BLE001 - raised again after torch
            raise _UnreadableError(error if self._is_alone else portable(error)) from None

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Keep the plan here, if the ranks exchange plans only to get their own back.

        Rank 0 would unpickle and pickle those of all ranks: 13 ms for 1,000 tensors of one rank.
        """
        plan = self.reader.prepare_local_plan(plan)
        if not self.keeps_plan:
            return plan
        self._plan = plan
        return LoadPlan([], planner_data=_KEPT)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        read = self.reader.read_data if self._is_alone else raising_portable(self.reader.read_data)
        with self._resumed():
            return read(self._plan or plan, planner)


class _NoReader:
    """Raises the error of making a reader where the other ranks hear of it.

    The environment of one host may have a wrong option, or lack the package of a storage.
    """

    def __init__(self, path: str, error: Exception) -> None:
        self.path, self._error = path, error

    def read_metadata(self) -> Metadata:
        raise self._error


class _UnreadableError(BaseException):
    """Carries an error past torch, which replaces every ``Exception`` by an AssertionError."""
