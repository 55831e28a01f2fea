"""Whole records: small ones read in blocks, transformed ones, and those that only torch can read.

    block of the file --> cut into records --> decode --> locate --> check --> sink
    stream of a hook  --> slice_file ------^

Imports no torch, unless a ``narrow_tensor`` hook needs it.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import IO, Any, cast

from paraload.core.results import Failed, LandedItems, Outcome
from paraload.core.tasks import RecordSpec, RecordsTask
from paraload.formats import Unsupported, locate
from paraload.formats.archive import check_archive
from paraload.formats.record_checks import check_payload, check_range, check_stored, most_bytes
from paraload.formats.transforms import decode, no_decoder, slice_stream
from paraload.sources import StreamingSource
from paraload.workers.audit import audit_in_memory
from paraload.workers.layout_cache import take_cached
from paraload.workers.read_context import Meter, NarrowedTensor, Work, item_error
from paraload.workers.sinks import TargetSink as Sink


class _Taken:
    """What became of the items of a task: those that have landed are counted as one outcome."""

    def __init__(self) -> None:
        self._others: list[Outcome] = []
        self._landed: list[int] = []
        self._nbytes = 0
        self._verified_bytes = 0
        self._unverified = 0

    def __len__(self) -> int:
        return len(self._others) + len(self._landed)

    def take(self, spec: RecordSpec, step: Callable[..., Outcome | None], *args: Any) -> None:
        """Run ``step``, which either calls :meth:`land` or has an outcome of its own."""
        try:
            outcome = step(*args)
        except Exception as error:  # noqa: BLE001 - becomes the item's failure, with its traceback
            outcome = Failed(item=spec.item, error=item_error(error))
        if outcome is not None:
            self._others.append(outcome)

    def land(self, item: int, nbytes: int, verified_bytes: int) -> None:
        """The item is in its target."""
        self._landed.append(item)
        self._nbytes += nbytes
        self._verified_bytes += verified_bytes
        self._unverified += nbytes > 0 and not verified_bytes

    def outcomes(self) -> list[Outcome | LandedItems]:
        """All of them."""
        if not self._landed:
            return [*self._others]
        landed = LandedItems(
            items=tuple(self._landed),
            nbytes=self._nbytes,
            verified_bytes=self._verified_bytes,
            unverified=self._unverified,
        )
        return [landed, *self._others]


def read_records(task: RecordsTask, meter: Meter, sink: Sink) -> list[Outcome | LandedItems]:
    """Read the range of ``task`` at once and cut the records out of it."""
    taken = _Taken()
    try:
        block = _read_block(task, meter)
    except Exception:  # noqa: BLE001 - read one by one, so that each item tells its own problem
        for spec in task.specs:
            taken.take(spec, _read_record, meter, sink, taken, spec)
        return taken.outcomes()
    view = memoryview(block)

    def take(spec: RecordSpec) -> None:
        data = view[spec.start - task.start : spec.end - task.start]
        taken.take(spec, _take_record, meter, sink, taken, spec, data)

    work = meter.work
    if work.transform is not None or work.narrow_tensor is not None:
        for spec in task.specs:
            take(spec)
        return taken.outcomes()
    landed = take_cached(task, block, sink.targets, sink.layouts, work, take)
    return [landed, *taken.outcomes()] if landed.items else taken.outcomes()


def _read_block(task: RecordsTask, meter: Meter) -> bytearray:
    """The range of ``task``.

    Raises:
        ItemReadError: one of the records has an impossible range, or it cannot be read.
    """
    file_bytes = meter.size()
    if task.start < 0 or task.end > file_bytes:
        for spec in task.specs:
            check_range(spec, file_bytes)
    block = bytearray(task.end - task.start)
    meter.read_into(task.start, [memoryview(block)])
    return block


def _read_record(meter: Meter, sink: Sink, taken: _Taken, spec: RecordSpec) -> Outcome | None:
    check_range(spec, meter.size())
    data = memoryview(bytearray(spec.length))
    meter.read_into(spec.start, [data])
    return _take_record(meter, sink, taken, spec, data)


def read_streams(task: RecordsTask, meter: Meter, sink: Sink) -> list[Outcome | LandedItems]:
    """One stream for the task; items that it did not come to fail with what ended it."""
    taken = _Taken()
    slice_file = meter.work.slice_file or slice_stream

    def take(stream: IO[bytes], spec: RecordSpec) -> Outcome | None:
        data = slice_file(stream, spec.for_hooks.storage).read()
        meter.tally.reads += 1
        meter.tally.bytes_read += len(data)
        return _take_record(meter, sink, taken, spec, memoryview(data))

    try:
        # A load without streams is refused where it needs them.
        with cast("StreamingSource", meter.work.source).open_stream(task.path) as stream:
            for spec in task.specs:
                taken.take(spec, take, stream, spec)
    except Exception as error:  # noqa: BLE001 - becomes the failure of every item left
        failure = item_error(error)
        left = (
            Failed(item=spec.item, error=copy.copy(failure)) for spec in task.specs[len(taken) :]
        )
        return [*taken.outcomes(), *left]
    return taken.outcomes()


def _take_record(
    meter: Meter, sink: Sink, taken: _Taken, spec: RecordSpec, data: memoryview
) -> Outcome | None:
    work = meter.work
    if work.transform is not None or spec.wanted.descriptors:
        data = _decoded(work, spec, data)
    if work.audit:
        return audit_in_memory(meter, sink.layouts, spec, data)
    if spec.kind == "bytes":
        return _checked_raw(meter, sink, spec, data, "")
    if (hook := work.narrow_tensor) is not None:
        verified = check_archive(data, most_bytes(spec), verify=work.verify)
        return sink.put_narrowed(spec, _narrow(hook, spec, data), verified)
    found = spec.layout or locate(work.format, lambda nbytes: bytes(data[:nbytes]), len(data))
    if isinstance(found, Unsupported):
        return _checked_raw(meter, sink, spec, data, found.reason)
    check_stored(spec, found.dtype, found.shape)
    verified = check_payload(work.format, found, data) if work.verify else 0
    put = sink.put_tensor(spec, found, data, verified)
    if not isinstance(put, int):
        return put
    taken.land(spec.item, put, verified)
    if not spec.wanted.descriptors:
        sink.layouts.learn_target(spec, sink.targets[spec.item], found, data)
    return None


def _decoded(work: Work, spec: RecordSpec, data: memoryview) -> memoryview:
    """The record without the transforms that its descriptors name."""
    descriptors = spec.wanted.descriptors
    decoders, unknown = work.decoders.get(descriptors, ((), descriptors))
    if unknown and work.transform is None:
        raise no_decoder(unknown[0])
    data = decode(data, decoders, most_bytes(spec))
    if work.transform is None:
        return data
    return memoryview(work.transform(spec.for_hooks.read_item, unknown, io.BytesIO(data)).read())


def _narrow(hook: Callable[..., Any], spec: RecordSpec, data: memoryview) -> NarrowedTensor:
    # The hook works on tensors, so this is the one place where a worker needs torch.
    from paraload.formats.torch_load import narrow_with_hook  # noqa: PLC0415

    return NarrowedTensor(**narrow_with_hook(data, hook, spec.wanted.offsets, spec.wanted.lengths))


def _checked_raw(
    meter: Meter, sink: Sink, spec: RecordSpec, data: memoryview, reason: str
) -> Outcome:
    verified = check_archive(data, most_bytes(spec), verify=meter.work.verify)
    return sink.put_raw(spec, data, reason, verified)
