"""Safetensors: folders, single files, DCP's sharded files; and what is wrong with folders."""

from __future__ import annotations

import errno
import io
import json
import pickle
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from paraload import CheckpointReadError, ParallelHuggingFaceReader
from paraload.adapters.dcp import hf_open_file
from paraload.core.compat import HuggingFaceStorageReader
from paraload.errors import (
    ChangedFileError,
    CoverageError,
    FormatError,
    MetadataError,
    MissingFileError,
    MissingMetadataError,
    ShortFileError,
    StalledReadError,
    StorageReadError,
    TransformError,
    UnsafePathError,
)
from paraload.formats.torch_load import narrow_tensor
from paraload.testing import FaultySource
from tests.integration import support
from tests.old_torch import (
    FLOAT4_COPIES,
    HF_READER,
    HuggingFaceStorageWriter,
    QuantizedHuggingFaceStorageReader,
    bytes_as,
)
from tests.sources import MIB, RemoteLikeSource, UnavailableError

INDEX = "model.safetensors.index.json"
#: Those that torch's reader knows.
DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8),
    *(torch.bool, torch.uint16, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
)


class RemoteReader(ParallelHuggingFaceReader):
    """Reads from a storage that is nothing like a file system."""

    def __init__(self, source, path="mem://bucket/model", **options):
        super().__init__(path, **options)
        self.source = source

    def _make_source(self):
        return self.source


class ListedSource(RemoteLikeSource):
    def list_files(self):
        return iter(self.files)


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_identical(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert torch.equal(raw(got[name]), raw(tensor)), name


def filled(dtype, shape, seed=0):
    nbytes = torch.empty(shape, dtype=dtype).numel() * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 2 if dtype is torch.bool else 256, (nbytes,), generator=generator)
    return data.to(torch.uint8).view(dtype).reshape(shape)


def poisoned(tensors):
    return {name: filled(it.dtype, it.shape, seed=99) for name, it in tensors.items()}


def model():
    return {
        "big": torch.randn(700, 900),
        "huge": torch.randn(3 * MIB),
        "half": torch.randn(90, 100).half(),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "flag": torch.tensor([True, False]),
        "f8": filled(torch.float8_e4m3fn, (33, 5)),
        "e8": bytes_as("float8_e8m0fnu", torch.arange(28, dtype=torch.uint8), (4, 7)),
        "f4": bytes_as("float4_e2m1fn_x2", torch.arange(24, dtype=torch.uint8), (4, 6)),
        "last": torch.zeros(0),
    }


def save_folder(folder, tensors, *, files, index=True):
    """As Hugging Face does; the tensors of each file."""
    Path(folder).mkdir(exist_ok=True)
    parts = [{} for _ in range(files)]
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        parts[number % files][name] = tensor
        weight_map[name] = f"model-{number % files + 1:05}-of-{files:05}.safetensors"
    for number, part in enumerate(parts, 1):
        save_file(part, Path(folder) / f"model-{number:05}-of-{files:05}.safetensors")
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        (Path(folder) / INDEX).write_text(text)
    return weight_map


def load(reader, tensors):
    targets = poisoned(tensors)
    dcp.load(targets, storage_reader=reader, no_dist=True)
    return targets


# --------------------------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("executor", support.EXECUTORS)
@pytest.mark.parametrize("index", [True, False])
def test_a_folder_of_several_files(tmp_path, executor, index):
    saved = model()
    if executor in {"processes", "pool"} and not FLOAT4_COPIES.is_here:
        del saved["f4"]  # only into the target itself, which other processes cannot reach
    save_folder(tmp_path, saved, files=3, index=index)
    reader = ParallelHuggingFaceReader(tmp_path, executor=executor)
    assert_identical(load(reader, saved), saved)
    report = reader.last_report
    assert report.unverified == {"format has no checksum": len(saved) - 2}  # two have no bytes
    assert report.fallbacks == {}
    nbytes = sum(tensor.numel() * tensor.itemsize for tensor in saved.values())
    assert report.bytes_read <= nbytes + 32 * 1024
    if "f4" not in saved:
        FLOAT4_COPIES.require()


@pytest.mark.parametrize("path", ["a.safetensors", "", "x.safetensors.index.json"])
def test_one_file_by_its_own_path_its_folder_s_or_its_index_s(tmp_path, path):
    saved = model()
    save_file(saved, tmp_path / "a.safetensors")
    if path.endswith(".json"):
        weight_map = dict.fromkeys(saved, "a.safetensors")
        (tmp_path / path).write_text(json.dumps({"weight_map": weight_map}))
        (tmp_path / "other.safetensors").write_bytes(b"not named by the index")
    reader = ParallelHuggingFaceReader(tmp_path / path)
    assert_identical(load(reader, saved), load_file(tmp_path / "a.safetensors"))


