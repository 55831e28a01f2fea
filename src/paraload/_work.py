"""What every task of a load needs, wherever it runs. No torch."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from paraload._result import Failed, ReadTally
from paraload._retry import is_transient, pauses, storage_error
from paraload.errors import ItemReadError
from paraload.formats._torch_zip import TorchZipFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from paraload import _geometry as geometry
    from paraload._alike import Ways
    from paraload._result import Outcome
    from paraload._sink import TargetMemory
    from paraload._task import RecordSpec, RunsTask
    from paraload.formats._base import ItemFormat, TensorRecord
    from paraload.sources._base import ByteSource, Receipt
    from paraload.transforms import Decoder

Answer = TypeVar("Answer")

__all__ = ["Cancelled", "Meter", "NarrowedTensor", "Sink", "Work", "guarded", "item_error"]


@dataclass(kw_only=True)
class Work:
    """What every task of a load needs; pickles as configuration for worker processes."""

    source: ByteSource
    verify: bool
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

    @property
    def hooks(self) -> dict[str, Callable[..., Any]]:
        """The user's hooks that are set, by the name of their option."""
        hooks = {
            "slice_file": self.slice_file,
            "narrow_tensor": self.narrow_tensor,
            "transform": self.transform,
        }
        return {name: hook for name, hook in hooks.items() if hook is not None}


class Sink(Protocol):
    """Where the bytes of a task go.

    Attributes:
        targets: memory by item, as far as this process can write to it.
        ways: that small records have been found to go.
    """

    targets: Mapping[int, TargetMemory]
    ways: Ways

    def memory(self, task: RunsTask) -> tuple[memoryview, tuple[geometry.Run, ...]]:
        """The memory that ``task.runs`` land in, and the runs as they lie there."""

    def put_tensor(
        self, spec: RecordSpec, record: TensorRecord, data: memoryview, verified_bytes: int
    ) -> Outcome | int:
        """Take the needed slice of the payload in ``data``, a whole decoded record.

        Returns:
            The bytes that are in the item's target now; or an outcome, if they are not there yet.
        """

    def put_raw(
        self, spec: RecordSpec, data: memoryview, reason: str, verified_bytes: int
    ) -> Outcome:
        """Take the whole decoded record."""

    def put_narrowed(
        self, spec: RecordSpec, narrowed: NarrowedTensor, verified_bytes: int
    ) -> Outcome:
        """Take a tensor that a ``narrow_tensor`` hook has cut."""


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
    """Counts the reads of one task, tries them again, and lets none begin after the load's end.

    A task that has used up its tries for one read gets no more of them: where a whole file cannot
    be read, its thousand small records shall not wait for it one by one.
    """

    def __init__(self, work: Work, path: str) -> None:
        self.work = work
        self.path = path
        self.tally = ReadTally()
        self._retries_left = work.retries

    def size(self) -> int:
        """Bytes of the file."""
        try:
            return self.work.source.size(self.path)
        except OSError as error:
            return self._try_again(error, None, None, partial(self.work.source.size, self.path))

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> None:
        """Fill ``buffers`` from ``start`` on."""
        if self.work.is_cancelled is not None and self.work.is_cancelled():
            raise Cancelled
        source, nbytes = self.work.source, sum(map(len, buffers))
        try:
            receipt = source.read_into(self.path, start, buffers)
        except OSError as error:
            read = partial(source.read_into, self.path, start, buffers)
            receipt = self._try_again(error, start, start + nbytes, read)
        self._count(receipt, nbytes)

    def read_rows(self, base: int, run: geometry.Run, memory: memoryview) -> bool:
        """Copy rows alone to where they belong; ``False`` if they are to be read through.

        Whatever is wrong with the file is left for those reads to find.
        """
        if self.work.is_cancelled is not None and self.work.is_cancelled():
            raise Cancelled
        try:
            receipt = self.work.source.read_rows(self.path, base, run, memory)
        except OSError:
            return False
        if receipt is not None:
            self._count(receipt, run.total_bytes)
        return receipt is not None

    def _count(self, receipt: Receipt, nbytes: int) -> None:
        tally = self.tally
        tally.reads += receipt.requests
        tally.bytes_read += nbytes
        tally.bytes_direct += receipt.bytes_direct
        tally.fallback = tally.fallback or receipt.fallback

    def _try_again(
        self, error: OSError, start: int | None, end: int | None, read: Callable[[], Answer]
    ) -> Answer:
        tries = 1
        for _ in pauses(self._retries_left if is_transient(error) else 0, self.work.is_cancelled):
            self.work.source.forget(self.path)
            self.tally.retries += 1
            tries += 1
            try:
                return read()
            except OSError as again:
                error = again
                if not is_transient(again):
                    break
        if self.work.is_cancelled is not None and self.work.is_cancelled():
            raise Cancelled
        self._retries_left = 0
        raise storage_error(error, start=start, end=end, tries=tries)


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
