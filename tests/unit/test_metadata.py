"""``.metadata`` is read as torch reads it, through the reader too."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from paraload import ParallelFileSystemReader
from paraload.core.compat import ZStandard
from paraload.errors import MetadataError, MissingMetadataError
from paraload.metadata import reading as metadata
from paraload.metadata.unpickler import unpickle
from tests.old_torch import HIDES_METADATA_ERRORS
from tests.unit.metadata_cases import example, same, write

# ------------------------------------------------------------------------------ as torch reads it


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_s_writer_writes_is_read_as_torch_reads_it(tmp_path, protocol):
    path = write(tmp_path, example(), protocol)
    for _ in range(2):
        got = metadata.read_metadata(path)
        assert type(got) is Metadata
        same(got, example())
    same(unpickle(path.read_bytes()), example())


STATES = {
    "flat": {"a": torch.zeros(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)},
    "nested": {"model": {"w": torch.zeros(5), "l": [torch.zeros(1), {"x": 3}]}, "n": {}},
    "objects": {"step": 4, "text": "x", "none": None, "list": [1, 2]},
    "empty": {},
    "no elements": {"e": torch.zeros(0, 3), "s": torch.tensor(1.5)},
    "dtypes": {str(t): torch.zeros(2, dtype=t) for t in (torch.int8, torch.complex64, torch.bool)},
    "odd names": {"": torch.zeros(1), "ключ": torch.zeros(1), "a\nb": torch.zeros(1)},
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("extensions", [False, True])
def test_checkpoints_of_torch(tmp_path, name, extensions):
    writer = FileSystemWriter(
        tmp_path, thread_count=2, _extensions=[ZStandard()] if extensions else None
    )
    dcp.save(STATES[name], storage_writer=writer, no_dist=True)
    expected = FileSystemReader(tmp_path).read_metadata()
    reader = ParallelFileSystemReader(tmp_path)
    expected.storage_meta.load_id = reader.load_id
    for _ in range(2):
        got = reader.read_metadata()
        same(got, expected)
        assert got == expected
        assert expected == got


names = st.text(max_size=6)
sizes = st.lists(st.integers(0, 1 << 40), max_size=3).map(torch.Size)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.float8_e4m3fn])
chunk_lists = st.lists(st.builds(ChunkStorageMetadata, sizes, sizes), max_size=3)
properties = st.builds(
    TensorProperties,
    dtypes,
    st.sampled_from([torch.strided, torch.sparse_coo]),
    st.booleans(),
    st.sampled_from([torch.contiguous_format, torch.channels_last, torch.preserve_format]),
    st.booleans(),
)
entries = st.one_of(
    st.builds(TensorStorageMetadata, properties, sizes, chunk_lists),
    st.builds(BytesStorageMetadata),
)


def with_attributes(made, **attributes):
    """Older torch has no fields for some of them."""
    vars(made).update(attributes)
    return made


infos = st.builds(
    lambda *place, transforms: with_attributes(
        _StorageInfo(*place), transform_descriptors=transforms
    ),
    st.sampled_from(["__0_0.distcp", "../x", "/etc/passwd", ""]),
    st.integers(-(1 << 70), 1 << 70),
    st.integers(-1, 1 << 62),
    transforms=st.none() | st.lists(names, max_size=2),
)
paths = st.tuples() | st.tuples(names) | st.tuples(names, st.integers(), names)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names
planner_data = st.none() | st.dictionaries(names, paths, max_size=3) | st.lists(leaves | paths)

metas = st.none() | st.builds(
    lambda *values, modules: with_attributes(StorageMeta(*values), modules=modules),
    st.sampled_from([None, "id", Path("/a/b"), PurePosixPath("c"), PureWindowsPath("d")]),
    st.none() | names,
    st.none() | names,
    modules=st.lists(names, max_size=2),
)


@st.composite
def all_metadata(draw):
    found = draw(st.dictionaries(names, entries, max_size=4))
    known = st.sampled_from([*found, "unknown"])
    indices = st.builds(MetadataIndex, known, st.none() | sizes, st.none() | st.integers(0, 3))
    made = Metadata(
        found,
        draw(planner_data),
        draw(st.none() | st.dictionaries(indices, infos, max_size=4)),
        draw(metas),
    )
    return with_attributes(made, version=draw(st.none() | names))


@given(all_metadata(), st.sampled_from([2, 3, 4, 5]))
@settings(max_examples=300, deadline=None)
def test_any_metadata_is_read_as_pickle_reads_it(made, protocol):
    data = pickle.dumps(made, protocol)
    expected = pickle.loads(data)
    same(unpickle(data), expected)


# ------------------------------------------------------------------------------ the reader


def test_the_reader_says_which_load_it_is_as_torch_s_does(tmp_path):
    for made in (example(), dataclasses.replace(example(), storage_meta=None)):
        write(tmp_path, made)
        reader = ParallelFileSystemReader(tmp_path)
        for _ in range(2):
            got = reader.read_metadata()
            expected = copy.deepcopy(made.storage_meta) or StorageMeta()
            expected.load_id = reader.load_id
            assert got.storage_meta == expected
            reader.reset()


def test_metadata_of_one_rank(tmp_path):
    (tmp_path / "__3.metadata").write_bytes(pickle.dumps(example()))
    reader = ParallelFileSystemReader(tmp_path)
    same(reader.read_metadata(rank=3).state_dict_metadata, example().state_dict_metadata)
    with pytest.raises(MissingMetadataError, match=r"__4\.metadata"):
        reader.read_metadata(rank=4)
    with pytest.raises(MissingMetadataError):
        reader.read_metadata()


class OtherFileSystem(FileSystem):
    """Says which files were read."""

    def __init__(self):
        super().__init__()
        self.streams = []

    def create_stream(self, path, mode):
        self.streams.append(Path(path).name)
        return super().create_stream(path, mode)


def test_a_replaced_file_system_is_read_by_its_streams_each_time(tmp_path):
    path = write(tmp_path, example())
    reader = ParallelFileSystemReader(tmp_path)
    reader.fs = OtherFileSystem()
    for _ in range(2):
        got = reader.read_metadata()
        assert got.storage_meta.load_id == reader.load_id
        assert got.storage_data == example().storage_data
    assert reader.fs.streams == [".metadata"] * 2
    path.write_bytes(b"")
    with pytest.raises(MetadataError, match="empty"):
        reader.read_metadata()
    path.unlink()
    with pytest.raises(MissingMetadataError):
        reader.read_metadata()


def test_dcp_load_says_what_is_wrong_with_the_metadata(tmp_path):
    from torch.distributed.checkpoint.api import CheckpointException

    write(tmp_path, pickle.dumps(example())[:100])
    with pytest.raises(CheckpointException) as caught:
        dcp.load({}, storage_reader=ParallelFileSystemReader(tmp_path), no_dist=True)
    assert ("damaged" in str(caught.value)) is not HIDES_METADATA_ERRORS


@pytest.mark.parametrize("damaged", [False, True])
def test_reading_leaves_nothing_to_the_collector(tmp_path, damaged):
    """A program that loads in a loop may make too little else for a collection."""
    data = pickle.dumps(example())
    path = write(tmp_path, data[:400] + b"\xff" + data[401:] if damaged else data)

    def read():
        if damaged:
            with pytest.raises(MetadataError):
                metadata.read_metadata(path)
        else:
            metadata.read_metadata(path)

    read()
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            read()
        assert gc.collect() == 0
    finally:
        gc.enable()
