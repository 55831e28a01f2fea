"""A file that is not ``.metadata`` is a typed error that says what it is."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import socket
import time

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    MetadataIndex,
)

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import MetadataError, MissingMetadataError
from paraload.metadata import reading as metadata
from paraload.metadata.file_bytes import MetadataFile
from tests.unit.metadata_cases import example, same, write


def cut(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda _: None, MissingMetadataError, ["no such file", "incomplete checkpoint?"]),
        (lambda _: b"", MetadataError, ["empty", "incomplete checkpoint?"]),
        (cut, MetadataError, ["cannot be unpickled (truncated: ", "damaged"]),
        (lambda data: data[:-1], MetadataError, ["cannot be unpickled", "damaged"]),
        (lambda _: b"PK\x03\x04zip", MetadataError, ["cannot be unpickled", "damaged"]),
        (lambda _: pickle.dumps({"a": 1}), MetadataError, ["type dict", "not the metadata"]),
        (lambda _: pickle.dumps([1]), MetadataError, ["type list", "not the metadata"]),
        (lambda _: pickle.dumps(torch.Size([1])), MetadataError, ["type Size"]),
    ],
)
def test_a_file_that_is_not_metadata_is_a_typed_error(tmp_path, damage, kind, words):
    path = write(tmp_path, example())
    data = damage(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    for read in (
        lambda: metadata.read_metadata(path),
        ParallelFileSystemReader(tmp_path).read_metadata,
    ):
        with pytest.raises(kind) as caught:
            read()
        assert [word for word in (str(path), *words) if word not in str(caught.value)] == []
        assert isinstance(caught.value, CheckpointReadError)
        back = pickle.loads(pickle.dumps(caught.value))
        assert type(back) is type(caught.value)
        assert (str(back), back.path) == (str(caught.value), str(path))


def test_a_missing_file_is_a_file_not_found_error_too(tmp_path):
    with pytest.raises(FileNotFoundError, match="incomplete checkpoint"):
        ParallelFileSystemReader(tmp_path).read_metadata()
    with pytest.raises(FileNotFoundError, match="its folder does not exist either"):
        ParallelFileSystemReader(tmp_path / "nowhere").read_metadata()


def test_it_is_cut_anywhere(tmp_path):
    data = pickle.dumps(example())
    path = tmp_path / ".metadata"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(MetadataError):
            metadata.read_metadata(path)


def broken(**changes):
    def change(made):
        for name, value in changes.items():
            target = made.state_dict_metadata["whole"]
            if name in {"offsets", "sizes"}:
                target = target.chunks[0]
            if name == "dtype":
                target = target.properties
            if name in {"relative_path", "offset", "length", "transform_descriptors"}:
                target = next(iter(made.storage_data.values()))
            if value is None:
                delattr(target, name)
            else:
                setattr(target, name, value)
        return made

    return change


def replaced(**changes):
    return lambda made: dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (broken(size=None), "size"),
        (broken(size="x"), "type str in size"),
        (broken(chunks=None), "chunks"),
        (broken(chunks=3), "broken"),
        (broken(properties=7), "dtype"),
        (broken(offsets=None), "offsets"),
        (broken(sizes=1), "type int in sizes"),
        (broken(relative_path=None), "relative_path"),
        (broken(relative_path=b"x"), "type bytes in relative_path"),
        (broken(offset=1.5), "type float in offset"),
        (broken(length="9"), "type str in length"),
        (broken(size=(4, {})), "type dict in size"),
        (broken(sizes=[4, "6"]), "type str in sizes"),
        (broken(dtype={}), "type dict in dtype"),
        (broken(transform_descriptors={"a": 1}), "type dict in transform_descriptors"),
        (broken(transform_descriptors=["a", {}]), "type dict in transform_descriptors"),
        (replaced(state_dict_metadata=3), "not the metadata"),
        (replaced(storage_data="x"), "not the metadata"),
        (replaced(state_dict_metadata={"a": 3}), "type int in state_dict_metadata"),
        (replaced(state_dict_metadata={3: BytesStorageMetadata()}), "type int in state_dict"),
        (replaced(storage_meta=3), "type int in storage_meta"),
        (replaced(storage_meta=MetadataIndex("a")), "type MetadataIndex in storage_meta"),
        (replaced(storage_data={"a": 3}), "type str in storage_data"),
        (replaced(storage_data={MetadataIndex("whole"): 3}), "type int in storage_data"),
    ],
)
def test_entries_without_what_a_load_needs_are_refused(tmp_path, change, says):
    path = write(tmp_path, change(example()))
    with pytest.raises(MetadataError) as caught:
        metadata.read_metadata(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "unreadable"])
def test_other_kinds_of_files_are_errors_and_do_not_hang(tmp_path, monkeypatch, kind):
    path = tmp_path / ".metadata"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket
            server.bind(path.name)
    else:
        path.symlink_to(path)
    said = "cannot be read" if kind == "unreadable" else "is not a regular file"
    with pytest.raises(MetadataError, match=said):
        metadata.read_metadata(path)


# ------------------------------------------------------------------------------- for the moment


class Refusing(FileSystem):
    """Fails the first few times."""

    def __init__(self, times, number):
        super().__init__()
        self.left = times
        self.number = number

    def create_stream(self, path, mode):
        if self.left:
            self.left -= 1
            raise OSError(self.number, "on purpose")
        return super().create_stream(path, mode)


@pytest.mark.parametrize(
    ("times", "retries", "is_read"), [(1, 1, True), (2, 3, True), (1, 0, False), (3, 2, False)]
)
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOENT])
def test_what_is_refused_for_the_moment_is_tried_again(tmp_path, times, retries, is_read, number):
    path = write(tmp_path, example())
    fs = Refusing(times, number)
    if is_read:
        same(metadata.read_metadata(MetadataFile.at(path, fs), retries=retries), example())
    else:
        with pytest.raises(MetadataError):
            metadata.read_metadata(MetadataFile.at(path, fs), retries=retries)
    assert fs.left == max(0, times - retries - 1)


def test_the_path_of_a_file_asks_for_a_folder(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"content")
    with pytest.raises(
        MetadataError, match=r"the path above it is a file\. Give the folder"
    ) as caught:
        metadata.read_metadata(tmp_path / "model.bin" / ".metadata")
    assert "Errno" not in str(caught.value)


def test_a_folder_that_is_not_there_is_not_waited_for(tmp_path):
    started = time.monotonic()
    with pytest.raises(MissingMetadataError, match="its folder does not exist either"):
        metadata.read_metadata(tmp_path / "typo" / ".metadata", retries=10)
    assert time.monotonic() - started < 1
