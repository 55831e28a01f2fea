"""Slots of shared memory: workers leave bytes there, and the caller moves them on.

    caller's process                                      worker process
    SlottedTask (task, slot number)  ----- pickle ---->   process_single_file: bytes into the slot
    SlotRing.deliver (slot -> targets)  <--- pickle ---   TaskResult, with a slice for each view

One segment holds all slots. Their number bounds the tasks in flight and the memory. The last byte
of the segment is 1 as soon as a worker has started.
"""

import errno
import os
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, cast

from paraload.core.memory import TargetMemory
from paraload.core.results import Landed, LandedItems, Outcome, Raw, Staged, TaskResult
from paraload.core.tasks import ReadTask, RunsTask, SharedTask
from paraload.geometry import runs as geometry
from paraload.geometry.strided_copy import copy_runs
from paraload.workers.read_context import ReadContext
from paraload.workers.run_task import run_task
from paraload.workers.sinks import TargetSink

#: One being filled, one being emptied.
SLOTS_PER_WORKER: Final = 2
#: torch reads elements in place, and wants them aligned; 16 bytes suit complex128.
_ALIGNMENT: Final = 16
_SHM_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where Linux keeps shared memory, only measured


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class SlottedTask(NamedTuple):
    """A task and the slot that its bytes go to."""

    task: ReadTask
    slot: int


class SlotOverflowError(BaseException):
    """The slot is too small: no error of an item, so handlers of those must not catch it."""


class SlotSink(TargetSink):
    """In a worker process: packs bytes into a slot."""

    def __init__(self, slot: memoryview) -> None:
        super().__init__({})  # the targets are in another process
        self._slot = slot
        self._end = 0
        self._slices: dict[int, Any] = {}  # by item

    def memory(self, task: RunsTask) -> tuple[memoryview, tuple[geometry.Run, ...]]:
        return self.packed_memory(task.target, task.needed_bytes), geometry.packed(task.runs)

    def packed_memory(self, item: int, nbytes: int) -> memoryview:
        place = slice(self._end, self._end + nbytes)
        if place.stop > len(self._slot):
            raise SlotOverflowError
        self._slices[item] = place
        self._end += _aligned(nbytes)
        return self._slot[place]

    # Copied at once: decoded records may be far longer than the slot, and must not pile up.

    def keep(self, item: int, data: memoryview) -> memoryview:
        memory = self.packed_memory(item, len(data))
        memory[:] = data
        return memory

    def without_view(self, outcome: Outcome | LandedItems) -> Outcome | LandedItems:
        """``outcome`` with a slice of the slot in place of its view, which does not pickle."""
        if isinstance(outcome, Staged | Raw):
            return replace(outcome, data=self._slices[outcome.item])
        return outcome


#: What a worker process keeps between tasks.
_state: Final[Any] = SimpleNamespace()


def start_worker(context: ReadContext, segment_name: str, slot_bytes: int) -> None:
    """Initializer of a worker process."""
    _state.context = context
    _state.segment = SharedMemory(name=segment_name)
    _state.slot_bytes = slot_bytes
    _state.segment.buf[-1] = 1


def process_single_file(task: SlottedTask) -> TaskResult | None:
    """Run one task, which concerns one file, in a worker process.

    Returns:
        The result; ``None`` if it does not fit into the slot.
    """
    start = task.slot * _state.slot_bytes
    with _state.segment.buf[start : start + _state.slot_bytes] as slot:
        sink = SlotSink(slot)
        try:
            result = run_task(task.task, _state.context, sink)
            outcomes = tuple(map(sink.without_view, result.outcomes))
        except SlotOverflowError:
            return None
    return replace(result, outcomes=outcomes, worker=f"process-{os.getpid()}")


class SlotRing:
    """In the caller's process: the segment, and the numbers of the slots that are ``free``."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        nbytes = slots * slot_bytes
        # A container often has 64 MiB here, and writing past it is not an error but a SIGBUS.
        if _SHM_FOLDER.is_dir() and (free := shutil.disk_usage(_SHM_FOLDER).free) < nbytes:
            raise OSError(
                errno.ENOSPC,
                f"{nbytes} bytes of shared memory are needed, but {_SHM_FOLDER} has {free}; give"
                " the container more (docker run --shm-size), or use fewer max_workers",
            )
        self._slot_bytes = slot_bytes
        self._segment: Any = SharedMemory(create=True, size=nbytes + 1)
        self.name: str = self._segment.name
        self.free = list(range(slots))
        self._views: list[memoryview] = []

    @property
    def has_started_worker(self) -> bool:
        return bool(self._segment.buf[-1])

    def deliver(
        self, result: TaskResult, slot: int, targets: Mapping[int, TargetMemory]
    ) -> TaskResult:
        """Move what a worker left in ``slot`` to its targets.

        Views of the slot that the result may have are valid until :meth:`release_views`.
        """
        start = slot * self._slot_bytes
        view = self._segment.buf[start : start + self._slot_bytes]
        self._views.append(view)
        try:
            if isinstance(result.task, RunsTask | SharedTask):
                self._move(result, view, targets)
                return result
            outcomes = tuple([self._with_view(outcome, view) for outcome in result.outcomes])
            return replace(result, outcomes=outcomes)
        except BaseException as error:
            # Its frames hold views of the slot, which would keep the segment open.
            traceback.clear_frames(error.__traceback__)
            raise

    @staticmethod
    def _move(result: TaskResult, slot: memoryview, targets: Mapping[int, TargetMemory]) -> None:
        at, task = 0, cast("RunsTask | SharedTask", result.task)
        parts = task.parts if isinstance(task, SharedTask) else (task,)
        for part, outcome in zip(parts, result.outcomes, strict=True):
            if isinstance(outcome, Landed):
                copy_runs(geometry.unpacked(part.runs), slot[at:], targets[part.target].memory)
            at += _aligned(part.needed_bytes)

    def _with_view(self, outcome: Outcome | LandedItems, slot: memoryview) -> Outcome | LandedItems:
        if not isinstance(outcome, Staged | Raw):
            return outcome
        place: Any = outcome.data
        self._views.append(slot[place])
        return replace(outcome, data=self._views[-1])

    def release_views(self) -> None:
        while self._views:
            self._views.pop().release()

    def close(self) -> None:
        self._segment.unlink()  # first: the name must be gone whatever happens next
        try:
            self.release_views()
            self._segment.close()
        except BufferError:
            # A caller holds a view, and the last one frees the memory. Raising would replace the
            # error that ends the load, or fail a load that succeeded.
            self._segment._buf = self._segment._mmap = None  # noqa: SLF001
            self._segment.close()