class FaultyReader(ParallelHuggingFaceReader):
    """Its second read fails."""

    def _make_source(self):
        return FaultySource(super()._make_source(), fail_at=2, error=OSError(errno.EIO, "bad"))


def test_tensors_that_share_a_task_fail_alone(tmp_path):
    saved = {f"w{n:02}": torch.randn(300, 256) for n in range(40)}
    save_file(saved, tmp_path / "model.safetensors")
    targets = poisoned(saved)
    reader = FaultyReader(tmp_path, max_workers=2, retries=0)
    plan, planner = support.plan_for(reader, targets)
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(plan, planner)
    [failure] = caught.value.failures
    targets[failure.fqn] = saved[failure.fqn]
    assert_identical(targets, saved)

    reader = ParallelHuggingFaceReader(tmp_path, max_workers=2)
    assert_identical(load(reader, saved), saved)
    assert reader.last_report.tasks < len(saved)


def test_the_next_load_may_be_of_another_path(tmp_path):
    first, second = {"w": torch.ones(3)}, {"w": torch.zeros(3)}
    save_file(first, tmp_path / "one.safetensors")
    save_folder(tmp_path / "two", second, files=1)
    targets = {"w": torch.full((3,), 7.0)}
    reader = ParallelHuggingFaceReader(tmp_path / "one.safetensors")
    dcp.load(targets, storage_reader=reader, no_dist=True)
    assert torch.equal(targets["w"], first["w"])
    dcp.load(targets, storage_reader=reader, checkpoint_id=tmp_path / "two", no_dist=True)
    assert torch.equal(targets["w"], second["w"])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_slices_are_those_of_torch_s_reader_and_of_load_file(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    shapes = st.lists(st.integers(0, 40), max_size=3) | st.just([300, 400])
    saved = {
        f"t{number}": filled(data.draw(st.sampled_from(DTYPES)), shape, seed=number)
        for number, shape in enumerate(data.draw(st.lists(shapes, min_size=1, max_size=8)))
    }
    save_folder(
        folder, saved, files=data.draw(st.integers(1, len(saved))), index=data.draw(st.booleans())
    )
    bounds = {
        name: [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in tensor.shape]
        for name, tensor in saved.items()
    }
    expected = {
        name: tensor[tuple(slice(*bound) for bound in bounds[name])]
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    readers = [ParallelHuggingFaceReader(folder)]
    if HF_READER.is_here:
        readers.append(HuggingFaceStorageReader(str(folder)))
    for reader in readers:
        targets = poisoned(expected)
        items = [
            ReadItem(
                LoadItemType.TENSOR,
                MetadataIndex(name, origin := torch.Size([0] * tensor.dim())),
                origin,
                MetadataIndex(name, origin),
                torch.Size([start for start, _ in bounds[name]]),
                torch.Size([end - start for start, end in bounds[name]]),
            )
            for name, tensor in saved.items()
        ]
        planner = DefaultLoadPlanner()
        planner.set_up_planner(targets, reader.read_metadata(), True)
        reader.set_up_storage_reader(reader.read_metadata(), True)
        reader.read_data(LoadPlan(items), planner)
        assert_identical(targets, expected)


@HF_READER.needed
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("distributed", [False, True])
def test_metadata_are_those_of_torch_s_reader(tmp_path, mapped, distributed):
    saved = {name: it for name, it in model().items() if name not in {"f4", "e8"}}
    mapping = {name: 1 + number % 3 for number, name in enumerate(saved)} if mapped else None
    writer = HuggingFaceStorageWriter(str(tmp_path), mapping, save_distributed=distributed)
    dcp.save(saved, storage_writer=writer, no_dist=True)
    reader, stock = ParallelHuggingFaceReader(tmp_path), HuggingFaceStorageReader(str(tmp_path))
    got, expected = reader.read_metadata(), stock.read_metadata()
    assert got.state_dict_metadata == expected.state_dict_metadata
    assert got.storage_data.keys() == expected.storage_data.keys()
    assert got.storage_meta.load_id == reader.load_id
    pickle.loads(pickle.dumps(got))  # torch sends it to other ranks
    assert_identical(load(reader, saved), saved)


def shard(folder, name, offsets, tensor, *, number):
    info = {
        "DCP_VERSION": "1.0",
        "DCP_SHARDING_INFO": json.dumps({name: {"saved_offsets": offsets}}),
    }
    path = Path(folder) / f"shard-{number:05}-model-00001-of-00001.safetensors"
    save_file({name: tensor}, path, metadata=info)


def test_shards_are_put_together(tmp_path):
    whole = torch.randn(600, 500)
    for number, (row, column) in enumerate([(0, 0), (0, 200), (250, 0), (250, 200)]):
        part = whole[
            row : row + (250 if row == 0 else 350), column : column + (200 if column == 0 else 300)
        ]
        shard(tmp_path, "w", [row, column], part.contiguous(), number=number + 1)
    targets = {"w": torch.zeros(600, 500)}
    dcp.load(targets, storage_reader=ParallelHuggingFaceReader(tmp_path), no_dist=True)
    assert torch.equal(targets["w"], whole)
    HF_READER.require()
    stock = HuggingFaceStorageReader(str(tmp_path)).read_metadata()
    metadata = ParallelHuggingFaceReader(tmp_path).read_metadata()
    assert metadata.state_dict_metadata["w"].size == stock.state_dict_metadata["w"].size


def double(read_item, descriptors, stream):
    data = torch.frombuffer(bytearray(stream.read()), dtype=torch.float32) * 2
    return io.BytesIO(data.numpy().tobytes())


def negated(tensor, storage_offsets, lengths):
    return -narrow_tensor(tensor, storage_offsets, lengths)


def the_bytes(stream, item_metadata):
    stream.seek(item_metadata.offset)
    return io.BytesIO(stream.read(item_metadata.length))


@pytest.mark.parametrize(
    ("hook", "factor"),
    [({"transform": double}, 2), ({"narrow_tensor": negated}, -1), ({"slice_file": the_bytes}, 1)],
)
def test_hooks_get_the_bytes_of_a_tensor_and_layouts_stay_known(tmp_path, hook, factor):
    saved = {"w": torch.randn(30, 40), "none": torch.zeros(0, 3)}
    save_file(saved, tmp_path / "model.safetensors")
    got = load(ParallelHuggingFaceReader(tmp_path, **hook), saved)
    assert_identical(got, {name: tensor * factor for name, tensor in saved.items()})


def no_bytes(*_):
    return io.BytesIO(b"")


def no_stream(*_):
    return None


def whole_file(stream, _):
    return stream


def one_too_many(_, __, stream):
    return io.BytesIO(stream.read() + b"x")


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ({"slice_file": no_bytes}, "slice_file.* of 4800 bytes, got 0 bytes"),
        ({"slice_file": no_stream}, "slice_file.* of 4800 bytes, got an object of type NoneType"),
        ({"slice_file": whole_file}, r"slice_file.* of 4800 bytes, got \d{4} bytes"),
        ({"transform": no_bytes}, "transform.* of 4800 bytes, got 0 bytes"),
        ({"transform": no_stream}, "transform.* of 4800 bytes, got an object of type NoneType"),
        ({"transform": one_too_many}, "transform.* of 4800 bytes, got 4801 bytes"),
        (
            {"slice_file": no_bytes, "narrow_tensor": negated},
            "slice_file.* of 4800 bytes, got 0 bytes",
        ),
        ({"slice_file": no_stream, "transform": double}, "slice_file.*expected a binary stream, "),
    ],
)
def test_hooks_must_return_the_bytes_of_the_tensor(tmp_path, hook, says):
    saved = {"w": torch.randn(30, 40)}
    save_file(saved, tmp_path / "model.safetensors")
    reader = ParallelHuggingFaceReader(tmp_path, **hook)
    plan = support.plan_for(reader, poisoned(saved))
    with pytest.raises(CheckpointReadError, match=f"the hook {says}") as caught:
        reader.read_data(*plan)
    (failure,) = caught.value.failures
    assert type(failure) is TransformError
    assert failure.fqn == "w"


