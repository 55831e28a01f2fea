"""Runs one task: bytes in, bytes out, and every problem tied to its item. Imports no torch.

      ReadTask ---> run_task(task, work, sink) ---> TaskResult
                       |            |
                  source, format    where bytes land: the targets' own memory (threads)
                  decoders, hooks   or a slot of shared memory (processes)

One failing item does not stop the others of its task. Only ``KeyboardInterrupt`` and the like leave
this module as exceptions.
"""

from __future__ import annotations

import io
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from paraload import _geometry as geometry
from paraload._checksum import crc32
from paraload._task import (
    Failed,
    Landed,
    LocateTask,
    Located,
    Outcome,
    Raw,
    ReadTask,
    RecordsTask,
    RecordSpec,
    RunsTask,
    TaskResult,
)
from paraload.errors import (
    DAMAGED_HINT,
    ChecksumMismatchError,
    FormatError,
    ItemReadError,
    ShapeMismatchError,
    ShortFileError,
    TransformError,
)
from paraload.formats._base import NeedBytes, TensorRecord, Unsupported
from paraload.formats._torch_zip import FIRST_HEAD_BYTES, TorchZipFormat, check_archive
from paraload.transforms import Decoder, decode, slice_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from paraload.formats._base import ItemFormat
    from paraload.sources._base import ByteSource

#: With a checksum, bytes are read in pieces that are still in the processor's cache when they are
#: summed. See benchmarks/README.md for the measurement.
CHECKED_READ_BYTES: Final = 1 << 20
#: Without one, a read is as long as a task.
UNCHECKED_READ_BYTES: Final = 1 << 30
#: Below the IOV_MAX of every system in use.
MAX_PIECES: Final = 1000


class Sink(Protocol):
    """Where the bytes of a task go."""

    def memory(self, task: RunsTask) -> tuple[memoryview, tuple[geometry.Run, ...]]:
        """The memory that ``task.runs`` land in, and the runs as they lie there."""

    def put_tensor(
        self, spec: RecordSpec, record: TensorRecord, data: memoryview, verified_bytes: int
    ) -> Outcome:
        """Take the needed slice of the payload in ``data``, a whole decoded record."""

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


class _Meter:
    """Reads of one task, and the only place that calls the source."""

    def __init__(self, work: Work, path: str) -> None:
        self.work = work
        self.path = path
        self.reads = 0
        self.bytes_read = 0

    def read_into(self, start: int, buffers: list[memoryview]) -> None:
        if self.work.is_cancelled is not None and self.work.is_cancelled():
            raise Cancelled
        self.reads += self.work.source.read_into(self.path, start, buffers)
        self.bytes_read += sum(map(len, buffers))


class Cancelled(BaseException):
    """The load ended while this task was running; nobody waits for its result."""


def run_task(task: ReadTask, work: Work, sink: Sink) -> TaskResult:
    """Do what ``task`` says."""
    started = time.monotonic()
    meter = _Meter(work, task.path)
    match task:
        case LocateTask():
            outcomes = [_guarded(spec, _locate, meter, spec) for spec in task.specs]
        case RecordsTask(as_stream=True):
            outcomes = _read_streams(task, meter, sink)
        case RecordsTask():
            outcomes = _read_records(task, meter, sink)
        case RunsTask():
            outcomes = [_read_runs(task, meter, sink)]
        case _:
            raise TypeError(f"no such task: {type(task).__name__}")
    return TaskResult(
        task=task,
        outcomes=tuple(outcomes),
        reads=meter.reads,
        bytes_read=meter.bytes_read,
        started_s=started,
        ended_s=time.monotonic(),
        worker=threading.current_thread().name,
    )


def describe_failure(
    error: Exception, *, item: int, fqn: str | None, path: str, start: int, end: int
) -> Failed:
    """Tie ``error`` to its item, whatever it was."""
    if isinstance(error, ItemReadError):
        known = error
    else:
        known = ItemReadError(f"{type(error).__name__}: {error}")
        known.__cause__ = error
    known.traceback_text = known.traceback_text or traceback.format_exc()
    return Failed(item=item, error=known.locate(fqn=fqn, path=path, start=start, end=end))


def _guarded(spec: RecordSpec, step: Callable[..., Outcome], *args: Any) -> Outcome:
    try:
        return step(*args)
    except Exception as error:  # noqa: BLE001 - becomes the item's failure, with its traceback
        return describe_failure(
            error, item=spec.item, fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end
        )


# ----------------------------------------------------------------------------- locating


