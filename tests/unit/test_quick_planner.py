"""The quick planner makes the plan that torch's planner makes, or raises the same errors."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    FileSystemWriter,
    _version,
)
from torch.distributed.checkpoint import utils as planner_utils
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType

import paraload
from paraload.adapters.dcp import quick_planner as _quick_planner
from paraload.adapters.dcp.quick_planner import QuickLoadPlanner


def plan_of(kind, state, metadata, **flags):
    planner = kind(**flags)
    planner.set_up_planner(state, metadata, True)
    try:
        plan = planner.create_local_plan()
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        return type(error), str(error)
    for item in plan.items:  # equality leaves the hints out
        assert item.dest_index.index is None or isinstance(item.dest_index.index, int)
    return [(item, item.dest_index.index, item.storage_index.index) for item in plan.items]


def assert_same_plan(state, metadata, **flags):
    expected = plan_of(DefaultLoadPlanner, copy.copy(state), metadata, **flags)
    assert plan_of(QuickLoadPlanner, copy.copy(state), metadata, **flags) == expected
    return expected


class Subclass(torch.Tensor):
    pass


class Chunked(torch.Tensor):
    """Says itself what it is a part of, as Megatron's tensors do."""

    def __create_chunk_list__(self):
        return [ChunkStorageMetadata(torch.Size([1]), torch.Size([2]))]


STATES = {
    "flat": lambda: {"a": torch.zeros(3, 4), "b": torch.zeros(2)},
    "parameter": lambda: {"a": torch.nn.Parameter(torch.zeros(3))},
    "subclass": lambda: {"a": torch.zeros(3).as_subclass(Subclass)},
    "strided": lambda: {"a": torch.zeros(6)[::2], "b": torch.zeros(3, 4).t()},
    "scalar": lambda: {"a": torch.tensor(3.0), "b": torch.tensor(1)},
    "no elements": lambda: {"a": torch.zeros(0), "b": torch.zeros(3, 0)},
    "objects": lambda: {"a": 1, "b": "x", "c": None, "d": [1, {"e": 2}]},
    "nested": lambda: {"m": {"w": torch.zeros(3), "l": [torch.zeros(1), {"x": 1}]}, "e": {}},
    "empty": dict,
    "optimizer": lambda: {"o": {"state": {0: {"step": torch.tensor(1.0), "m": torch.zeros(3)}},
                                "param_groups": [{"lr": 0.1, "params": [0]}]}},
}  # fmt: skip