def test_sliced_bytes_may_have_another_length_before_they_are_transformed(tmp_path):
    saved = {"w": torch.randn(30, 40)}
    save_file(saved, tmp_path / "model.safetensors")
    hook = {"slice_file": packed, "transform": unpacked}
    assert_identical(load(ParallelHuggingFaceReader(tmp_path, **hook), saved), saved)


def packed(stream, item_metadata):
    return io.BytesIO(zlib.compress(the_bytes(stream, item_metadata).read()))


def unpacked(_, __, stream):
    return io.BytesIO(zlib.decompress(stream.read()))


# ------------------------------------------------------------------------------ another storage


def test_another_storage_with_one_request_for_each_header():
    saved = {f"t{n}": torch.randn(MIB) for n in range(6)}
    files = {f"{name}.safetensors": save({name: it}) for name, it in saved.items()}
    source = ListedSource(files, latency_s=0.2)
    started_s = time.monotonic()
    RemoteReader(source).read_metadata()
    assert time.monotonic() - started_s < 0.6, "in parallel"
    assert sorted(source.requests) == [(path, 0, MIB) for path in sorted(files)]
    assert_identical(load(RemoteReader(source), saved), saved)


def test_a_long_header_takes_two_requests():
    saved = {f"{n:05}" + "x" * 200: torch.tensor(n) for n in range(5000)}
    data = save(saved)
    source = ListedSource({"model.safetensors": data}, latency_s=0)
    metadata = RemoteReader(source).read_metadata()
    assert len(metadata.state_dict_metadata) == 5000
    assert [request[1] for request in source.requests] == [0, MIB]
    assert source.requests[1][2] < len(data)