def _locate(meter: _Meter, spec: RecordSpec) -> Outcome:
    check_range(meter.work.source, spec)
    if spec.kind == "bytes":
        return Located(item=spec.item, record=None)
    want = min(FIRST_HEAD_BYTES, spec.length)
    while True:
        head = bytearray(want)
        meter.read_into(spec.start, [memoryview(head)])
        found = meter.work.format.locate(bytes(head), spec.length)
        match found:
            case NeedBytes(nbytes=nbytes):
                want = nbytes
            case TensorRecord():
                check_slice(spec, found.shape)
                return Located(item=spec.item, record=found)
            case Unsupported(reason=reason):
                return Located(item=spec.item, record=None, reason=reason)


def check_range(source: ByteSource, spec: RecordSpec) -> None:
    """The record lies inside its file. Raises ``ItemReadError`` before anything is allocated."""
    if spec.start < 0 or spec.end < spec.start:
        raise FormatError(
            "metadata gives an impossible range",
            got=f"offset {spec.start}, length {spec.length}",
            hint="The metadata is damaged or belongs to another checkpoint",
        )
    size = source.size(spec.path)
    if spec.end > size:
        raise ShortFileError(
            "file ends too early",
            expected=f"at least {spec.end} bytes",
            got=f"{size} bytes",
            hint="The file was cut, or is still being written",
        )


def check_slice(spec: RecordSpec, shape: geometry.Shape) -> None:
    """The planned slice lies inside the stored tensor."""
    offsets, lengths = spec.info.storage_offsets, spec.info.lengths
    fits = len(shape) == len(lengths) == len(offsets) and all(
        o >= 0 and n >= 0 and o + n <= size
        for o, n, size in zip(offsets, lengths, shape, strict=True)
    )
    if not fits:
        raise ShapeMismatchError(
            "planned slice does not lie inside the stored tensor",
            expected=f"offsets {offsets}, lengths {lengths}",
            got=f"stored shape {shape}",
            hint="File and metadata do not belong together",
        )


# ----------------------------------------------------------------------------- whole records


def _read_records(task: RecordsTask, meter: _Meter, sink: Sink) -> list[Outcome]:
    try:
        if task.start < 0 or task.end > meter.work.source.size(task.path):
            raise FormatError("range outside the file")
        block = memoryview(bytearray(task.end - task.start))
        meter.read_into(task.start, [block])
    except Exception:  # noqa: BLE001 - read one by one, so that each item tells its own problem
        return [_guarded(spec, _read_record, meter, sink, spec) for spec in task.specs]
    outcomes = []
    for spec in task.specs:
        data = block[spec.start - task.start : spec.end - task.start]
        outcomes.append(_guarded(spec, _take_record, meter, sink, spec, data))
    return outcomes


def _read_record(meter: _Meter, sink: Sink, spec: RecordSpec) -> Outcome:
    check_range(meter.work.source, spec)
    data = memoryview(bytearray(spec.length))
    meter.read_into(spec.start, [data])
    return _take_record(meter, sink, spec, data)


def _read_streams(task: RecordsTask, meter: _Meter, sink: Sink) -> list[Outcome]:
    """One stream for the task; items that it did not come to fail with what ended it."""
    outcomes: list[Outcome] = []
    slice_file = meter.work.slice_file or slice_stream

    def take(stream: IO[bytes], spec: RecordSpec) -> Outcome:
        data = slice_file(stream, spec.storage).read()
        meter.reads += 1
        meter.bytes_read += len(data)
        return _take_record(meter, sink, spec, memoryview(data))

    try:
        with meter.work.source.open_stream(task.path) as stream:
            for spec in task.specs:
                outcomes.append(_guarded(spec, take, stream, spec))  # noqa: PERF401 - kept on error
    except Exception as error:  # noqa: BLE001 - becomes the failure of every item left
        outcomes += [
            describe_failure(
                error, item=spec.item, fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end
            )
            for spec in task.specs[len(outcomes) :]
        ]
    return outcomes


def _take_record(meter: _Meter, sink: Sink, spec: RecordSpec, data: memoryview) -> Outcome:
    data = _decoded(meter.work, spec, data)
    if spec.kind == "bytes":
        return _checked_raw(meter, sink, spec, data, "")
    if meter.work.narrow_tensor is not None:
        verified = (check_archive(data) or 0) if meter.work.verify else 0
        return sink.put_narrowed(spec, _narrow(meter, spec, data), verified)
    found = _locate_in(meter.work.format, data)
    if isinstance(found, Unsupported):
        return _checked_raw(meter, sink, spec, data, found.reason)
    check_slice(spec, found.shape)
    return sink.put_tensor(spec, found, data, _verified_bytes(meter.work, found, data))