@pytest.mark.parametrize("flags", [{}, {"flatten_state_dict": False}, {"allow_partial_load": True},
                                   {"flatten_sharded_tensors": False}], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", STATES)
def test_state_dicts_of_many_kinds(tmp_path, name, flags):
    state = STATES[name]()
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path, overwrite=True), no_dist=True)
    metadata = FileSystemReader(tmp_path).read_metadata()
    assert_same_plan(state, metadata, **flags)
    for gone in state:  # less than what was saved, which makes torch try older names
        assert_same_plan({key: state[key] for key in state if key != gone}, metadata, **flags)
    assert_same_plan({**state, "unknown": torch.zeros(3)}, metadata, **flags)
    assert_same_plan({**state, "unknown": 3}, metadata, **flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"flatten_state_dict": flat, "flatten_sharded_tensors": sharded}
        for flat in (True, False)
        for sharded in (True, False)
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [*STATES, "numbers as names"])
def test_it_is_set_up_as_torch_s(name, flags):
    states = STATES | {"numbers as names": lambda: {0: torch.zeros(1), "a": torch.zeros(1)}}
    state, metadata = states[name](), Metadata({})
    planners = [kind(**flags) for kind in (DefaultLoadPlanner, QuickLoadPlanner)]
    for planner in planners:
        planner.set_up_planner(state, metadata, True)
    expected, got = map(vars, planners)
    assert got.keys() == expected.keys()
    for attribute in ("original_state_dict", "metadata", "is_coordinator"):
        assert got[attribute] is expected[attribute]
    assert got["mappings"] == expected["mappings"]
    assert list(got["state_dict"]) == list(expected["state_dict"])
    is_same = got["state_dict"] is state
    assert is_same == (expected["state_dict"] is state)
    for key, value in expected["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert got["state_dict"][key] is value
        else:
            assert got["state_dict"][key] == value


def test_what_is_flat_is_not_walked_by_torch(monkeypatch):
    monkeypatch.setattr(DefaultLoadPlanner, "set_up_planner", None)
    QuickLoadPlanner().set_up_planner({"a": torch.zeros(3), "step": 3, "b": None}, Metadata({}))


OLD = {
    "dict of objects": {"a": {"lr": 0.1}, "w": torch.zeros(2)},
    "nested": {"o": {"a": {"lr": 0.1}, "w": torch.zeros(2)}, "w": torch.zeros(2)},
    "empty dict": {"a": {}, "w": torch.zeros(2)},
    "tensors": {"a": {"w": torch.zeros(2)}, "w": torch.zeros(2)},
}


@pytest.mark.parametrize("flags", [{}, {"allow_partial_load": True}], ids=str)
@pytest.mark.parametrize("name", OLD)
def test_names_as_torch_2_3_gave_them(tmp_path, monkeypatch, name, flags):
    with monkeypatch.context() as patch:
        patch.setattr(_version, "_derived_version", "2_3")
        planner = DefaultSavePlanner(flatten_sharded_tensors=False)  # keeps what is empty
        dcp.save(OLD[name], checkpoint_id=tmp_path, planner=planner, no_dist=True)
    metadata = FileSystemReader(tmp_path).read_metadata()
    plan = assert_same_plan(OLD[name], metadata, **flags)
    assert len(plan) == len(metadata.state_dict_metadata)
    assert_same_plan({"w": torch.zeros(2)}, metadata, **flags)


def test_plain_tensors_are_planned_without_torch_s_planner(tmp_path, monkeypatch):
    state = STATES["flat"]() | STATES["scalar"]()
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    metadata = FileSystemReader(tmp_path).read_metadata()
    monkeypatch.setattr(_quick_planner, "create_default_local_load_plan", None)
    assert len(plan_of(QuickLoadPlanner, state, metadata)) == len(state)
    part = {"a": state["a"]}
    assert len(plan_of(QuickLoadPlanner, part, metadata)) == 1


def entry(size, *chunks):
    chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in chunks]
    return TensorStorageMetadata(TensorProperties(torch.float32), torch.Size(size), chunks)


@pytest.mark.parametrize(
    "saved",
    [
        entry((4, 2), ((0, 0), (4, 2))),
        entry((4, 2), ((0, 0), (2, 2)), ((2, 0), (2, 2))),
        entry((4, 2), ((2, 0), (2, 2)), ((0, 0), (2, 2))),
        entry((4, 2), ((1, 0), (3, 2))),
        entry((4, 2), ((1, 0), (4, 2))),
        entry((4, 3), ((0, 0), (4, 2))),
        entry((4, 2), ((0, 0), (3, 2))),
        entry((4, 2)),
        entry((2, 4), ((0, 0), (2, 4))),
        entry((4, 2), ((0,), (8,))),
        entry((4, 2), ((0, 0), (5, 2))),
        BytesStorageMetadata(),
    ],
)
@pytest.mark.parametrize(
    "target", [torch.zeros(4, 2), 3, None, torch.zeros(4, 2).as_subclass(Subclass)]
)
def test_what_was_saved_differs_from_what_is_wanted(saved, target):
    assert_same_plan({"a": target}, Metadata({"a": saved}))
    assert_same_plan(
        {"a": target, "b": torch.zeros(3)}, Metadata({"a": saved}), allow_partial_load=True
    )


def test_tensors_that_say_their_chunks_themselves():
    saved = Metadata({"a": entry((3,), ((0,), (3,)))})
    target = torch.zeros(3).as_subclass(Chunked)
    ((item, _, _),) = assert_same_plan({"a": target}, saved)
    assert item.lengths == torch.Size([2])
    own = torch.zeros(3)
    own.__create_chunk_list__ = lambda: [ChunkStorageMetadata(torch.Size([1]), torch.Size([1]))]
    ((item, _, _),) = assert_same_plan({"a": own}, saved)
    assert item.lengths == torch.Size([1])


