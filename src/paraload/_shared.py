"""What the process executors share: slots of shared memory, and workers that start lean.

    caller's process                                worker process
    task + slot number  ------- pickle ------->     run_task, bytes into the slot
    deliver(slot -> targets), slot is free  <---    TaskResult (numbers and spans, no bytes)

One segment holds all slots. It is unlinked in every case; the number of slots bounds both the tasks
in flight and the memory.
"""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from paraload._result import ReadTally, TaskResult
from paraload._sink import SlotOverflowError, SlotSink, TargetSink, deliver
from paraload._worker import run_task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paraload._sink import TargetMemory
    from paraload._task import ReadTask
    from paraload._work import Work

__all__ = [
    "SLOTS_PER_WORKER",
    "SlotRing",
    "SlottedTask",
    "process_single_file",
    "start_worker",
]

#: One being filled, one being emptied.
SLOTS_PER_WORKER: Final = 2
_SHM_FOLDER: Final = "/dev/shm"  # noqa: S108 - where Linux keeps shared memory, only measured here

#: After the slots comes a byte for each worker that has started, at its process number modulo this.
#: A collision only makes the text about a dead worker less exact.
_STARTED_BYTES: Final = 4096


def _started_at(pid: int) -> int:
    return -1 - pid % _STARTED_BYTES


@dataclass(frozen=True, slots=True)
class SlottedTask:
    """A task and the slot that its bytes go to."""

    task: ReadTask
    slot: int


class SlotRing:
    """Slots of shared memory in the caller's process. Use as a context manager."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self._require_room(slots * slot_bytes)
        self.slot_bytes = slot_bytes
        self._segment = SharedMemory(create=True, size=slots * slot_bytes + _STARTED_BYTES)
        self._free = list(range(slots))
        self._lent: list[memoryview] = []

    def has_started(self, pid: int) -> bool:
        """Whether a worker process has started and can take tasks."""
        return bool(_buffer(self._segment)[_started_at(pid)])

    @property
    def name(self) -> str:
        """What workers attach to."""
        return self._segment.name

    def acquire(self) -> int:
        """A free slot; there is one, since no more tasks than slots are in flight."""
        return self._free.pop()

    def deliver(
        self,
        result: TaskResult,
        slot: int,
        work: Work,
        targets: Mapping[int, TargetMemory],
    ) -> TaskResult:
        """Move a result out of ``slot``, which becomes free when :meth:`recycle` is called."""
        if result.overflowed:
            # The answer is longer than any slot: read it here, where no slot is needed.
            return run_task(result.task, work, TargetSink(targets))
        start = slot * self.slot_bytes
        view = _buffer(self._segment)[start : start + self.slot_bytes]
        self._lent = [view]
        try:
            delivered = deliver(result, view, targets)
        except BaseException as error:
            # Its frames hold views of the slot, which would keep the segment open.
            traceback.clear_frames(error.__traceback__)
            raise
        self._lent += _views(delivered)
        return delivered

    def recycle(self, slot: int) -> None:
        """The caller has done with the last delivered result."""
        self._release()
        self._free.append(slot)

    def _release(self) -> None:
        for view in reversed(self._lent):
            view.release()
        self._lent = []

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Unlink first: the name must be gone whatever happens next."""
        self._segment.unlink()
        self._release()
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


def _views(result: TaskResult) -> list[memoryview]:
    found = (getattr(outcome, "data", None) for outcome in result.outcomes)
    return [data for data in found if isinstance(data, memoryview)]


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


def process_single_file(task: SlottedTask) -> TaskResult:
    """Run one task, which concerns one file, in a worker process."""
    start = task.slot * _state.slot_bytes
    with _buffer(_state.segment)[start : start + _state.slot_bytes] as slot:
        try:
            result = run_task(task.task, _state.work, SlotSink(slot))
        except SlotOverflowError:
            result = TaskResult(
                task=task.task,
                outcomes=(),
                tally=ReadTally(),
                started_s=0.0,
                ended_s=0.0,
                worker="",
                overflowed=True,
            )
    return replace(result, worker=f"process-{os.getpid()}")
