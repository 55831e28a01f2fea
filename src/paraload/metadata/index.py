"""What a checkpoint stores, and where, as plain values. No torch, no I/O.

    .metadata of DCP --dcp_index--> CheckpointIndex --> tools: verify, inspect, load, bench

An index has an object for every chunk: 0.13 s for 50,000 of them, half the time that planning a
load takes. So a load makes none: ``dcp_index.StoredTensors`` looks up the chunks of its plan.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from operator import attrgetter
from typing import NamedTuple

from paraload.core.records import TensorRecord
from paraload.geometry.coverage import chunks_fault
from paraload.geometry.runs import Shape


class Place(NamedTuple):
    """Bytes ``[start, end)`` of the file ``path``; ``descriptors`` name their transforms.

    ``layout`` is known where the bytes have no header of their own.
    """

    path: str
    start: int
    end: int
    descriptors: tuple[str, ...] = ()
    layout: TensorRecord | None = None


class Chunk(NamedTuple):
    """A stored slice of a tensor; or a whole object, without dtype, offsets and lengths."""

    name: str
    dtype: str | None
    offsets: Shape | None
    lengths: Shape | None
    place: Place | None


class Entry(NamedTuple):
    """A tensor with its chunks; or an object: one chunk, no dtype and shape, an itemsize of 0."""

    name: str
    dtype: str | None
    itemsize: int
    shape: Shape | None
    chunks: tuple[Chunk, ...]

    @property
    def places(self) -> list[Place]:
        return [chunk.place for chunk in self.chunks if chunk.place is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory, or of the object in its file."""
        if self.shape is None:
            return sum(place.end - place.start for place in self.places)
        return prod(self.shape) * self.itemsize


class IndexFault(NamedTuple):
    """A problem of an index; ``kind`` is that of ``verify``'s finding."""

    kind: str
    problem: str
    chunks: tuple[Chunk, ...] = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointIndex:
    """Everything that a checkpoint stores.

    Attributes:
        entries: tensors and objects, in the order of the metadata.
        unclaimed: chunks with a place, but without an entry.
    """

    entries: tuple[Entry, ...]
    unclaimed: tuple[Chunk, ...] = ()

    def records(self) -> list[tuple[Place, Chunk]]:
        """Chunks of entries with their places, in the order of the metadata."""
        return [
            (chunk.place, chunk)
            for entry in self.entries
            for chunk in entry.chunks
            if chunk.place is not None
        ]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors in memory."""
        return sum(entry.nbytes for entry in self.entries if entry.shape is not None)

    def places_by_file(self) -> dict[str, list[Place]]:
        """All places, those of unclaimed chunks too, by path."""
        by_file: defaultdict[str, list[Place]] = defaultdict(list)
        for chunk in chain(*(entry.chunks for entry in self.entries), self.unclaimed):
            if chunk.place is not None:
                by_file[chunk.place.path].append(chunk.place)
        return dict(sorted(by_file.items()))

    def faults(self) -> Iterator[IndexFault]:
        """Holes and overlaps of chunks; missing places and entries; shared bytes."""
        for entry in sorted(self.entries, key=attrgetter("name")):
            if (fault := _coverage_fault(entry)) is not None:
                yield fault
            for chunk in entry.chunks:
                # Writers may leave out chunks that have no elements.
                if chunk.place is None and 0 not in (chunk.lengths or ()):
                    text = "the metadata does not say where this is stored"
                    yield IndexFault("missing-entry", text, (chunk,))
        for chunk in self.unclaimed:
            text = "the metadata says where this is stored, but not what it is"
            yield IndexFault("unused-entry", text, (chunk,), chunk.place)
        yield from self._shared_bytes()

    def _shared_bytes(self) -> Iterator[IndexFault]:
        last: tuple[Place, Chunk] | None = None
        for place, chunk in self._in_file_order():
            if last is not None and last[0].path == place.path:
                if place.start < last[0].end:
                    shared = Place(place.path, place.start, min(place.end, last[0].end))
                    text = "two records are said to have the same bytes"
                    yield IndexFault("overlapping-records", text, (last[1], chunk), shared)
                if place.end <= last[0].end:
                    continue
            last = place, chunk

    def orphan_bytes(self, file_bytes: Mapping[str, int]) -> Iterator[IndexFault]:
        """Ranges that belong to no record, which is harmless; of files with their sizes."""
        ends = dict.fromkeys(file_bytes, 0)
        ranges = [place for place, _ in self._in_file_order() if place.path in ends]
        ranges += [Place(path, size, size) for path, size in file_bytes.items()]
        for path, start, end, *_ in ranges:
            if start > ends[path]:
                orphan = Place(path, ends[path], start)
                yield IndexFault("orphan-bytes", "no record has these bytes", (), orphan)
            ends[path] = max(ends[path], end)

    def _in_file_order(self) -> list[tuple[Place, Chunk]]:
        return sorted(self.records(), key=lambda record: record[0][:3])


def _coverage_fault(entry: Entry) -> IndexFault | None:
    if entry.shape is None:
        return None
    boxes = tuple([(chunk.offsets or (), chunk.lengths or ()) for chunk in entry.chunks])
    if (fault := chunks_fault(entry.shape, boxes)) is None:
        return None
    whole = Chunk(entry.name, entry.dtype, (0,) * len(entry.shape), entry.shape, None)
    text = f"the chunks do not make up the tensor: {fault}"
    return IndexFault("coverage", text, (whole,))