def _decoded(work: Work, spec: RecordSpec, data: memoryview) -> memoryview:
    descriptors = spec.storage.transform_descriptors
    decoders, unknown = work.decoders.get(descriptors, ((), descriptors))
    if unknown and work.transform is None:
        raise TransformError(
            f"no decoder for transform {unknown[0]!r}",
            hint="Register its extension with _extension_registry=, or pass transform=",
        )
    data = decode(data, decoders)
    if work.transform is None:
        return data
    return memoryview(work.transform(spec.info, unknown, io.BytesIO(data)).read())


def _locate_in(fmt: ItemFormat, data: memoryview) -> TensorRecord | Unsupported:
    want = FIRST_HEAD_BYTES
    while isinstance(found := fmt.locate(bytes(data[:want]), len(data)), NeedBytes):
        want = found.nbytes
    return found


def _narrow(meter: _Meter, spec: RecordSpec, data: memoryview) -> NarrowedTensor:
    # The hook works on tensors, so this is the one place where a worker needs torch.
    from paraload.formats._torch_load import narrow_with_hook  # noqa: PLC0415

    hook = meter.work.narrow_tensor
    return NarrowedTensor(
        **narrow_with_hook(data, hook, spec.info.storage_offsets, spec.info.lengths)
    )


def _checked_raw(
    meter: _Meter, sink: Sink, spec: RecordSpec, data: memoryview, reason: str
) -> Outcome:
    verified = (check_archive(data) or 0) if meter.work.verify else 0
    return sink.put_raw(spec, data, reason, verified)


def _verified_bytes(work: Work, record: TensorRecord, data: memoryview) -> int:
    """Check a payload that is in memory as a whole; the bytes that were proved right."""
    if not work.verify:
        return 0
    expected = record.crc
    if record.trailer is not None:
        trailer = bytes(data[slice(*record.trailer)])
        expected = _trailer_crc(work.format, trailer, record.payload_bytes)
    if not expected:
        return 0
    got = crc32(data[record.start : record.end])
    if got != expected:
        raise checksum_mismatch(expected, got)
    return record.payload_bytes


def _trailer_crc(fmt: ItemFormat, trailer: bytes, payload_bytes: int) -> int:
    crc = fmt.read_trailer(trailer, payload_bytes)
    if crc is None:
        raise FormatError(
            "the descriptor behind the payload is damaged",
            expected=f"one for {payload_bytes} bytes",
            got=trailer[:16].hex(),
            hint=DAMAGED_HINT,
        )
    return crc


def checksum_mismatch(expected: int, got: int) -> ChecksumMismatchError:
    """The error for a payload whose CRC-32 is wrong."""
    return ChecksumMismatchError(
        "the tensor's bytes are damaged",
        expected=f"CRC-32 {expected:08x}",
        got=f"{got:08x}",
        hint=DAMAGED_HINT,
    )


# ----------------------------------------------------------------------------- runs


def _read_runs(task: RunsTask, meter: _Meter, sink: Sink) -> Outcome:
    (item,) = task.items
    try:
        memory, runs = sink.memory(task)
        crc = _read_into(task, runs, memory, meter)
        expected = None
        if task.trailer is not None and task.checksum:
            start, end = task.trailer
            trailer = bytearray(end - start)
            meter.read_into(start, [memoryview(trailer)])
            payload_bytes = start - task.base
            expected = _trailer_crc(meter.work.format, bytes(trailer), payload_bytes)
    except Exception as error:  # noqa: BLE001 - becomes the item's failure, with its traceback
        return describe_failure(
            error, item=item, fqn=None, path=task.path, start=task.start, end=task.end
        )
    return Landed(
        item=item,
        nbytes=task.needed_bytes,
        src=task.runs[0].src if task.runs else 0,
        crc=crc if task.checksum else None,
        expected_crc=expected,
    )


def _read_into(
    task: RunsTask, runs: tuple[geometry.Run, ...], memory: memoryview, meter: _Meter
) -> int:
    """Read every run to its place; the CRC-32 of all of them in order, if it is wanted."""
    crc = 0
    discard = memoryview(bytearray(task.max_gap_bytes))
    reads = geometry.plan_reads(
        runs,
        max_gap_bytes=task.max_gap_bytes,
        max_read_bytes=CHECKED_READ_BYTES if task.checksum else UNCHECKED_READ_BYTES,
        max_pieces=MAX_PIECES,
    )
    for read in reads:
        buffers = [
            discard[:nbytes] if dst is None else memory[dst : dst + nbytes]
            for dst, nbytes in read.pieces
        ]
        meter.read_into(task.base + read.start, buffers)
        if task.checksum:
            for buffer in buffers:
                crc = crc32(buffer, crc)
    return crc
