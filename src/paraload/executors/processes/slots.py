"""Slots of shared memory: workers leave bytes there, and the caller moves them on.

    caller's process                                      worker process
    SlottedTask (task, slot number)  ----- pickle ---->   process_single_file: bytes into the slot
    SlotRing.deliver (slot -> targets)  <--- pickle ---   TaskResult, with a Span for each view

One segment holds all slots. It is unlinked in every case; the number of slots bounds both the tasks
in flight and the memory.
"""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from paraload.core.memory import TargetMemory
from paraload.core.results import Landed, LandedItems, Outcome, Raw, Staged, TaskResult
from paraload.core.tasks import ReadTask, RecordSpec, RunsTask, SharedTask
from paraload.geometry import runs as geometry
from paraload.geometry.strided_copy import copy_runs
from paraload.workers.read_context import NarrowedTensor, Work
from paraload.workers.run_task import run_task
from paraload.workers.sinks import TargetSink

#: One being filled, one being emptied.
SLOTS_PER_WORKER: Final = 2
#: torch reads elements in place, and wants them aligned; 16 bytes suit complex128.
_ALIGNMENT: Final = 16
_SHM_FOLDER: Final = "/dev/shm"  # noqa: S108 - where Linux keeps shared memory, only measured here

#: After the slots comes a byte for each worker that has started, at its process number modulo this.
#: A collision only makes the text about a dead worker less exact.
_STARTED_BYTES: Final = 4096


def _started_at(pid: int) -> int:
    return -1 - pid % _STARTED_BYTES


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, slots=True)
class SlottedTask:
    """A task and the slot that its bytes go to."""

    task: ReadTask
    slot: int


class Span(NamedTuple):
    """Bytes ``[start, end)`` of a slot. It travels in place of a view, which does not pickle."""

    start: int
    end: int


# ------------------------------------------------------------------ in the worker process


class SlotOverflowError(BaseException):
    """The slot is too small; not an error of an item, so no handler of those may take it."""


class SlotSink(TargetSink):
    """Bytes go, one behind the other, into a slot that the caller's process sees too."""

    def __init__(self, slot: memoryview) -> None:
        super().__init__({})  # the targets are in another process
        self._slot = slot
        self._end = 0
        self._spans: dict[int, Any] = {}  # by item

    def memory(self, task: RunsTask) -> tuple[memoryview, tuple[geometry.Run, ...]]:
        """A piece of the slot, and the task's runs packed into it."""
        return self.packed_memory(task.target, task.needed_bytes), geometry.packed(task.runs)

    def packed_memory(self, item: int, nbytes: int) -> memoryview:
        start, end = self._end, self._end + nbytes
        if end > len(self._slot):
            raise SlotOverflowError
        self._spans[item] = Span(start, end)
        self._end += _aligned(nbytes)
        return self._slot[start:end]

    def put_raw(
        self, spec: RecordSpec, data: memoryview, reason: str, verified_bytes: int
    ) -> Outcome:
        return super().put_raw(spec, self._copied(spec, data), reason, verified_bytes)

    def put_narrowed(
        self, spec: RecordSpec, narrowed: NarrowedTensor, verified_bytes: int
    ) -> Outcome:
        narrowed = replace(narrowed, data=self._copied(spec, narrowed.data))
        return super().put_narrowed(spec, narrowed, verified_bytes)

    def _copied(self, spec: RecordSpec, data: memoryview) -> memoryview:
        memory = self.packed_memory(spec.item, len(data))
        memory[:] = data
        return memory

    def without_view(self, outcome: Outcome | LandedItems) -> Outcome | LandedItems:
        """``outcome`` as it travels."""
        if isinstance(outcome, Staged | Raw):
            return replace(outcome, data=self._spans[outcome.item])
        return outcome


class _WorkerState:
    """What one worker process keeps between tasks."""

    work: Work
    segment: SharedMemory
    slot_bytes: int


_state = _WorkerState()


def start_worker(work: Work, segment_name: str, slot_bytes: int) -> None:
    """Initializer of a worker process."""
    _state.work = work
    _state.segment = SharedMemory(name=segment_name)
    _state.slot_bytes = slot_bytes
    _buffer(_state.segment)[_started_at(os.getpid())] = 1


