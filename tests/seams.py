"""A format with known layouts, and a destination whose copies are done later."""

from __future__ import annotations

import json
import math
import struct
import time
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from paraload import ParallelFileSystemReader
from paraload.core.records import DTYPE_BYTES, TensorRecord, dtype_name
from paraload.destinations.conversion import HostDestination
from paraload.formats import NeedBytes, Unsupported
from paraload.geometry.runs import contiguous_strides

_PREFIX = struct.Struct("<4sI")
_MAX_HEADER_BYTES = 1 << 16


def flat_record(tensor):
    """``FLAT``, the length of a JSON header, the header, the bytes of the tensor."""
    header = json.dumps({"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape)}).encode()
    payload = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return _PREFIX.pack(b"FLAT", len(header)) + header + payload


class FlatFormat:
    """:class:`~paraload.formats.ItemFormat` without checksums."""

    first_bytes = 64
    has_checksum = False

    def locate(self, head, record_bytes):
        if len(head) < _PREFIX.size:
            is_whole = len(head) == record_bytes or not b"FLAT".startswith(head[:4])
            return Unsupported("not flat") if is_whole else NeedBytes(min(64, record_bytes))
        magic, header_bytes = _PREFIX.unpack_from(head)
        start = _PREFIX.size + header_bytes
        if magic != b"FLAT" or header_bytes > _MAX_HEADER_BYTES or start > record_bytes:
            return Unsupported("not flat")
        if len(head) < start:
            return NeedBytes(start)
        try:
            header = json.loads(head[_PREFIX.size : start])
            record = flat_layout(header["dtype"], tuple(header["shape"]), start)
        except (ValueError, KeyError, TypeError):
            return Unsupported("not flat")
        is_inside = record.is_sound() and record.end <= record_bytes
        return record if is_inside else Unsupported("payload outside its record")

    def read_trailer(self, trailer, payload_bytes):
        return 0


def flat_layout(dtype, shape, start):
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("impossible shape")
    nbytes = DTYPE_BYTES[dtype]
    for size in shape:
        nbytes *= size
    return TensorRecord(
        dtype=dtype,
        itemsize=DTYPE_BYTES[dtype],
        shape=shape,
        strides=contiguous_strides(shape),
        storage_offset=0,
        start=start,
        end=start + nbytes,
    )


@dataclass
class FlatInfo:
    """Where a tensor is stored, and its layout: what safetensors headers tell as well."""

    relative_path: str
    offset: int
    length: int
    layout: TensorRecord


def flat_checkpoint(tensors, *, files):
    """``{path: bytes}`` and the metadata of a checkpoint in this format."""
    contents = {f"part-{number}.flat": bytearray() for number in range(files)}
    entries, storage = {}, {}
    for number, (name, tensor) in enumerate(tensors.items()):
        path = f"part-{number % files}.flat"
        data = flat_record(tensor)
        layout = FlatFormat().locate(data[:_MAX_HEADER_BYTES], len(data))
        origin = torch.Size([0] * tensor.dim())
        entries[name] = TensorStorageMetadata(
            TensorProperties(dtype=tensor.dtype),
            tensor.size(),
            [ChunkStorageMetadata(origin, tensor.size())],
        )
        storage[MetadataIndex(name, origin)] = FlatInfo(
            path, len(contents[path]), len(data), layout
        )
        contents[path] += data
    return {path: bytes(data) for path, data in contents.items()}, Metadata(
        entries, storage_data=storage
    )


class FlatReader(ParallelFileSystemReader):
    """Reads such a checkpoint from any source into any destination."""

    def __init__(self, metadata, source, destination, **options):
        super().__init__("checkpoint-in-memory", **options)
        self.metadata, self.source, self.destination = metadata, source, destination

    def read_metadata(self, *_, **__):
        return self.metadata

    def _make_source(self):
        return self.source

    def _make_format(self):
        return FlatFormat()

    def _make_destination(self):
        return self.destination


class LateCopy:
    def __init__(self, copy, polls, on_done):
        self._copy, self._polls, self._on_done = copy, polls, on_done

    def wait(self, timeout_s):
        until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._polls -= 1
            if self._polls <= 0 and self._copy is not None:
                copy, self._copy = self._copy, None
                self._on_done()
                copy()
            if self._copy is None or time.monotonic() >= until_s:
                return self._copy is None


class LateDestination(HostDestination):
    """Copies when it has been asked for it a few times, out of memory that must still be there.

    Attributes:
        most_under_way: copies at once.
        copies: that have begun.
    """

    def __init__(self, *, polls=3, error=None, strict=False):
        super().__init__(strict=strict)
        self.polls, self.error = polls, error
        self.copies = self.under_way = self.most_under_way = 0

    def copy_into(self, target, source, *, item):
        self.require_copyable(target, source, item=item)
        self.copies += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def copy():
            if self.error is not None:
                raise self.error
            target.detach().copy_(source)

        return LateCopy(copy, self.polls, self._done)

    def _done(self):
        self.under_way -= 1
