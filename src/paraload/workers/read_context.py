"""What every task of a load needs, wherever it runs. No torch."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paraload.core.results import Failed, Outcome, ReadTally
from paraload.core.tasks import RecordSpec
from paraload.errors import ItemReadError
from paraload.formats import ItemFormat
from paraload.formats.torch_zip import TorchZipFormat
from paraload.formats.transforms import Decoder
from paraload.geometry import runs as geometry
from paraload.sources import ByteSource, Read, ReadStats
from paraload.sources.retrying import RetryingSource


@dataclass(kw_only=True)
class Work:
    """What every task of a load needs; pickles as configuration for worker processes.

    ``audit``: check every entry of each record, and keep nothing of it.
    """

    source: ByteSource
    verify: bool
    audit: bool = False
    decoders: Mapping[tuple[str, ...], tuple[tuple[Decoder, ...], tuple[str, ...]]] = field(
        default_factory=dict
    )
    slice_file: Callable[..., Any] | None = None
    narrow_tensor: Callable[..., Any] | None = None
    transform: Callable[..., Any] | None = None
    format: ItemFormat = field(default_factory=TorchZipFormat)
    is_cancelled: Callable[[], bool] | None = None
    retries: int = 0
    stall_timeout_s: float | None = None
    #: Sizes of files, as far as they are known in this process.
    file_sizes: dict[str, int] = field(default_factory=dict)

    @property
    def hooks(self) -> dict[str, Callable[..., Any]]:
        """The user's hooks that are set, by the name of their option."""
        hooks = {
            "slice_file": self.slice_file,
            "narrow_tensor": self.narrow_tensor,
            "transform": self.transform,
        }
        return {name: hook for name, hook in hooks.items() if hook is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowedTensor:
    """The bytes of a contiguous tensor, and what they mean."""

    data: memoryview
    dtype: str
    itemsize: int
    shape: geometry.Shape


class Cancelled(BaseException):
    """The load ended while this task was running; nobody waits for its result."""


class Meter:
    """Reads for one task: counts, and lets no read begin after the load's end."""

    def __init__(self, work: Work, path: str) -> None:
        self.work = work
        self.path = path
        self._tally = ReadTally()
        self.limits = work.source.limits
        self._source = RetryingSource(work.source, work.retries, work.is_cancelled)

    @property
    def tally(self) -> ReadTally:
        """What the task took so far."""
        self._tally.retries = self._source.retried
        return self._tally

    def size(self) -> int:
        """Bytes of the file."""
        size = self.work.file_sizes.get(self.path)
        if size is None:
            try:
                size = self._source.stat(self.path).size
            except Exception:
                self._require_wanted()
                raise
            self.work.file_sizes[self.path] = size
        return size

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers`` from ``start`` on."""
        self._require_wanted()
        nbytes = sum(map(len, buffers))
        reads: Sequence[Read] = (Read(start, buffers),)
        if nbytes > self.limits.max_request_bytes:
            reads = self._split(start, buffers)
        try:
            stats = self._source.read(self.path, reads)
        except Exception:
            self._require_wanted()  # the retries may have ended with the load
            raise
        self._count(stats, nbytes)

    def read_rows(self, base: int, run: geometry.Run, memory: memoryview) -> bool:
        """Copy rows alone to where they belong; ``False`` if they are to be read through.

        Whatever is wrong with the file is left for those reads to find.
        """
        self._require_wanted()
        if (read := getattr(self._source, "read_rows", None)) is None:
            return False
        try:
            stats: ReadStats | None = read(self.path, base, run, memory)
        except OSError:
            return False
        if stats is not None:
            self._count(stats, run.total_bytes)
        return stats is not None

    def _require_wanted(self) -> None:
        if self.work.is_cancelled is not None and self.work.is_cancelled():
            raise Cancelled

    def _split(self, start: int, buffers: Sequence[memoryview]) -> list[Read]:
        reads, most = [], self.limits.max_request_bytes
        for buffer in buffers:
            for at in range(0, len(buffer), most):
                piece = buffer[at : at + most]
                reads.append(Read(start, (piece,)))
                start += len(piece)
        return reads

    def _count(self, stats: ReadStats, nbytes: int) -> None:
        tally = self._tally
        tally.reads += stats.requests
        tally.bytes_read += nbytes
        tally.bytes_direct += stats.bytes_direct
        tally.fallback = tally.fallback or stats.fallback


def item_error(error: Exception) -> ItemReadError:
    """``error`` as the error of an item, with its traceback as text. Call where it is handled."""
    if isinstance(error, ItemReadError):
        known = error
    else:
        known = ItemReadError(f"{type(error).__name__}: {error}")
        known.__cause__ = error
    known.traceback_text = known.traceback_text or traceback.format_exc()
    told: BaseException | None = known
    while told is not None:  # live tracebacks would keep whole blocks of bytes alive
        told.__traceback__ = None
        told = told.__cause__ or told.__context__
    return known


def guarded(spec: RecordSpec, step: Callable[..., Outcome], *args: Any) -> Outcome:
    try:
        return step(*args)
    except Exception as error:  # noqa: BLE001 - torch.load raises anything for damaged bytes
        return Failed(item=spec.item, error=item_error(error))
