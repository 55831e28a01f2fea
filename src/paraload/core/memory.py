"""Memory that takes stored bytes as they are, and how its elements lie in it."""

from functools import lru_cache
from typing import NamedTuple

from paraload.core.records import TensorRecord
from paraload.core.tasks import RecordSpec
from paraload.geometry.runs import Run, Shape, slice_runs
from paraload.geometry.staging_block import is_fragmented


class Layout(NamedTuple):
    """How elements lie in memory: ``dtype`` is "" where raw bytes are collected.

    ``nbytes`` counts from the first element to one past the last, ``packed_bytes`` the elements.
    """

    dtype: str = ""
    shape: Shape = ()
    strides: Shape = ()
    nbytes: int = 0
    packed_bytes: int = 0


class TargetMemory(NamedTuple):
    """Writable memory, from the first element of the target to one past the last."""

    memory: memoryview
    layout: Layout = Layout()

    def runs(self, spec: RecordSpec, record: TensorRecord) -> tuple[Run, ...] | None:
        """The runs from the payload into this memory; ``None`` if it cannot take them directly."""
        layout = self.layout
        if layout.dtype != record.dtype or layout.shape != spec.wanted.lengths:
            return None
        first = record.first_byte(spec.wanted.offsets)
        return _direct_runs(layout.shape, record.strides, layout.strides, record.itemsize, first)


@lru_cache(maxsize=4096)
def _direct_runs(
    lengths: Shape, src_strides: Shape, dst_strides: Shape, itemsize: int, src: int
) -> tuple[Run, ...] | None:
    """Cached: a checkpoint has many tensors of few layouts."""
    runs = slice_runs(
        lengths, src_strides=src_strides, dst_strides=dst_strides, itemsize=itemsize, src=src
    )
    return None if is_fragmented(runs) else runs