@pytest.mark.parametrize("index", [True, False])
def test_a_storage_that_cannot_list_has_the_usual_names(index):
    saved = {"w": torch.randn(9)}
    files = {"model.safetensors": save(saved)}
    if index:
        files = {"other.safetensors": save(saved)}
        files[INDEX] = json.dumps({"weight_map": {"w": "other.safetensors"}}).encode()
    assert_identical(load(RemoteReader(RemoteLikeSource(files, latency_s=0)), saved), saved)
    empty = RemoteReader(RemoteLikeSource({}, latency_s=0))
    with pytest.raises(MissingFileError, match=r"no such object.*'model\.safetensors'"):
        empty.read_metadata()


def test_transient_errors_are_retried_and_then_named():
    saved = {"w": torch.randn(9)}
    files = {"model.safetensors": save(saved)}
    source = ListedSource(files, latency_s=0, busy=2)
    assert_identical(load(RemoteReader(source, retries=2), saved), saved)
    busy = RemoteReader(ListedSource(files, latency_s=0, busy=9), retries=1)
    with pytest.raises(StorageReadError, match=r"503 Slow Down\) 2 times") as caught:
        busy.read_metadata()
    assert caught.value.path == "model.safetensors"


def test_listings_are_retried_too():
    class Busy(ListedSource):
        lists = 0

        def list_files(self):
            self.lists += 1
            if self.lists <= 2:
                raise UnavailableError("503 Slow Down")
            return super().list_files()

    saved = {"w": torch.randn(9)}
    files = {"model.safetensors": save(saved)}
    with pytest.raises(CheckpointReadError, match="503 Slow Down"):
        RemoteReader(Busy(files, latency_s=0), retries=1).read_metadata()
    source = Busy(files, latency_s=0)
    assert_identical(load(RemoteReader(source, retries=2), saved), saved)
    assert source.lists == 3


def test_a_storage_that_stands_still_has_a_deadline():
    class Stalled(ListedSource):
        def read(self, path, reads):
            released.wait(20)
            return super().read(path, reads)

    released = threading.Event()
    source = Stalled({"model.safetensors": save({"w": torch.zeros(1)})}, latency_s=0)
    try:
        with pytest.raises(StalledReadError, match=r"'model\.safetensors' was being read"):
            RemoteReader(source, stall_timeout_s=0.2).read_metadata()
    finally:
        released.set()


# ----------------------------------------------------------------------------------- wrong folders


def test_an_empty_or_other_folder_says_what_it_is(tmp_path):
    def why():
        with pytest.raises(MissingMetadataError) as caught:
            ParallelHuggingFaceReader(tmp_path / "ckpt").read_metadata()
        assert str(tmp_path / "ckpt") in str(caught.value)
        return str(caught.value)

    assert "no such folder, or it is empty" in why()
    (tmp_path / "ckpt" / "sharded").mkdir(parents=True)
    assert "no such folder, or it is empty" in why()
    (tmp_path / "ckpt" / "pytorch_model.bin").touch()
    assert "no .safetensors files here, only 'pytorch_model.bin'" in why()
    (tmp_path / "ckpt" / "sharded" / "x.safetensors").touch()
    assert "only in 'sharded'; give the path of the folder" in why()
    (tmp_path / "ckpt" / ".metadata").touch()
    assert "a DCP checkpoint; ParallelFileSystemReader loads it" in why()


