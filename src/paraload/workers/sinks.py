"""Where workers put bytes: straight into the memory of their targets. No torch.

Worker processes, which do not see that memory, have a sink of their own (`executors/processes`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

from paraload.core.memory import TargetMemory
from paraload.core.records import TensorRecord
from paraload.core.results import Cut, Outcome, Raw, Staged
from paraload.core.tasks import DISCARDED, RecordSpec, RunsTask
from paraload.geometry import runs as geometry
from paraload.geometry.staging_block import Region, staging_region
from paraload.geometry.strided_copy import copy_runs
from paraload.workers.layout_cache import LayoutCache
from paraload.workers.read_context import NarrowedTensor

#: A thread reads into this memory again and again: bytes are summed in the processor's cache and
#: never leave it. Of 256 KiB to 8 MiB, 512 KiB to 2 MiB were the fastest.
_SCRATCH_BYTES: Final = 1 << 20


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


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.memory = memoryview(bytearray(_SCRATCH_BYTES))


class TargetSink:
    """Bytes go straight into the memory of their targets."""

    def __init__(self, targets: Mapping[int, TargetMemory]) -> None:
        self.targets = targets
        self.layouts = LayoutCache()
        self._scratch = _Scratch()

    def memory(self, task: RunsTask) -> tuple[memoryview, tuple[geometry.Run, ...]]:
        """The target's memory, or this thread's scratch, and the task's runs as they are."""
        if task.target == DISCARDED:
            return self._scratch.memory, task.runs
        return self.targets[task.target].memory, task.runs

    def packed_memory(self, item: int, nbytes: int) -> memoryview:
        """Memory for packed elements of ``item`` that do not go into its target directly."""
        del item
        return memoryview(bytearray(nbytes))

    def put_tensor(
        self, spec: RecordSpec, record: TensorRecord, data: memoryview, verified_bytes: int
    ) -> Outcome | int:
        """Copy the slice into its target, or hand it back packed."""
        payload = data[record.start : record.end]
        target = self.targets.get(spec.item)
        if target is not None and (runs := target.runs(spec, record)) is not None:
            return copy_runs(runs, payload, target.memory)
        region, packed_runs = _packed_slice(spec, record)
        packed = self.packed_memory(spec.item, sum(run.total_bytes for run in packed_runs))
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
        return Staged(
            item=spec.item,
            data=narrowed.data,
            dtype=narrowed.dtype,
            lengths=narrowed.shape,
            order=tuple(range(len(narrowed.shape))),
            cut=None,
            verified_bytes=verified_bytes,
        )
