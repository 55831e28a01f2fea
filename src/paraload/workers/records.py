"""Whole records: small ones read in blocks, transformed ones, and those that only torch can read.

    block of the file --> cut into records --> decode --> locate --> check --> sink
    stream of a hook  --> slice_file ------^

Imports no torch, unless a ``narrow_tensor`` hook needs it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any, cast

from paraload.core.records import TensorRecord
from paraload.core.results import LandedItems, Outcome, Raw, Staged
from paraload.core.tasks import RecordSpec, RecordsTask
from paraload.formats import Unsupported, locate
from paraload.formats.archive import check_archive
from paraload.formats.record_checks import check_payload, check_range, check_stored, most_bytes
from paraload.formats.transforms import decode, no_decoder, slice_stream
from paraload.sources import StreamingSource
from paraload.workers.audit import audit_record
from paraload.workers.layout_cache import take_cached
from paraload.workers.read_context import Meter, Work, failures
from paraload.workers.sinks import TargetSink as Sink


def read_records(task: RecordsTask, meter: Meter, sink: Sink) -> list[Outcome | LandedItems]:
    """Read the range of ``task`` at once and cut the records out of it."""
    try:
        block = _read_block(task, meter)
    except Exception:  # noqa: BLE001 - read one by one, so that each item gets its own error
        return [guarded(spec, _read_record, meter, sink, spec) for spec in task.specs]
    view = memoryview(block)

    def take(spec: RecordSpec) -> Outcome | LandedItems:
        data = view[spec.start - task.start : spec.end - task.start]
        return guarded(spec, _take_record, meter, sink, spec, data)

    work = meter.work
    if work.transform is not None or work.narrow_tensor is not None:
        return [take(spec) for spec in task.specs]
    return take_cached(task, block, sink.targets, sink.layouts, work, take)


def guarded(
    spec: RecordSpec, step: Callable[..., Outcome | LandedItems], *args: Any
) -> Outcome | LandedItems:
    """The outcome of ``step``; if it raises, the failure of the item."""
    try:
        return step(*args)
    except Exception as error:  # noqa: BLE001 - torch.load raises anything for damaged bytes
        return failures(error, (spec.item,))[0]


def _read_block(task: RecordsTask, meter: Meter) -> bytearray:
    file_bytes = meter.size()
    if task.start < 0 or task.end > file_bytes:
        for spec in task.specs:
            check_range(spec, file_bytes)
    block = bytearray(task.end - task.start)
    meter.read_into(task.start, [memoryview(block)])
    return block


def _read_record(meter: Meter, sink: Sink, spec: RecordSpec) -> Outcome | LandedItems:
    check_range(spec, meter.size())
    data = memoryview(bytearray(spec.length))
    meter.read_into(spec.start, [data])
    return _take_record(meter, sink, spec, data)


def read_streams(task: RecordsTask, meter: Meter, sink: Sink) -> list[Outcome | LandedItems]:
    """Open one stream for the task; what ends it fails the items that were not reached."""
    outcomes: list[Outcome | LandedItems] = []
    slice_file = meter.work.slice_file or slice_stream
    specs = iter(task.specs)

    def take(stream: IO[bytes], spec: RecordSpec) -> Outcome | LandedItems:
        data = slice_file(stream, spec.for_hooks.storage).read()
        meter.tally.reads += 1
        meter.tally.bytes_read += len(data)
        return _take_record(meter, sink, spec, memoryview(data))

    try:
        # Loads that need streams are refused earlier if the source has none.
        with cast("StreamingSource", meter.work.source).open_stream(task.path) as stream:
            outcomes += [guarded(spec, take, stream, spec) for spec in specs]
    except Exception as error:  # noqa: BLE001 - becomes the failure of every item left
        outcomes += failures(error, [spec.item for spec in specs])
    return outcomes


def _take_record(
    meter: Meter, sink: Sink, spec: RecordSpec, data: memoryview
) -> Outcome | LandedItems:
    work = meter.work
    if work.transform is not None or spec.wanted.descriptors:
        data = _decoded(work, spec, data)
    if work.narrow_tensor is not None and spec.kind == "tensor":
        return _narrowed(work, sink, spec, data, work.narrow_tensor)
    found = find_payload(meter, spec, lambda nbytes: bytes(data[:nbytes]), len(data))
    if work.audit:
        return audit_record(meter, sink.layouts, spec, found, data)
    if isinstance(found, Unsupported):
        verified = check_archive(data, most_bytes(spec), verify=work.verify)
        data = sink.keep(spec.item, data)
        return Raw(item=spec.item, data=data, reason=found.reason, verified_bytes=verified)
    verified = check_payload(work.format, found, data) if work.verify else 0
    put = sink.put_tensor(spec, found, data, verified)
    if not isinstance(put, int):
        return put
    if not spec.wanted.descriptors:
        sink.layouts.learn_target(spec, sink.targets[spec.item], found, data)
    unverified = int(put > 0 and not verified)
    return LandedItems(
        items=(spec.item,), nbytes=put, verified_bytes=verified, unverified=unverified
    )


def find_payload(
    meter: Meter, spec: RecordSpec, read_head: Callable[[int], bytes], record_bytes: int
) -> TensorRecord | Unsupported:
    """Where the payload lies, in a tensor that is the one in the metadata."""
    if spec.kind == "bytes":
        return Unsupported("")
    head_bytes = meter.limits.head_bytes
    found = spec.layout or locate(meter.work.format, read_head, record_bytes, head_bytes)
    if isinstance(found, TensorRecord):
        check_stored(spec, found.dtype, found.shape)
    return found


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


def _narrowed(
    work: Work, sink: Sink, spec: RecordSpec, data: memoryview, hook: Callable[..., Any]
) -> Staged:
    # The hook works on tensors, so this is the one place where a worker needs torch.
    from paraload.formats.torch_load import narrow_with_hook  # noqa: PLC0415

    verified = check_archive(data, most_bytes(spec), verify=work.verify)
    narrowed = narrow_with_hook(data, hook, spec.wanted.offsets, spec.wanted.lengths)
    return Staged(
        item=spec.item,
        data=sink.keep(spec.item, narrowed["data"]),
        dtype=narrowed["dtype"],
        lengths=narrowed["shape"],
        order=tuple(range(len(narrowed["shape"]))),
        cut=None,
        verified_bytes=verified,
    )