def test_missing_files_are_named_by_numbers_or_by_the_index(tmp_path):
    save_folder(tmp_path, model(), files=4, index=False)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"1 file; expected 'model-00002-of-00004\.safet"):
        ParallelHuggingFaceReader(tmp_path).read_metadata()
    save_folder(tmp_path, model(), files=4)
    for number in (1, 3):
        (tmp_path / f"model-0000{number}-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointReadError, match=r"model-00001-of.*\n.*model-00003-of") as caught:
        ParallelHuggingFaceReader(tmp_path, retries=0).read_metadata()
    assert [type(failure) for failure in caught.value.failures] == [MissingFileError] * 2


def test_a_file_with_a_huge_number_in_its_name(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "model-00001-of-99999999999999.safetensors")
    with pytest.raises(MissingFileError, match="lacks 1000 files"):
        ParallelHuggingFaceReader(tmp_path).read_metadata()


def test_an_index_that_names_other_keys_than_the_files_hold(tmp_path):
    weight_map = save_folder(tmp_path, model(), files=2)
    weight_map["big"] = weight_map["huge"]
    weight_map["gone"] = weight_map["half"]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointReadError) as caught:
        ParallelHuggingFaceReader(tmp_path).read_metadata()
    big, gone = caught.value.failures
    assert (big.fqn, gone.fqn) == ("big", "gone")
    assert "in 'model-00001-of-00002.safetensors'" in big.got
    assert gone.got == "it in none of the files"
    assert INDEX in str(caught.value)


