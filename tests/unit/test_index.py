"""The index of a checkpoint has what its metadata has, and inconsistencies are found."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from paraload.metadata.dcp_index import index_of
from paraload.metadata.index import CheckpointIndex, Chunk, Entry, Place


class Grid(torch.Tensor):
    """A tensor that torch's writer saves in chunks: cut at these places of each dimension."""

    @classmethod
    def of(cls, whole, cuts):
        edges = [sorted({0, *at, size}) for at, size in zip(cuts, whole.shape, strict=True)]
        spans = [[(a, b - a) for a, b in itertools.pairwise(at)] for at in edges]
        grid = whole.as_subclass(cls)
        grid.whole = whole
        grid.boxes = [tuple(zip(*box, strict=True)) for box in itertools.product(*spans)]
        return grid

    def __create_write_items__(self, fqn, _):
        return [
            WriteItem(
                index=MetadataIndex(fqn, torch.Size(offsets), number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(lengths)),
                    properties=TensorProperties.create_from_tensor(self.whole),
                    size=self.whole.size(),
                ),
            )
            for number, (offsets, lengths) in enumerate(self.boxes)
        ]

    def __get_tensor_shard__(self, index):
        offsets, lengths = self.boxes[index.index]
        return self.whole[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]


@st.composite
def grids(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.complex64]))
    cuts = [draw(st.lists(st.integers(1, size), max_size=3)) for size in shape]
    return Grid.of(torch.zeros(shape, dtype=dtype), cuts)


def save(folder, state, files=2):
    writer = dcp.FileSystemWriter(folder, thread_count=files)
    dcp.save(state, storage_writer=writer, no_dist=True)
    return dcp.FileSystemReader(folder).read_metadata()


def sizes(folder):
    """Of the files that are not empty: a thread of the writer may have nothing to write."""
    files = Path(folder).glob("*.distcp")
    return {file.name: size for file in files if (size := file.stat().st_size)}


@settings(max_examples=25, deadline=None)
@given(st.lists(grids(), min_size=1, max_size=3), st.integers(1, 3))
def test_it_has_what_the_metadata_of_torch_s_writer_has(grids, files):
    state = {f"g{n}": grid for n, grid in enumerate(grids)} | {"note": "text", "b": torch.ones(2)}
    with tempfile.TemporaryDirectory() as folder:
        metadata = save(folder, state, files)
        on_disk = sizes(folder)
    index = index_of(metadata)
    assert [entry.name for entry in index.entries] == list(metadata.state_dict_metadata)
    assert list(index.faults()) == []
    assert list(index.orphan_bytes(on_disk)) == []
    assert index.unclaimed == ()
    assert {name: max(p.end for p in of) for name, of in index.places_by_file().items()} == on_disk
    assert len(index.records()) == len(metadata.storage_data)
    for entry in index.entries:
        stored = metadata.state_dict_metadata[entry.name]
        for chunk in entry.chunks:
            offset = None if chunk.offsets is None else torch.Size(chunk.offsets)
            info = metadata.storage_data[MetadataIndex(entry.name, offset)]
            place = Place(info.relative_path, info.offset, info.offset + info.length)
            assert (chunk.name, chunk.place, chunk.dtype) == (entry.name, place, entry.dtype)
        if entry.name == "note":
            assert (entry.dtype, entry.shape, entry.nbytes) == (None, None, info.length)
            continue
        assert f"torch.{entry.dtype}" == str(stored.properties.dtype)
        assert entry.shape == tuple(stored.size)
        assert entry.nbytes == torch.empty(stored.size, dtype=stored.properties.dtype).nbytes
        boxes = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in stored.chunks]
        assert [(chunk.offsets, chunk.lengths) for chunk in entry.chunks] == boxes
    assert index.tensor_bytes == sum(grid.whole.nbytes for grid in grids) + 8


# ----------------------------------------------------------------------------- damaged metadata


def drop_chunk(metadata):
    del metadata.state_dict_metadata["g"].chunks[1]


def double_chunk(metadata):
    metadata.state_dict_metadata["g"].chunks[1].sizes = torch.Size([3, 4])


def drop_place(metadata):
    del metadata.storage_data[MetadataIndex("g", torch.Size([2, 0]))]


def drop_place_of_object(metadata):
    del metadata.storage_data[MetadataIndex("note")]


