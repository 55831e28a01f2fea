"""Where workers put bytes: straight into targets, or into a slot of shared memory. No torch.

threads, sequential    TargetSink   the targets' own memory
processes, pool        SlotSink     a slot; the caller's process moves it on (`deliver`)
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from paraload import _geometry as geometry
from paraload._alike import Ways
from paraload._region import is_fragmented, staging_region
from paraload._result import Cut, Landed, Outcome, Raw, Span, Staged, TaskResult
from paraload._strided import copy_runs
from paraload._task import RecordSpec, RunsTask, SharedTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paraload._region import Region
    from paraload._result import LandedItems
    from paraload._work import NarrowedTensor
    from paraload.formats._base import TensorRecord

__all__ = ["Layout", "SlotOverflowError", "SlotSink", "TargetMemory", "TargetSink", "deliver"]


#: torch reads elements in place, and wants them aligned; 16 bytes suit complex128.
_ALIGNMENT = 16


class Layout(NamedTuple):
    """How elements lie in memory: ``dtype`` is "" where raw bytes are collected.

    ``nbytes`` counts from the first element to one past the last, ``packed_bytes`` the elements.
    """

    dtype: str = ""
    shape: geometry.Shape = ()
    strides: geometry.Shape = ()
    nbytes: int = 0
    packed_bytes: int = 0


class TargetMemory(NamedTuple):
    """Memory that takes stored bytes as they are, from the first element to one past the last."""

    memory: memoryview
    layout: Layout = Layout()

    def runs(self, spec: RecordSpec, record: TensorRecord) -> tuple[geometry.Run, ...] | None:
        """The runs from the payload into this memory; ``None`` if it cannot take them directly."""
        layout = self.layout
        if layout.dtype != record.dtype or layout.shape != spec.wanted.lengths:
            return None
        first = record.first_byte(spec.wanted.offsets)
        return _direct_runs(layout.shape, record.strides, layout.strides, record.itemsize, first)


@lru_cache(maxsize=4096)
def _direct_runs(
    lengths: geometry.Shape,
    src_strides: geometry.Shape,
    dst_strides: geometry.Shape,
    itemsize: int,
    src: int,
) -> tuple[geometry.Run, ...] | None:
    """Cached: a checkpoint has many tensors of few layouts."""
    runs = geometry.slice_runs(
        lengths,
        src_strides=src_strides,
        dst_strides=dst_strides,
        itemsize=itemsize,
        src=src,
        dst=0,
    )
    return None if is_fragmented(runs) else runs


def _packed_slice(
    spec: RecordSpec, record: TensorRecord
) -> tuple[Region, tuple[geometry.Run, ...]]:
    region = staging_region(
        record.shape,
        record.strides,
        spec.wanted.offsets,
        spec.wanted.lengths,
        record.itemsize,
    )
    return region, region.runs(record.strides, record.itemsize, record.first_byte(region.offsets))


def _cut_inside(spec: RecordSpec, region: Region) -> Cut | None:
    """The needed slice in ``region``; ``None`` if it is the region."""
    if region.lengths == spec.wanted.lengths:
        return None
    pairs = zip(spec.wanted.offsets, region.offsets, strict=True)
    return Cut(tuple(offset - start for offset, start in pairs), spec.wanted.lengths)


class TargetSink:
    """Bytes go straight into the memory of their targets."""

    def __init__(self, targets: Mapping[int, TargetMemory]) -> None:
        self.targets = targets
        self.ways = Ways()

    def memory(self, task: RunsTask) -> tuple[memoryview, tuple[geometry.Run, ...]]:
        """The target's memory and the task's runs as they are."""
        return self.targets[task.target].memory, task.runs

    def put_tensor(
        self, spec: RecordSpec, record: TensorRecord, data: memoryview, verified_bytes: int
    ) -> Outcome | int:
        """Copy the slice into its target, or hand it back packed."""
        payload = data[record.start : record.end]
        target = self.targets.get(spec.item)
        if target is not None and (runs := target.runs(spec, record)) is not None:
            return copy_runs(runs, payload, target.memory)
        region, packed_runs = _packed_slice(spec, record)
        packed = memoryview(bytearray(sum(run.total_bytes for run in packed_runs)))
        copy_runs(packed_runs, payload, packed)
        return Staged(
            item=spec.item,
            data=packed,
            dtype=record.dtype,
            lengths=region.lengths,
            order=region.order,
            cut=_cut_inside(spec, region),
            verified_bytes=verified_bytes,
        )

    def put_raw(
        self, spec: RecordSpec, data: memoryview, reason: str, verified_bytes: int
    ) -> Outcome:
        """Hand the record back."""
        return Raw(item=spec.item, data=data, reason=reason, verified_bytes=verified_bytes)

    def put_narrowed(
        self, spec: RecordSpec, narrowed: NarrowedTensor, verified_bytes: int
    ) -> Outcome:
        """Hand the tensor back."""
        return _staged_narrowed(spec, narrowed, narrowed.data, verified_bytes)


def _staged_narrowed(
    spec: RecordSpec, narrowed: NarrowedTensor, data: memoryview | Span, verified_bytes: int
) -> Staged:
    return Staged(
        item=spec.item,
        data=data,
        dtype=narrowed.dtype,
        lengths=narrowed.shape,
        order=tuple(range(len(narrowed.shape))),
        cut=None,
        verified_bytes=verified_bytes,
    )


class SlotOverflowError(BaseException):
    """The slot is too small; not an error of an item, so no handler of those may take it."""


class SlotSink:
    """Bytes go, one behind the other, into a slot that the caller's process sees too."""

    def __init__(self, slot: memoryview) -> None:
        self.targets: Mapping[int, TargetMemory] = {}  # they are in another process
        self.ways = Ways()
        self._slot = slot
        self._end = 0

    def memory(self, task: RunsTask) -> tuple[memoryview, tuple[geometry.Run, ...]]:
        """A piece of the slot, and the task's runs packed into it."""
        span = self._take(task.needed_bytes)
        return self._slot[span.start : span.start + span.nbytes], geometry.packed(task.runs)

    def put_tensor(
        self, spec: RecordSpec, record: TensorRecord, data: memoryview, verified_bytes: int
    ) -> Outcome:
        """Pack the slice into the slot."""
        region, runs = _packed_slice(spec, record)
        span = self._take(sum(run.total_bytes for run in runs))
        memory = self._slot[span.start : span.start + span.nbytes]
        copy_runs(runs, data[record.start : record.end], memory)
        return Staged(
            item=spec.item,
            data=span,
            dtype=record.dtype,
            lengths=region.lengths,
            order=region.order,
            cut=_cut_inside(spec, region),
            verified_bytes=verified_bytes,
        )

    def put_raw(
        self, spec: RecordSpec, data: memoryview, reason: str, verified_bytes: int
    ) -> Outcome:
        """Copy the record into the slot."""
        span = self._write(data)
        return Raw(item=spec.item, data=span, reason=reason, verified_bytes=verified_bytes)

    def put_narrowed(
        self, spec: RecordSpec, narrowed: NarrowedTensor, verified_bytes: int
    ) -> Outcome:
        """Copy the tensor into the slot."""
        return _staged_narrowed(spec, narrowed, self._write(narrowed.data), verified_bytes)

    def _write(self, data: memoryview) -> Span:
        span = self._take(len(data))
        self._slot[span.start : span.start + span.nbytes] = data
        return span

    def _take(self, nbytes: int) -> Span:
        if self._end + nbytes > len(self._slot):
            raise SlotOverflowError
        span = Span(self._end, nbytes)
        self._end += _aligned(nbytes)
        return span


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def deliver(
    result: TaskResult, slot: memoryview, targets: Mapping[int, TargetMemory]
) -> TaskResult:
    """In the caller's process: move what a worker left in ``slot`` to where it belongs."""
    if isinstance(result.task, RunsTask | SharedTask):
        at = 0
        parts = result.task.parts if isinstance(result.task, SharedTask) else (result.task,)
        for part, outcome in zip(parts, result.outcomes, strict=True):
            if isinstance(outcome, Landed):
                runs = geometry.unpacked(part.runs)
                copy_runs(runs, slot[at:], targets[part.target].memory)
            at += _aligned(part.needed_bytes)
        return result
    return replace(result, outcomes=tuple(_from_slot(o, slot) for o in result.outcomes))


def _from_slot(outcome: Outcome | LandedItems, slot: memoryview) -> Outcome | LandedItems:
    if isinstance(outcome, Staged | Raw) and isinstance(outcome.data, Span):
        span = outcome.data
        return replace(outcome, data=slot[span.start : span.start + span.nbytes])
    return outcome