def test_the_index_decides_between_two_copies_and_without_one_there_is_no_telling(tmp_path):
    one, two = {"w": torch.ones(4)}, {"w": torch.zeros(4)}
    save_file(one, tmp_path / "a.safetensors")
    save_file(two | {"x": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(FormatError, match=r"'w': 'a\.safetensors' holds this tensor too"):
        ParallelHuggingFaceReader(tmp_path).read_metadata()
    weight_map = {"w": "b.safetensors", "x": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_identical(load(ParallelHuggingFaceReader(tmp_path), two), two)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a\0b"])
def test_an_index_that_leads_out_of_the_folder(tmp_path, name):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UnsafePathError, match="the index names"):
        ParallelHuggingFaceReader(tmp_path / "m").read_metadata()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "it is a list"),
        ("{}", "does not map names to files"),
        ('{"weight_map": {}}', "does not map names to files"),
        ('{"weight_map": {"w": 1}}', "does not map names to files"),
        ('{"weight_map": {"w": "a", "w": "b"}}', "'w' occurs twice"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_wrong_index(tmp_path, text, said):
    save_folder(tmp_path, model(), files=2)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FormatError, match=said) as caught:
        ParallelHuggingFaceReader(tmp_path).read_metadata()
    assert caught.value.path == INDEX


def test_several_indexes(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(MetadataError, match=r"several indexes.*'a\.safetensors\.index\.json', 'b"):
        ParallelHuggingFaceReader(tmp_path).read_metadata()


def test_faults_of_all_files_are_one_error(tmp_path):
    save_folder(tmp_path, model(), files=3)
    (tmp_path / "model-00001-of-00003.safetensors").write_bytes(b"")
    with (tmp_path / "model-00003-of-00003.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointReadError, match="the file is empty") as caught:
        ParallelHuggingFaceReader(tmp_path).read_metadata()
    assert [type(failure) for failure in caught.value.failures] == [ShortFileError, FormatError]
    assert "4 bytes after the data" in str(caught.value)


@pytest.mark.parametrize(
    "info",
    [
        "{",
        "[]",
        "{}",
        '{"w": 1}',
        '{"w": {"saved_offsets": [0]}}',
        '{"w": {"saved_offsets": [0, -1]}}',
    ],
)
def test_a_shard_that_does_not_say_where_it_belongs(tmp_path, info):
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(2, 3)}, path, metadata={"DCP_SHARDING_INFO": info})
    with pytest.raises(FormatError, match="DCP_SHARDING_INFO") as caught:
        ParallelHuggingFaceReader(tmp_path).read_metadata()
    assert caught.value.path == "model.safetensors"


def test_shards_of_different_tensors(tmp_path):
    shard(tmp_path, "w", [0, 0], torch.zeros(2, 3), number=1)
    shard(tmp_path, "w", [2, 0], torch.zeros(2, 3).half(), number=2)
    with pytest.raises(FormatError, match="chunks of different tensors"):
        ParallelHuggingFaceReader(tmp_path).read_metadata()


def test_a_missing_shard_leaves_a_hole(tmp_path):
    for number in (0, 2):
        shard(tmp_path, "w", [10 * number, 0], torch.zeros(10, 3), number=number + 1)
    reader = ParallelHuggingFaceReader(tmp_path)
    plan = support.plan_for(reader, {"w": torch.zeros(30, 3)})
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(*plan)
    assert [type(failure) for failure in caught.value.failures] == [CoverageError]


def test_a_file_that_is_replaced_after_its_header_was_read(tmp_path):
    saved = {"w": torch.randn(5000)}
    save_file(saved, tmp_path / "model.safetensors")
    reader = ParallelHuggingFaceReader(tmp_path)
    plan = support.plan_for(reader, poisoned(saved))
    (tmp_path / "model.safetensors").unlink()
    save_file({"v": torch.zeros(1)} | saved, tmp_path / "model.safetensors")
    with pytest.raises(ChangedFileError, match=r"model\.safetensors"):
        reader.read_data(*plan)


# --------------------------------------------------------------------------- torch's own subclasses


class QuantizedReader(QuantizedHuggingFaceStorageReader, ParallelHuggingFaceReader):
    pass


@HF_READER.needed
@pytest.mark.parametrize("source_of_scales", [1, 2])
def test_quantized_tensors(tmp_path, source_of_scales):
    shape = (300, 500)
    files = {1: {}, 2: {}}
    files[1]["a.weight"] = filled(torch.uint8, shape).remainder(120).view(torch.float8_e4m3fn)
    files[source_of_scales]["a.weight_scale_inv"] = torch.rand(3, 4)
    files[2]["norm"] = torch.randn(77)
    weight_map = {name: f"{number}.safetensors" for number, it in files.items() for name in it}
    for number, tensors in files.items():
        save_file(tensors, tmp_path / f"{number}.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    loaded = []
    for kind in (QuantizedHuggingFaceStorageReader, QuantizedReader):
        targets = {"a.weight": torch.zeros(shape), "norm": torch.zeros(77)}
        dcp.load(targets, storage_reader=kind(str(tmp_path), thread_count=2), no_dist=True)
        loaded.append(targets)
    assert_identical(loaded[1], loaded[0])
    assert torch.equal(loaded[1]["norm"], files[2]["norm"])
    assert loaded[1]["a.weight"].count_nonzero() > 1000


@HF_READER.needed
def test_a_subclass_reads_ahead_in_batches(tmp_path, monkeypatch):
    class Reader(ParallelHuggingFaceReader):
        def _process_read_request(self, f, req, planner):
            HuggingFaceStorageReader._process_read_request(self, f, req, planner)

    saved = {f"t{n}": torch.randn(100, n + 1) for n in range(50)}
    save_folder(tmp_path, saved, files=2)
    loads = []
    really = hf_open_file.read_with
    monkeypatch.setattr(hf_open_file, "_BATCH_BYTES", 40_000)
    monkeypatch.setattr(
        hf_open_file, "read_with", lambda *a, **k: loads.append(len(a[1].items)) or really(*a, **k)
    )
    assert_identical(load(Reader(tmp_path), saved), saved)
    assert sum(loads) == 50, "nothing twice"
    assert 14 <= len(loads) <= 20


def test_what_a_subclass_may_do_with_an_open_file(tmp_path):
    class Reader(ParallelHuggingFaceReader):
        def _process_read_request(self, f, req, planner):
            name = req.storage_index.fqn
            assert f.keys() == ["w"]
            part = f.get_slice(name)
            assert part.get_shape() == [30, 40]
            assert torch.equal(part[2:5], saved["w"][2:5])
            assert torch.equal(part[2:5, 3:1], saved["w"][2:5, 3:1])
            assert torch.equal(part[1, ..., ::2], saved["w"][1, ..., ::2])
            target = planner.resolve_tensor(req)
            target.copy_(f.get_tensor(name) + 1)
            planner.commit_tensor(req, target)

    saved = {"w": torch.randn(30, 40)}
    save_file(saved, tmp_path / "model.safetensors")
    reader = Reader(tmp_path)
    assert torch.equal(load(reader, saved)["w"], saved["w"] + 1)
    calls = []
    plan, planner = support.plan_for(reader, poisoned(saved))
    reader.read_data_with_progress(plan, planner, lambda *counts: calls.append(counts))
    assert calls == [(1, 1)]
