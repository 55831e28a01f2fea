"""Whole records: small ones read in blocks, transformed ones, and those that only torch can read.

    block of the file --> cut into records --> decode --> locate --> check --> sink
    stream of a hook  --> slice_file ------^

Imports no torch, unless a ``narrow_tensor`` hook needs it.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from typing import IO, Any, cast

from paraload.core.checksum import crc32
from paraload.core.records import TensorRecord
from paraload.core.results import LandedItems, Outcome, Raw, Staged
from paraload.core.tasks import RecordSpec, RecordsTask
from paraload.errors import TransformError
from paraload.formats import Unsupported, locate
from paraload.formats.archive import check_archive
from paraload.formats.record_checks import check_payload, check_range, check_stored, most_bytes
from paraload.formats.transforms import decode, no_decoder, slice_stream
from paraload.sources import StreamingSource
from paraload.workers.audit import audit_record
from paraload.workers.read_context import ReadContext, TaskReader, failures
from paraload.workers.sinks import TargetSink as Sink

Result = Outcome | LandedItems


def read_records(task: RecordsTask, reader: TaskReader, sink: Sink) -> list[Result]:
    """Read the range of ``task`` at once and cut the records out of it."""
    try:
        block = _read_block(task, reader)
    except Exception:  # noqa: BLE001 - read one by one, so that each item gets its own error
        return [guarded(spec, _read_record, reader, sink, spec) for spec in task.specs]
    view = memoryview(block)

    def take(spec: RecordSpec) -> Result:
        data = view[spec.start - task.start : spec.end - task.start]
        return guarded(spec, _take_record, reader, sink, spec, data)

    context = reader.context
    if context.transform is not None or context.narrow_tensor is not None:
        return [take(spec) for spec in task.specs]
    return _take_cached(task, block, reader, sink, take)


def _take_cached(
    task: RecordsTask,
    block: bytearray,
    reader: TaskReader,
    sink: Sink,
    otherwise: Callable[..., Result],
) -> list[Result]:
    """Land, or audit, the records in ``block`` that have a known layout.

    ``otherwise`` takes every other record, and may learn its layout.
    """
    fmt, targets, layouts = reader.context.format, sink.targets, sink.layouts
    read_trailer = fmt.read_trailer
    verify = reader.context.verify and fmt.has_checksum
    view = memoryview(block)
    items: list[int] = []
    outcomes: list[Result] = []
    nbytes = verified_bytes = unverified = 0
    for spec in task.specs:
        at, end = spec.start - task.start, spec.end - task.start
        target = targets.get(spec.item)
        cached = layouts.find(spec.wanted, end - at, None if target is None else target.layout)
        if cached is None or not block.startswith(cached.head, at):
            outcomes.append(otherwise(spec))
            continue
        record, run = cached.record, cached.run
        payload = view[at + record.start : at + record.end]
        expected = record.crc if verify else 0
        if cached.tail is not None:
            expected = cached.tail.payload_crc(block[at + record.end : end])
        elif verify and record.trailer is not None:
            start, stop = record.trailer
            expected = read_trailer(view[at + start : min(at + stop, end)], len(payload))
        if expected is None or (expected and crc32(payload) != expected):
            outcomes.append(otherwise(spec))
            continue
        if target is not None:
            src, dst = run.src, run.dst
            target.memory[dst : dst + run.nbytes] = payload[src : src + run.nbytes]
        items.append(spec.item)
        nbytes += run.nbytes
        if expected:
            verified_bytes += len(payload) + cached.around_bytes
        elif run.nbytes:
            unverified += 1
    return joined([LandedItems(tuple(items), nbytes, verified_bytes, unverified), *outcomes])


def joined(outcomes: Iterable[Result]) -> list[Result]:
    """One outcome for all landed items, since each outcome costs the engine 2 us."""
    others: list[Result] = []
    landed: defaultdict[str, list[LandedItems]] = defaultdict(list)
    for outcome in outcomes:
        if not isinstance(outcome, LandedItems):
            others.append(outcome)
        elif outcome.items:
            landed[outcome.reason].append(outcome)
    for reason, same in landed.items():
        items, *counts, _ = zip(*same, strict=True)
        nbytes, verified_bytes, unverified = map(sum, counts)
        all_items = tuple(chain.from_iterable(items))
        others.append(LandedItems(all_items, nbytes, verified_bytes, unverified, reason))
    return others


def guarded(spec: RecordSpec, step: Callable[..., Result], *args: Any) -> Result:
    """The outcome of ``step``; if it raises, the failure of the item."""
    try:
        return step(*args)
    except Exception as error:  # noqa: BLE001 - torch.load raises anything for damaged bytes
        return failures(error, (spec.item,))[0]


def _read_block(task: RecordsTask, reader: TaskReader) -> bytearray:
    file_bytes = reader.size()
    if task.start < 0 or task.end > file_bytes:
        for spec in task.specs:
            check_range(spec, file_bytes)
    block = bytearray(task.end - task.start)
    reader.read_into(task.start, [memoryview(block)])
    return block


def _read_record(reader: TaskReader, sink: Sink, spec: RecordSpec) -> Result:
    check_range(spec, reader.size())
    data = memoryview(bytearray(spec.length))
    reader.read_into(spec.start, [data])
    return _take_record(reader, sink, spec, data)


def read_streams(task: RecordsTask, reader: TaskReader, sink: Sink) -> list[Result]:
    """Open one stream for the task; what ends it fails the items that were not reached."""
    outcomes: list[Result] = []
    context = reader.context
    slice_file = context.slice_file or slice_stream
    is_checked = context.slice_file is not None and context.transform is None
    specs = iter(task.specs)

    def take(stream: IO[bytes], spec: RecordSpec) -> Result:
        sliced = slice_file(stream, spec.for_hooks.storage)
        data = _bytes_of(sliced, "slice_file", _known_bytes(spec) if is_checked else None)
        reader.tally.reads += 1
        reader.tally.bytes_read += len(data)
        return _take_record(reader, sink, spec, data)

    try:
        # Loads that need streams are refused earlier if the source has none.
        with cast("StreamingSource", context.source).open_stream(task.path) as stream:
            outcomes += [guarded(spec, take, stream, spec) for spec in specs]
    except Exception as error:  # noqa: BLE001 - becomes the failure of every item left
        outcomes += failures(error, [spec.item for spec in specs])
    return outcomes


def _take_record(reader: TaskReader, sink: Sink, spec: RecordSpec, data: memoryview) -> Result:
    context = reader.context
    if context.transform is not None or spec.wanted.descriptors:
        data = _decoded(context, spec, data)
    if context.narrow_tensor is not None and spec.kind == "tensor":
        return _narrowed(context, sink, spec, data, context.narrow_tensor)
    found = find_payload(reader, spec, lambda nbytes: bytes(data[:nbytes]), len(data))
    if context.audit:
        return audit_record(reader, sink.layouts, spec, found, data)
    if isinstance(found, Unsupported):
        verified = check_archive(data, most_bytes(spec), verify=context.verify)
        data = sink.keep(spec.item, data)
        return Raw(item=spec.item, data=data, reason=found.reason, verified_bytes=verified)
    verified = check_payload(context.format, found, data) if context.verify else 0
    put = sink.put_tensor(spec, found, data, verified)
    if not isinstance(put, int):
        return put
    if not spec.wanted.descriptors:
        sink.layouts.learn_target(spec, sink.targets[spec.item], found, data)
    return LandedItems((spec.item,), put, verified, unverified=int(put > 0 and not verified))


def find_payload(
    reader: TaskReader, spec: RecordSpec, read_head: Callable[[int], bytes], record_bytes: int
) -> TensorRecord | Unsupported:
    """Where the payload lies. Raises if the tensor is not the one that the metadata describes."""
    if spec.kind == "bytes":
        return Unsupported("")
    head_bytes = reader.limits.head_bytes
    found = spec.layout or locate(reader.context.format, read_head, record_bytes, head_bytes)
    if isinstance(found, TensorRecord):
        check_stored(spec, found.dtype, found.shape)
    return found


def _decoded(context: ReadContext, spec: RecordSpec, data: memoryview) -> memoryview:
    """The record without the transforms that its descriptors name."""
    descriptors = spec.wanted.descriptors
    decoders, unknown = context.decoders.get(descriptors, ((), descriptors))
    if unknown and context.transform is None:
        raise no_decoder(unknown[0])
    data = decode(data, decoders, most_bytes(spec))
    if context.transform is None:
        return data
    stream = context.transform(spec.for_hooks.read_item, unknown, io.BytesIO(data))
    return _bytes_of(stream, "transform", _known_bytes(spec))


def _known_bytes(spec: RecordSpec) -> int | None:
    """Decoded bytes of a record without a header, such as that of safetensors."""
    return None if spec.layout is None else spec.layout.end


def _bytes_of(stream: Any, hook: str, nbytes: int | None) -> memoryview:
    """All that is in the stream of a hook, which must be ``nbytes`` unless that is ``None``."""
    read = getattr(stream, "read", None)
    data = None if read is None else read()
    got = f"an object of type {type(stream).__name__}"
    if isinstance(data, bytes | bytearray | memoryview):
        if nbytes in {None, len(data)}:
            return memoryview(data)
        got = f"{len(data)} bytes"
    raise TransformError(
        f"the hook {hook} did not return the item's bytes",
        expected="a binary stream" if nbytes is None else f"a binary stream of {nbytes} bytes",
        got=got,
        hint="Return a stream of these bytes alone, such as an io.BytesIO",
    )


def _narrowed(
    context: ReadContext, sink: Sink, spec: RecordSpec, data: memoryview, hook: Callable[..., Any]
) -> Staged:
    # The hook works on tensors, so this is the one place where a worker needs torch.
    from paraload.formats.torch_load import narrow_with_hook  # noqa: PLC0415

    verified = 0
    if spec.layout is None:
        verified = check_archive(data, most_bytes(spec), verify=context.verify)
    elements, dtype, shape = narrow_with_hook(
        data, spec.layout, hook, spec.wanted.offsets, spec.wanted.lengths
    )
    return Staged(
        item=spec.item,
        data=sink.keep(spec.item, elements),
        dtype=dtype,
        lengths=shape,
        order=tuple(range(len(shape))),
        cut=None,
        verified_bytes=verified,
    )