def process_single_file(task: SlottedTask) -> TaskResult | None:
    """Run one task, which concerns one file, in a worker process.

    Returns:
        The result; ``None`` if it does not fit into the slot.
    """
    start = task.slot * _state.slot_bytes
    with _buffer(_state.segment)[start : start + _state.slot_bytes] as slot:
        sink = SlotSink(slot)
        try:
            result = run_task(task.task, _state.work, sink)
        except SlotOverflowError:
            return None
    outcomes = tuple(map(sink.without_view, result.outcomes))
    return replace(result, outcomes=outcomes, worker=f"process-{os.getpid()}")


# ------------------------------------------------------------------ in the caller's process


class SlotRing:
    """Slots of shared memory. Use as a context manager.

    Attributes:
        free: the numbers of slots that no task uses.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self._require_room(slots * slot_bytes)
        self._slot_bytes = slot_bytes
        self._segment = SharedMemory(create=True, size=slots * slot_bytes + _STARTED_BYTES)
        self.free = list(range(slots))
        self._views: list[memoryview] = []

    def has_started(self, pid: int) -> bool:
        """Whether a worker process has started and can take tasks."""
        return bool(_buffer(self._segment)[_started_at(pid)])

    @property
    def name(self) -> str:
        """What workers attach to."""
        return self._segment.name

    def deliver(
        self, result: TaskResult, slot: int, targets: Mapping[int, TargetMemory]
    ) -> TaskResult:
        """Move what a worker left in ``slot`` to where it belongs.

        The views of the slot that the result may have are valid until :meth:`release_views`.
        """
        start = slot * self._slot_bytes
        view = _buffer(self._segment)[start : start + self._slot_bytes]
        self._views.append(view)
        try:
            if parts := _parts(result.task):
                _move(parts, result.outcomes, view, targets)
                return result
            outcomes = tuple([self._with_view(outcome, view) for outcome in result.outcomes])
            return replace(result, outcomes=outcomes)
        except BaseException as error:
            # Its frames hold views of the slot, which would keep the segment open.
            traceback.clear_frames(error.__traceback__)
            raise

    def _with_view(self, outcome: Outcome | LandedItems, slot: memoryview) -> Outcome | LandedItems:
        if not isinstance(outcome, Staged | Raw):
            return outcome
        span: Any = outcome.data
        self._views.append(slot[span.start : span.end])
        return replace(outcome, data=self._views[-1])

    def release_views(self) -> None:
        while self._views:
            self._views.pop().release()

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unlink first: the name must be gone whatever happens next."""
        self._segment.unlink()
        self.release_views()
        try:
            self._segment.close()
        except BufferError:
            _close_later(self._segment)

    @staticmethod
    def _require_room(nbytes: int) -> None:
        # A container often has 64 MiB here, and writing past it is not an error but a SIGBUS.
        if Path(_SHM_FOLDER).is_dir() and shutil.disk_usage(_SHM_FOLDER).free < nbytes:
            free = shutil.disk_usage(_SHM_FOLDER).free
            raise OSError(
                errno.ENOSPC,
                f"{nbytes} bytes of shared memory are needed, but {_SHM_FOLDER} has {free}; give"
                " the container more (docker run --shm-size), or use fewer max_workers",
            )


def _parts(task: ReadTask) -> tuple[RunsTask, ...]:
    """What a worker has packed into the slot, one part behind the other."""
    if isinstance(task, RunsTask):
        return (task,)
    return task.parts if isinstance(task, SharedTask) else ()


def _move(
    parts: tuple[RunsTask, ...],
    outcomes: tuple[Outcome | LandedItems, ...],
    slot: memoryview,
    targets: Mapping[int, TargetMemory],
) -> None:
    at = 0
    for part, outcome in zip(parts, outcomes, strict=True):
        if isinstance(outcome, Landed):
            copy_runs(geometry.unpacked(part.runs), slot[at:], targets[part.target].memory)
        at += _aligned(part.needed_bytes)


def _buffer(segment: SharedMemory) -> memoryview:
    if segment.buf is None:
        raise ValueError("the segment of shared memory is closed")
    return segment.buf


def _close_later(segment: Any) -> None:
    """Free the memory with the last view of it, which a caller still holds.

    A BufferError here would replace the error that ends the load, or fail a load that succeeded.
    """
    segment._buf = segment._mmap = None  # noqa: SLF001 - close() cannot be told to wait
    segment.close()
