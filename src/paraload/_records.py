"""Whole records: small ones read in blocks, transformed ones, and those that only torch can read.

    block of the file --> cut into records --> decode --> locate --> check --> sink
    stream of a hook  --> slice_file ------^

Imports no torch, unless a ``narrow_tensor`` hook needs it.
"""

from __future__ import annotations

import copy
import io
from typing import IO, TYPE_CHECKING, Any

from paraload._checks import check_payload, check_range, check_slice
from paraload._task import Failed
from paraload._work import NarrowedTensor, guarded, item_error
from paraload.errors import TransformError
from paraload.formats._base import NeedBytes, TensorRecord, Unsupported
from paraload.formats._torch_zip import FIRST_HEAD_BYTES, check_archive
from paraload.transforms import decode, slice_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from paraload._task import Outcome, RecordSpec, RecordsTask
    from paraload._work import Meter, Sink, Work
    from paraload.formats._base import ItemFormat

__all__ = ["read_records", "read_streams"]


def read_records(task: RecordsTask, meter: Meter, sink: Sink) -> list[Outcome]:
    try:
        block = _read_block(task, meter)
    except Exception:  # noqa: BLE001 - read one by one, so that each item tells its own problem
        return [guarded(spec, _read_record, meter, sink, spec) for spec in task.specs]
    outcomes = []
    for spec in task.specs:
        data = block[spec.start - task.start : spec.end - task.start]
        outcomes.append(guarded(spec, _take_record, meter, sink, spec, data))
    return outcomes


def _read_block(task: RecordsTask, meter: Meter) -> memoryview:
    for spec in task.specs:
        check_range(spec, meter.work.source.size(task.path))
    block = memoryview(bytearray(task.end - task.start))
    meter.read_into(task.start, [block])
    return block


def _read_record(meter: Meter, sink: Sink, spec: RecordSpec) -> Outcome:
    check_range(spec, meter.work.source.size(spec.path))
    data = memoryview(bytearray(spec.length))
    meter.read_into(spec.start, [data])
    return _take_record(meter, sink, spec, data)


def read_streams(task: RecordsTask, meter: Meter, sink: Sink) -> list[Outcome]:
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
                outcomes.append(guarded(spec, take, stream, spec))  # noqa: PERF401 - kept on error
    except Exception as error:  # noqa: BLE001 - torch.load raises anything for damaged bytes
        failure = item_error(error)
        outcomes += [
            Failed(item=spec.item, error=copy.copy(failure)) for spec in task.specs[len(outcomes) :]
        ]
    return outcomes


def _take_record(meter: Meter, sink: Sink, spec: RecordSpec, data: memoryview) -> Outcome:
    data = _decoded(meter.work, spec, data)
    if spec.kind == "bytes":
        return _checked_raw(meter, sink, spec, data, "")
    if (hook := meter.work.narrow_tensor) is not None:
        verified = (check_archive(data) or 0) if meter.work.verify else 0
        return sink.put_narrowed(spec, _narrow(hook, spec, data), verified)
    found = _locate_in(meter.work.format, data)
    if isinstance(found, Unsupported):
        return _checked_raw(meter, sink, spec, data, found.reason)
    check_slice(spec, found.shape)
    verified = check_payload(meter.work.format, found, data) if meter.work.verify else 0
    return sink.put_tensor(spec, found, data, verified)


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


def _narrow(hook: Callable[..., Any], spec: RecordSpec, data: memoryview) -> NarrowedTensor:
    # The hook works on tensors, so this is the one place where a worker needs torch.
    from paraload.formats._torch_load import narrow_with_hook  # noqa: PLC0415

    return NarrowedTensor(
        **narrow_with_hook(data, hook, spec.info.storage_offsets, spec.info.lengths)
    )


def _checked_raw(
    meter: Meter, sink: Sink, spec: RecordSpec, data: memoryview, reason: str
) -> Outcome:
    verified = (check_archive(data) or 0) if meter.work.verify else 0
    return sink.put_raw(spec, data, reason, verified)