def describes_itself(tensor, *, global_shape, global_offset, local_offset, local_size):
    """A ``CheckpointableTensor`` of torch 2.14: a plain tensor, but for its attributes."""
    tensor.global_shape = global_shape
    tensor.global_offsets, tensor.local_offsets = (global_offset,), (local_offset,)
    tensor.local_sizes = (local_size,)
    return tensor


def test_tensors_with_attributes_are_left_to_torch_s_planner(monkeypatch):
    saved = Metadata({name: entry((4,), ((0,), (4,))) for name in "abc"})
    asked = []

    def noting(state_dict, *arguments):
        asked.extend(state_dict)
        return create_default_local_load_plan(state_dict, *arguments)

    monkeypatch.setattr(_quick_planner, "create_default_local_load_plan", noting)
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.tensor_model_parallel = True
    part = describes_itself(
        torch.zeros(4), global_shape=(4,), global_offset=(2,), local_offset=(2,), local_size=(2,)
    )
    state = {"a": torch.zeros(4), "b": part, "c": parameter}
    assert_same_plan(state, saved)
    assert asked == ["b", "c"]


def test_tensors_that_describe_themselves_load_as_with_torch(tmp_path):
    """Torch up to 2.13 takes them for plain ones, and later ones for parts of a global tensor."""
    dcp.save({"w": torch.arange(8.0)}, checkpoint_id=tmp_path, no_dist=True)

    def targets():
        memory = torch.full((8,), -7.0)
        part = {"global_offset": (4,), "local_offset": (2,), "local_size": (3,)}
        return {"w": describes_itself(memory, global_shape=(8,), **part)}

    expected, got, read = targets(), targets(), targets()
    dcp.load(expected, checkpoint_id=tmp_path, no_dist=True)
    paraload.load(got, tmp_path, no_dist=True)
    dcp.load(read, storage_reader=paraload.ParallelFileSystemReader(tmp_path), no_dist=True)
    assert torch.equal(got["w"], expected["w"])
    assert torch.equal(read["w"], expected["w"])


class AsPart(DefaultLoadPlanner):
    """Looks tensors up as torch 2.14 does: its target is a part of the tensor."""

    def create_local_plan(self):
        plan = super().create_local_plan()
        index = dataclasses.replace(plan.items[0].dest_index, offset=torch.Size([0]))
        item = dataclasses.replace(plan.items[0], dest_index=index)
        return dataclasses.replace(plan, items=[item])


def test_targets_with_attributes_are_resolved_by_the_planner(tmp_path, monkeypatch):
    """Torch 2.14 resolves a part of the memory where the plan wants all of a global tensor."""
    dcp.save({"w": torch.arange(4.0)}, checkpoint_id=tmp_path, no_dist=True)
    memory = torch.full((4,), -7.0)
    memory.global_shape = (4,)
    beside = torch.full((4,), -7.0)
    real = planner_utils.find_state_dict_object

    def of_later_torch(state_dict, index):
        found = real(state_dict, index)
        return beside if hasattr(found, "global_shape") else found

    monkeypatch.setattr(
        "torch.distributed.checkpoint.default_planner.find_state_dict_object", of_later_torch
    )
    reader = paraload.ParallelFileSystemReader(tmp_path)
    dcp.load({"w": memory}, storage_reader=reader, planner=AsPart(), no_dist=True)
    assert torch.equal(beside, torch.arange(4.0))


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(st.dictionaries(st.sampled_from("abcdef"), shapes), st.data())
@settings(max_examples=150, deadline=None)
def test_any_shapes(saved, data):
    metadata = Metadata(
        {name: entry(shape, ((0,) * len(shape), shape)) for name, shape in saved.items()}
    )
    wanted = data.draw(st.lists(st.sampled_from([*saved, "x"]), unique=True))
    state = {name: torch.zeros(saved.get(name, (2,))) for name in wanted}
    for flags in ({}, {"allow_partial_load": True}):
        assert_same_plan(state, metadata, **flags)


def test_objects_are_planned_as_bytes(tmp_path):
    dcp.save({"a": 3}, checkpoint_id=tmp_path, no_dist=True)
    ((item, _, _),) = assert_same_plan({"a": 0}, FileSystemReader(tmp_path).read_metadata())
    assert item.type is LoadItemType.BYTE_IO


def test_without_metadata_it_asserts_as_torch_does():
    assert_same_plan({}, None)