def drop_entry(metadata):
    del metadata.state_dict_metadata["note"]


def share_a_place(metadata):
    infos = metadata.storage_data
    first, second = (MetadataIndex("g", torch.Size([row, 0])) for row in (0, 2))
    infos[second] = dataclasses.replace(infos[first])


MIDDLE = ("g", (2, 0), (2, 4))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            drop_chunk,
            {
                ("coverage", ("g", (0, 0), (6, 4))): "no chunk has the elements from (2, 0)",
                ("unused-entry", ("g", (2, 0), None)): "but not what it is",
            },
        ),
        (
            double_chunk,
            {("coverage", ("g", (0, 0), (6, 4))): "two chunks have the elements from (4, 0)"},
        ),
        (drop_place, {("missing-entry", MIDDLE): "does not say where"}),
        (drop_place_of_object, {("missing-entry", ("note", None, None)): "does not say where"}),
        (drop_entry, {("unused-entry", ("note", None, None)): "but not what it is"}),
        (
            share_a_place,
            {("overlapping-records", ("g", (0, 0), (2, 4)), MIDDLE): "have the same bytes"},
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, damage, expected):
    metadata = save(tmp_path, {"g": Grid.of(torch.zeros(6, 4), [[2, 4], []]), "note": "x"}, files=1)
    damage(metadata)
    faults = {
        (fault.kind, *((c.name, c.offsets, c.lengths) for c in fault.chunks)): fault.problem
        for fault in index_of(metadata).faults()
    }
    assert faults.keys() == expected.keys()
    assert [key for key, words in expected.items() if words not in faults[key]] == []


def test_a_whole_tensor_may_be_placed_without_an_offset(tmp_path):
    metadata = save(tmp_path, {"w": torch.zeros(3), "s": torch.tensor(1.0)})
    metadata.storage_data = {
        MetadataIndex(index.fqn): info for index, info in metadata.storage_data.items()
    }
    index = index_of(metadata)
    assert (list(index.faults()), len(index.records())) == ([], 2)


def test_transforms_are_part_of_a_place(tmp_path):
    metadata = save(tmp_path, {"w": torch.zeros(3), "v": torch.zeros(3)})
    first, second = metadata.storage_data.values()
    first.transform_descriptors = ["stream.zstd/1"]
    assert "transform_descriptors" not in vars(second), "as older writers leave it out"
    descriptors = [place.descriptors for place, _ in index_of(metadata).records()]
    assert sorted(descriptors) == [(), ("stream.zstd/1",)]


# ---------------------------------------------------------------------------------- hand-made


def of_places(places):
    entries = [
        Entry(f"e{n}", None, 0, None, (Chunk(f"e{n}", None, None, None, place),))
        for n, place in enumerate(places)
    ]
    return CheckpointIndex(entries=tuple(entries))


PLACES = st.builds(
    lambda path, start, length: Place(path, start, start + length),
    st.sampled_from("ab"),
    st.integers(0, 20),
    st.integers(1, 6),
)


@given(st.lists(PLACES, max_size=6), st.integers(26, 30))
def test_shared_and_orphan_bytes_are_those_that_counting_finds(places, size):
    index = of_places(places)
    counts = {path: [0] * size for path in "ab"}
    for place in places:
        for at in range(place.start, place.end):
            counts[place.path][at] += 1
    shared, orphans = (
        {
            (fault.place.path, at)
            for fault in faults
            for at in range(fault.place.start, fault.place.end)
        }
        for faults in (index.faults(), index.orphan_bytes(dict.fromkeys("ab", size)))
    )
    each = [(path, at, count) for path in "ab" for at, count in enumerate(counts[path])]
    assert shared == {(path, at) for path, at, count in each if count > 1}
    assert orphans == {(path, at) for path, at, count in each if count == 0}


def test_chunks_without_elements_need_no_place():
    chunk = Chunk("w", "int8", (0, 0), (0, 4), None)
    index = CheckpointIndex(entries=(Entry("w", "int8", 1, (0, 4), (chunk,)),))
    assert list(index.faults()) == []
    assert (index.records(), index.tensor_bytes) == ([], 0)


def test_files_that_are_gone_have_no_orphan_bytes():
    index = of_places([Place("gone", 10, 20)])
    assert list(index.orphan_bytes({})) == []
