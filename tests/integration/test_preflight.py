"""Checkpoints with inconsistent metadata: refused before any target is touched."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import CoverageError, ShapeMismatchError
from tests.integration import support
from tests.integration.support import rewritten

SHAPE = (6, 4)
#: Rows [0, 2), [2, 4), [4, 6): as three ranks would have saved them.
CHUNKS = [((0, 0), (2, 4)), ((2, 0), (2, 4)), ((4, 0), (2, 4))]


@pytest.fixture
def chunked(tmp_path):
    """A checkpoint whose tensor "w" was saved in three chunks, and what "w" is."""
    whole = torch.arange(24.0).reshape(SHAPE)
    parts = {f"w.{n}": part for n, part in enumerate(whole.split(2))}
    support.save(tmp_path / "ckpt", {**parts, "other": torch.ones(5)})
    with rewritten(tmp_path / "ckpt") as metadata:
        entry = dataclasses.replace(metadata.state_dict_metadata["w.0"], size=torch.Size(SHAPE))
        entry.chunks = []
        for number, (offsets, sizes) in enumerate(CHUNKS):
            name = f"w.{number}"
            del metadata.state_dict_metadata[name]
            place = metadata.storage_data.pop(
                MetadataIndex(name, torch.Size([0, 0])),
            )
            entry.chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            metadata.storage_data[MetadataIndex("w", torch.Size(offsets), number)] = place
        metadata.state_dict_metadata["w"] = entry
    return tmp_path / "ckpt", whole


def load(folder, state, **keywords):
    reader = ParallelFileSystemReader(folder, **keywords)
    plan, planner = support.plan_for(reader, state)
    reader.read_data(plan, planner)
    return state


def refused(folder, state):
    """The error of a load that touches nothing."""
    before = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(CheckpointReadError) as caught:
        load(folder, state)
    support.assert_same(state, before)
    return caught.value


def test_chunks_that_make_up_the_tensor_load(chunked):
    folder, whole = chunked
    assert torch.equal(load(folder, {"w": torch.zeros(SHAPE)})["w"], whole)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_hole_is_refused_where_torch_leaves_old_values(chunked, missing):
    folder, _ = chunked
    with rewritten(folder) as metadata:
        chunk = metadata.state_dict_metadata["w"].chunks.pop(missing)
    kept = support.load(FileSystemReader(folder), {"w": torch.full(SHAPE, -7.0)})["w"]
    assert (kept == -7).sum() == 8
    error = refused(folder, {"w": torch.zeros(SHAPE), "other": torch.zeros(5)})
    [failure] = error.failures
    assert isinstance(failure, CoverageError)
    assert failure.fqn == "w"
    start = chunk.offsets[0]
    assert f"no chunk has the elements from ({start}, 0) to ({start + 2}, 4)" in str(error)
    assert "nothing was read" in str(error)


def test_a_tensor_without_any_chunk_is_refused(chunked):
    folder, _ = chunked
    with rewritten(folder) as metadata:
        metadata.state_dict_metadata["w"].chunks.clear()
    error = refused(folder, {"w": torch.zeros(SHAPE), "other": torch.zeros(5)})
    assert "no chunk has the elements from (0, 0) to (6, 4)" in str(error)


@pytest.mark.parametrize(
    ("offsets", "sizes", "says"),
    [
        ((1, 0), (2, 4), "two chunks have the elements from (1, 0) to (2, 4)"),
        ((2, 0), (2, 3), "no chunk has the elements from (2, 3) to (4, 4)"),
        ((5, 0), (2, 4), "does not lie inside"),
    ],
)
def test_chunks_that_overlap_or_lie_outside_are_refused(chunked, offsets, sizes, says):
    folder, _ = chunked
    with rewritten(folder) as metadata:
        place = metadata.storage_data[MetadataIndex("w", torch.Size([2, 0]))]
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        metadata.state_dict_metadata["w"].chunks[1] = chunk
        metadata.storage_data[MetadataIndex("w", chunk.offsets, 1)] = place
    assert says in str(refused(folder, {"w": torch.zeros(SHAPE)}))


def test_a_hole_in_a_tensor_that_is_not_loaded_is_ignored(chunked):
    folder, _ = chunked
    with rewritten(folder) as metadata:
        metadata.state_dict_metadata["w"].chunks.pop(0)
    assert torch.equal(load(folder, {"other": torch.zeros(5)})["other"], torch.ones(5))


def test_a_hole_outside_of_this_ranks_part_is_none_of_its_business(chunked):
    folder, whole = chunked
    reader = ParallelFileSystemReader(folder)
    target = torch.zeros(2, 4)
    with rewritten(folder) as metadata:
        metadata.state_dict_metadata["w"].chunks.pop(0)
    plan, planner = support.plan_for(reader, {"w": torch.zeros(SHAPE)})
    # As a shard of rows [4, 6) is planned.
    [item] = [item for item in plan.items if item.storage_index.offset == torch.Size([4, 0])]
    item = dataclasses.replace(
        item,
        dest_index=MetadataIndex("w", torch.Size([0, 0])),
        dest_offsets=torch.Size([0, 0]),
    )
    plan.items[:] = [item]
    planner.state_dict = {"w": target}
    reader.read_data(plan, planner)
    assert torch.equal(target, whole[4:])


def test_a_plan_in_parts_fills_its_part(chunked):
    folder, whole = chunked
    reader = ParallelFileSystemReader(folder)
    target = torch.zeros(SHAPE)
    plan, planner = support.plan_for(reader, {"w": target})
    items = list(plan.items)
    for item in items:
        plan.items[:] = [item]
        reader.read_data(plan, planner)
    assert torch.equal(target, whole)


@pytest.mark.parametrize("hint", [None, 0, 2, 9])
def test_the_hint_of_an_index_may_be_missing_or_wrong(chunked, hint):
    folder, whole = chunked
    reader = ParallelFileSystemReader(folder)
    target = torch.zeros(SHAPE)
    plan, planner = support.plan_for(reader, {"w": target})
    plan.items[:] = [
        dataclasses.replace(item, storage_index=MetadataIndex("w", item.storage_index.offset, hint))
        for item in plan.items
    ]
    reader.read_data(plan, planner)
    assert torch.equal(target, whole)


# ------------------------------------------------------------------- stored against metadata


@pytest.mark.parametrize("executor", support.EXECUTORS)
@pytest.mark.parametrize("rows", [3, 300], ids=["small", "big"])
@pytest.mark.parametrize("zstd", [False, True])
def test_a_stored_tensor_that_is_another_than_described_is_refused(tmp_path, executor, rows, zstd):
    from paraload.testing import make_checkpoint

    state = {name: torch.randn(rows, 700) for name in "abcd"}
    make_checkpoint(tmp_path, state, zstd=zstd)
    with rewritten(tmp_path) as metadata:
        entries = metadata.state_dict_metadata
        entries["a"].properties.dtype = torch.float64
        shorter = torch.Size([rows - 1, 700])  # torch cuts it silently
        entries["b"].size = shorter
        entries["b"].chunks[0] = ChunkStorageMetadata(torch.Size([0, 0]), shorter)
    targets = {name: torch.zeros(rows - (name == "b"), 700) for name in state}
    targets["a"] = targets["a"].double()
    with pytest.raises(CheckpointReadError) as caught:
        load(tmp_path, targets, executor=executor, max_workers=2)
    assert {failure.fqn for failure in caught.value.failures} == {"a", "b"}
    assert all(isinstance(failure, ShapeMismatchError) for failure in caught.value.failures)
    text = str(caught.value)
    assert f"expected float64 of shape ({rows}, 700), got float32 of shape ({rows}, 700)" in text
    assert f"expected float32 of shape ({rows - 1}, 700)" in text
    assert torch.equal(targets["c"], state["c"])


def test_what_torch_alone_can_read_is_compared_too(tmp_path):
    saved = torch.randn(4, 4)
    support.save_as_legacy(tmp_path, saved)
    assert torch.equal(load(tmp_path, {"w": torch.zeros(4, 4)})["w"], saved)
    with rewritten(tmp_path) as metadata:
        metadata.state_dict_metadata["w"].properties.dtype = torch.float64
    with pytest.raises(CheckpointReadError, match="not the one that the metadata describes"):
        load(tmp_path, {"w": torch.zeros(4, 4)})


def test_a_planner_that_was_never_set_up_loads_as_with_torch(chunked):
    """The plan was made elsewhere: there is no metadata to compare the chunks with."""
    folder, whole = chunked
    for kind in (FileSystemReader, ParallelFileSystemReader):
        state = {"w": torch.zeros(SHAPE), "other": torch.zeros(5)}
        reader = kind(folder)
        plan, _ = support.plan_for(reader, state)
        planner = DefaultLoadPlanner()
        planner.state_dict = state
        reader.read_data(plan, planner)
        support.assert_same(state, {"w": whole, "other": torch.ones(5)})
