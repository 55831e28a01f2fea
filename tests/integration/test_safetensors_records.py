"""``.distcp`` files whose tensors are safetensors: torch writes them, and cannot read them."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, filesystem
from torch.distributed.checkpoint.api import CheckpointException

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.adapters.dcp.source_reader import SourceReader
from paraload.errors import FormatError, MissingFileError, UnsafePathError
from tests.integration import support
from tests.sources import RemoteLikeSource

_SAFETENSORS = getattr(
    filesystem, "SerializationFormat", SimpleNamespace(SAFETENSORS="")
).SAFETENSORS


def save(folder, state, *, files=2):
    writer = FileSystemWriter(
        folder,
        thread_count=files,
        single_file_per_rank=True,
        serialization_format=_SAFETENSORS,
    )
    dcp.save(state, storage_writer=writer, no_dist=True)
    return state


@pytest.fixture
def saved(tmp_path):
    state = support.example_state()
    state |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "flag": torch.tensor(True)}
    return save(tmp_path, state)


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_tensors_and_objects(tmp_path, saved, executor):
    targets = support.empty_like(saved)
    with pytest.raises(CheckpointException):
        support.load(FileSystemReader(tmp_path), support.empty_like(saved))
    reader = ParallelFileSystemReader(tmp_path, executor=executor)
    support.assert_same(support.load(reader, targets), saved)
    assert set(reader.last_report.fallbacks) <= {"not a torch.save archive"}


def test_another_storage(tmp_path, saved):
    class Reader(SourceReader):
        def _make_source(self):
            return source

    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    source = RemoteLikeSource(files, latency_s=0)
    support.assert_same(support.load(Reader("mem://x"), support.empty_like(saved)), saved)


def test_a_normal_checkpoint_is_not_looked_at(tmp_path):
    saved = support.save(tmp_path, {"w": torch.randn(3)})

    class Reader(ParallelFileSystemReader):
        def _make_source(self):
            made.append(self)
            return super()._make_source()

    made = []
    reader = Reader(tmp_path)
    reader.read_metadata()
    assert not made
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


def raw_elements(read_item, descriptors, stream):
    with io.BytesIO() as archive:
        torch.save(torch.frombuffer(bytearray(stream.read()), dtype=torch.float32), archive)
        return io.BytesIO(archive.getvalue())


def test_a_reader_that_knows_raw_elements_still_gets_them(tmp_path):
    saved = support.save(tmp_path, {"a": torch.randn(30), "b": torch.randn(30)}, files=1)
    with support.rewritten(tmp_path) as metadata:
        for index, info in metadata.storage_data.items():
            info.offset, info.length = 120 * (index.fqn == "b"), 120
    [file] = support.data_files(tmp_path)
    file.write_bytes(b"".join(saved[name].numpy().tobytes() for name in "ab"))
    reader = ParallelFileSystemReader(tmp_path, transform=raw_elements)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


def test_a_damaged_header_and_a_missing_file(tmp_path, saved):
    infos = FileSystemReader(tmp_path).read_metadata().storage_data.items()
    place = next(info for index, info in infos if index.fqn == "big.0")
    file = tmp_path / place.relative_path
    support.flip(file, place.offset + 8)
    with pytest.raises(FormatError, match="not a safetensors file") as caught:
        ParallelFileSystemReader(tmp_path).read_metadata()
    assert caught.value.path == place.relative_path
    file.unlink()
    with pytest.raises(MissingFileError, match="file is missing"):
        ParallelFileSystemReader(tmp_path, retries=0).read_metadata()


def test_parts_that_torch_s_writer_dropped(tmp_path):
    save(tmp_path, {"w": torch.randn(4, 3)})
    with support.rewritten(tmp_path) as metadata:
        [index] = metadata.storage_data
        metadata.storage_data[type(index)("w", torch.Size([4, 0]))] = metadata.storage_data[index]
    with pytest.raises(FormatError, match=r"'w': the file does not hold this part.*\(4, 0\)"):
        ParallelFileSystemReader(tmp_path).read_metadata()


def test_no_file_outside_of_the_folder_is_opened(tmp_path):
    saved = save(tmp_path / "ckpt", {"w": torch.randn(4, 3)}, files=1)
    [file] = support.data_files(tmp_path / "ckpt")
    file.rename(tmp_path / file.name)
    with support.rewritten(tmp_path / "ckpt") as metadata:
        for info in metadata.storage_data.values():
            info.relative_path = f"../{file.name}"
    reader = ParallelFileSystemReader(tmp_path / "ckpt")
    plan = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(*plan)
    assert [type(failure) for failure in caught.value.failures] == [UnsafePathError]


def test_metadata_travel(tmp_path, saved):
    metadata = ParallelFileSystemReader(tmp_path).read_metadata()
    assert pickle.loads(pickle.dumps(metadata)).storage_data == metadata.storage_data
