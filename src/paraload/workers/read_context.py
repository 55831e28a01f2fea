"""What all tasks of a load share, the reads of one task, and errors as results. No torch."""

import copy
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from paraload.core.results import Failed, ReadTally
from paraload.errors import ItemReadError
from paraload.formats import ItemFormat
from paraload.formats.torch_zip import TorchZipFormat
from paraload.formats.transforms import Decoder
from paraload.geometry.runs import Run
from paraload.sources import ByteSource, Read, ReadStats
from paraload.sources.retrying import Retries, RetryingSource

Answer = TypeVar("Answer")


@dataclass(kw_only=True)
class ReadContext:
    """What every task of a load needs; pickles as configuration for worker processes.

    Attributes:
        audit: check every entry of each record, and keep nothing.
        decoders: by the transforms of a record: how to undo them, and those that have no decoder.
        file_sizes: in bytes, as far as this process knows them.
        shared_retries: of all tasks in this process; made from the others.
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
    retries: int | None = 0
    stall_timeout_s: float | None = None
    file_sizes: dict[str, int] = field(default_factory=dict)
    shared_retries: Retries | None = None

    def __post_init__(self) -> None:
        if self.shared_retries is None:
            limits = self.source.limits
            self.shared_retries = Retries(limits.retry, self.retries, self.stall_timeout_s)

    @property
    def hooks(self) -> dict[str, Callable[..., Any]]:
        """The user's hooks, by the name of their option."""
        names = ("slice_file", "narrow_tensor", "transform")
        return {name: hook for name in names if (hook := getattr(self, name)) is not None}


class Cancelled(BaseException):
    """The load ended while this task was running; its result is not needed."""


class TaskReader:
    """Reads for one task, and counts. No read begins after the end of the load."""

    def __init__(self, context: ReadContext, path: str) -> None:
        self.context = context
        self.path = path
        self.limits = context.source.limits
        self._tally = ReadTally()
        self._source = RetryingSource(context.source, context.shared_retries, context.is_cancelled)

    @property
    def tally(self) -> ReadTally:
        self._tally.retries = self._source.retried
        return self._tally

    def size(self) -> int:
        sizes = self.context.file_sizes
        if self.path not in sizes:
            sizes[self.path] = self._call(self._source.stat, self.path).size
        return sizes[self.path]

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers`` from byte ``start`` of the file on."""
        nbytes = sum(map(len, buffers))
        reads: Sequence[Read] = (Read(start, buffers),)
        if nbytes > self.limits.max_request_bytes:
            reads = self._split(start, buffers)
        self._count(self._call(self._source.read, self.path, reads), nbytes)

    def read_rows(self, base: int, run: Run, memory: memoryview) -> bool:
        """Read rows without the bytes between them, if the source can; returns whether it did.

        If not, the caller reads through them with :meth:`read_into`, which raises any error.
        """
        read = getattr(self._source, "read_rows", None)
        with suppress(OSError):
            if read is not None and (stats := self._call(read, self.path, base, run, memory)):
                self._count(stats, run.total_bytes)
                return True
        return False

    def _call(self, method: Callable[..., Answer], *args: Any) -> Answer:
        self._require_running()
        try:
            return method(*args)
        except Exception:
            self._require_running()  # the end of the load also ends retries
            raise

    def _require_running(self) -> None:
        if self.context.is_cancelled is not None and self.context.is_cancelled():
            raise Cancelled

    def _split(self, start: int, buffers: Sequence[memoryview]) -> list[Read]:
        reads: list[Read] = []
        most = self.limits.max_request_bytes
        for buffer in buffers:
            starts = range(0, len(buffer), most)
            reads += [Read(start + at, (buffer[at : at + most],)) for at in starts]
            start += len(buffer)
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
    cause: BaseException | None = known
    while cause is not None:  # live tracebacks would keep whole blocks of bytes alive
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return known


def failures(error: Exception, items: Iterable[int]) -> list[Failed]:
    """``error`` as the failure of each of ``items``. Call where it is handled."""
    known = item_error(error)
    # The engine adds the item's name. A copy has no cause, so the first item gets the original.
    return [
        Failed(item=item, error=copy.copy(known) if n else known) for n, item in enumerate(items)
    ]
