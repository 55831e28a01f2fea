"""Where workers put bytes: straight into the memory of their targets. No torch.

Worker processes, which do not see that memory, have a sink of their own (`executors/processes`).
"""

import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Final

from paraload.core.memory import TargetMemory
from paraload.core.records import TensorRecord
from paraload.core.results import Staged
from paraload.core.tasks import DISCARDED, RecordSpec, RunsTask
from paraload.geometry.runs import Run
from paraload.geometry.staging_block import staging_region
from paraload.geometry.strided_copy import copy_runs
from paraload.workers.layout_cache import LayoutCache

#: Discarded bytes are read into the same memory again and again: they are summed in the
#: processor's cache and never leave it. Of 256 KiB to 8 MiB, 512 KiB to 2 MiB were the fastest.
_SCRATCH_BYTES: Final = 1 << 20


class _Scratch(threading.local):
    """Memory for discarded bytes, one for each thread."""

    @cached_property
    def memory(self) -> memoryview:
        return memoryview(bytearray(_SCRATCH_BYTES))


class TargetSink:
    """Bytes go straight into the memory of their targets."""

    def __init__(self, targets: Mapping[int, TargetMemory]) -> None:
        self.targets = targets
        self.layouts = LayoutCache()
        self._scratch = _Scratch()

    def memory(self, task: RunsTask) -> tuple[memoryview, tuple[Run, ...]]:
        """The memory that ``task`` reads into, and its runs into that memory."""
        if task.target == DISCARDED:
            return self._scratch.memory, task.runs
        return self.targets[task.target].memory, task.runs

    def packed_memory(self, item: int, nbytes: int) -> memoryview:
        """Memory for the packed elements of an item that cannot go to its target directly."""
        del item
        return memoryview(bytearray(nbytes))

    def keep(self, item: int, data: memoryview) -> memoryview:
        """``data``, in memory that the caller's thread sees."""
        del item
        return data

    def put_tensor(
        self, spec: RecordSpec, record: TensorRecord, data: memoryview, verified_bytes: int
    ) -> Staged | int:
        """Copy the slice into its target and return its bytes, or return it packed."""
        payload = data[record.start : record.end]
        target = self.targets.get(spec.item)
        if target is not None and (runs := target.runs(spec, record)) is not None:
            return copy_runs(runs, payload, target.memory)
        offsets, lengths = spec.wanted.offsets, spec.wanted.lengths
        region = staging_region(record.shape, record.strides, offsets, lengths, record.itemsize)
        runs = region.runs(record.strides, record.itemsize, record.first_byte(region.offsets))
        packed = self.packed_memory(spec.item, sum(run.total_bytes for run in runs))
        copy_runs(runs, payload, packed)
        inside = tuple(o - start for o, start in zip(offsets, region.offsets, strict=True))
        return Staged(
            item=spec.item,
            data=packed,
            dtype=record.dtype,
            lengths=region.lengths,
            order=region.order,
            cut=None if region.lengths == lengths else (inside, lengths),
            verified_bytes=verified_bytes,
        )
