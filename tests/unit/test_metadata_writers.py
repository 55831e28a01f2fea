"""``.metadata`` of other writers: of older torch, other systems, other programs."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as OldProperties
from torch.distributed.checkpoint.filesystem import _StoragePrefix
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

import paraload
from paraload import ParallelFileSystemReader
from paraload.core.compat import BytesIOWriteData
from paraload.errors import MetadataError, UnsafeMetadataError
from paraload.metadata import reading as metadata
from paraload.metadata.unpickler import unpickle
from tests.old_torch import HF_CLASSES, storage_info_of_hugging_face
from tests.unit.metadata_cases import example, same, tensor, write


def renamed(made, *pairs, protocol=2):
    """``made`` under names of other versions; protocol 2 has names as lines."""
    data = pickle.dumps(made, protocol)
    for old, new in pairs:
        assert old.encode() in data
        data = data.replace(f"c{old}\n".encode(), f"c{new}\n".encode())
    return data


def test_the_package_s_first_home(tmp_path):
    old = "torch.distributed.checkpoint"
    new = "torch.distributed._shard.checkpoint"
    data = renamed(
        example(),
        (f"{old}.metadata", f"{new}.metadata"),
        (f"{old}.filesystem", f"{new}.filesystem"),
    )
    assert b"_shard" in data
    same(metadata.read_metadata(write(tmp_path, data)), example())
    same(unpickle(data), example())


def test_properties_from_before_torch_2_3(tmp_path):
    made = example()
    for entry in made.state_dict_metadata.values():
        if isinstance(entry, TensorStorageMetadata):
            entry.properties = OldProperties(memory_format=torch.channels_last)
    same(metadata.read_metadata(write(tmp_path, made)), made)


STRIDES = (6, 1)


@pytest.mark.parametrize(
    "more", [(STRIDES,), (None,), (STRIDES, "later"), (STRIDES, {"a": [1]}, 3)]
)
@pytest.mark.parametrize("kind", [TensorProperties, OldProperties])
def test_properties_of_newer_torch(tmp_path, monkeypatch, kind, more):
    """They have values that this torch may have no name for."""
    made = example()
    for entry in made.state_dict_metadata.values():
        if isinstance(entry, TensorStorageMetadata):
            entry.properties = kind(dtype=entry.properties.dtype, memory_format=torch.channels_last)
    expected = copy.deepcopy(made)
    has_strides = "strides" in {field.name for field in dataclasses.fields(kind)}
    for entry in expected.state_dict_metadata.values():
        if isinstance(entry, TensorStorageMetadata) and has_strides:
            entry.properties.strides = more[0]
    get_state = kind.__getstate__
    monkeypatch.setattr(kind, "__getstate__", lambda self: (*get_state(self)[:5], *more))
    path = write(tmp_path, made)
    monkeypatch.undo()
    for _ in range(2):
        got = metadata.read_metadata(path)
        same(got, expected)
        properties = got.state_dict_metadata["whole"].properties
        assert vars(properties).keys() == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("state", [(), (torch.float32,), "abcdef", {"dtype": torch.float32}, None])
def test_unknown_tensor_properties_are_damage(tmp_path, monkeypatch, state):
    monkeypatch.setattr(TensorProperties, "__getstate__", lambda _: state)
    path = write(tmp_path, example())
    monkeypatch.undo()
    with pytest.raises(MetadataError, match="The file is damaged"):
        metadata.read_metadata(path)


def test_a_load_from_properties_of_newer_torch(tmp_path, monkeypatch):
    dcp.save({"w": torch.arange(6.0).reshape(2, 3), "n": 4}, checkpoint_id=tmp_path, no_dist=True)
    made = pickle.loads((tmp_path / ".metadata").read_bytes())
    get_state = TensorProperties.__getstate__
    monkeypatch.setattr(
        TensorProperties, "__getstate__", lambda self: (*get_state(self)[:5], (3, 1))
    )
    write(tmp_path, made)
    monkeypatch.undo()
    for keywords in ({}, {"executor": "processes", "max_workers": 2}):
        state = {"w": torch.zeros(2, 3), "n": 0}
        paraload.load(state, tmp_path, no_dist=True, **keywords)
        assert torch.equal(state["w"], torch.arange(6.0).reshape(2, 3))
        assert state["n"] == 4
    assert paraload.verify(tmp_path).ok


def test_attributes_that_older_torch_did_not_write(tmp_path):
    made = example()
    del made.version, made.storage_meta
    index = next(iter(made.storage_data))
    object.__delattr__(index, "index")
    path = write(tmp_path, made)
    got = metadata.read_metadata(path)
    assert got == pickle.loads(path.read_bytes())
    assert (getattr(got, "version", None), got.storage_meta) == (None, None)


@pytest.mark.parametrize(
    "pick",
    [
        lambda made: made,
        lambda made: made.state_dict_metadata["whole"],
        lambda made: made.state_dict_metadata["whole"].chunks[0],
        lambda made: made.state_dict_metadata["object"],
        lambda made: next(iter(made.storage_data.values())),
        lambda made: made.storage_data[MetadataIndex("object")],  # has descriptors
        lambda made: made.storage_meta,
    ],
)
def test_attributes_that_torch_does_not_know_are_kept(tmp_path, pick):
    made = example()
    pick(made).more = [1]
    path = write(tmp_path, made)
    for _ in range(2):
        got = metadata.read_metadata(path)
        same(got, made)
        assert pick(got).more == [1]


def test_so_are_those_of_an_index(tmp_path):
    for name in ("whole", "object"):
        made = example()
        index = next(index for index in made.storage_data if index.fqn == name)
        vars(index)["more"] = [1]
        got = metadata.read_metadata(write(tmp_path, made))
        same(got, made)
        assert [vars(one)["more"] for one in got.storage_data if one.fqn == name] == [[1]]


def test_paths_of_every_system_and_python(tmp_path):
    here = type(Path())
    for module in ("pathlib", "pathlib._local"):
        for name, kind in (
            ("PosixPath", here),
            ("WindowsPath", PureWindowsPath),
            ("PurePosixPath", PurePosixPath),
        ):
            data = renamed(
                Metadata({}, None, {}, StorageMeta(PurePosixPath("a/b"))),
                ("pathlib\nPurePosixPath", f"{module}\n{name}"),
            )
            got = metadata.read_metadata(write(tmp_path, data)).storage_meta.checkpoint_id
            assert type(got) is kind
            assert got == kind("a", "b")


def test_values_beside_torch_s_own(tmp_path):
    odd = {
        "ordered": OrderedDict(a=1),
        "device": torch.device("cuda", 1),
        "cpu": torch.device("cpu"),
        "format": torch.channels_last,
        "layout": torch.sparse_csr,
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "set": {1, 2},
        "bytes": b"x",
        "nested": [{"a": (1, [2.5])}],
    }
    made = example()
    made.planner_data = odd
    got = metadata.read_metadata(write(tmp_path, made))
    same(got, made)
    assert type(got.planner_data["ordered"]) is OrderedDict


def test_storage_infos_of_hugging_face(tmp_path):
    info = storage_info_of_hugging_face()
    made = Metadata({"w": tensor((3,), ())}, None, {MetadataIndex("w", (0,)): info})
    same(metadata.read_metadata(write(tmp_path, made)), made)


@HF_CLASSES.needed
def test_the_save_plans_that_megatron_keeps(tmp_path):
    made = example()
    chunk = ChunkStorageMetadata(torch.Size([0]), torch.Size([3]))
    data = TensorWriteData(chunk, TensorProperties(), torch.Size([3]))
    made.all_local_plans = [
        SavePlan(
            [
                WriteItem(MetadataIndex("a", (0,), 0), WriteItemType.SHARD, tensor_data=data),
                WriteItem(
                    MetadataIndex("b"), WriteItemType.BYTE_IO, bytes_io_data=BytesIOWriteData(3)
                ),
            ],
            storage_data=_StoragePrefix("__0_"),
        )
    ]
    made.mcore_data = {"a": {"nd_reformulated_orig_global_shape": (1, 2)}}
    path = write(tmp_path, made)
    for _ in range(2):
        got = metadata.read_metadata(path)
        same(got, made)
        same(got.all_local_plans, made.all_local_plans)
        assert got.mcore_data == made.mcore_data
        assert got.all_local_plans[0].items[0].type is WriteItemType.SHARD


@dataclasses.dataclass
class CustomInfo:
    """What a custom writer could store."""

    bucket: str


def custom(tmp_path):
    index = MetadataIndex("a")
    made = Metadata({"a": BytesStorageMetadata()}, None, {index: CustomInfo("b")})
    return write(tmp_path, made), made


@pytest.mark.parametrize("allowed", [CustomInfo, f"{__name__}.CustomInfo"])
def test_globals_can_be_allowed(tmp_path, allowed):
    path, made = custom(tmp_path)
    same(metadata.read_metadata(path, allow_globals=[allowed]), made)
    reader = ParallelFileSystemReader(tmp_path, allow_globals=(allowed,))
    assert reader.read_metadata().storage_data == made.storage_data


def test_globals_are_allowed_by_the_environment_too(tmp_path, monkeypatch):
    path, made = custom(tmp_path)
    monkeypatch.setenv("PARALOAD_ALLOW_GLOBALS", f"a.b, {__name__}.CustomInfo")
    assert ParallelFileSystemReader(tmp_path).read_metadata().storage_data == made.storage_data
    monkeypatch.setenv("PARALOAD_ALLOW_GLOBALS", "a.b")
    with pytest.raises(UnsafeMetadataError):
        ParallelFileSystemReader(tmp_path).read_metadata()
    assert path.exists()
