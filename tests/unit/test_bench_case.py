"""What ``paraload bench`` reads."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from paraload import ParallelFileSystemReader
from paraload.cli.bench.case import Case, chosen, pieces_of
from paraload.errors import CheckpointReadError
from paraload.metadata.dcp_index import index_of
from paraload.metadata.folder import folder_metadata
from paraload.testing import make_checkpoint


def checkpoint(places):
    """From ``{name: (file, start, bytes)}``."""
    state, storage = {}, {}
    start = torch.Size([0])
    for name, place in places.items():
        size = torch.Size([place[2]])
        chunks = [ChunkStorageMetadata(start, size)]
        state[name] = TensorStorageMetadata(TensorProperties(dtype=torch.uint8), size, chunks)
        storage[MetadataIndex(name, start)] = _StorageInfo(*place)
    return Metadata(state, storage_data=storage)


@pytest.mark.parametrize(
    ("limit_bytes", "expected"),
    [
        (1000, ["b0", "a0", "a1", "a2", "b1", "c0"]),
        (65, ["b0", "a0", "a1", "b1", "c0"]),
        (60, ["b0", "a0", "a1", "c0"]),  # b1 does not fit, a1 does
        (30, ["b0", "a0", "c0"]),
        (25, ["b0", "a0"]),
        (1, ["a0"]),  # at least one
    ],
)
def test_a_part_is_taken_from_all_files_in_turn(limit_bytes, expected):
    metadata = checkpoint(
        {
            "b0": ("b", 0, 10),
            "a0": ("a", 0, 10),
            "a1": ("a", 10, 15),
            "a2": ("a", 25, 100),
            "b1": ("b", 10, 20),
            "c0": ("c", 0, 10),
        }
    )
    part = chosen(pieces_of(index_of(metadata)), limit_bytes)
    assert [piece.name for piece in part] == expected


def test_each_saved_piece_is_loaded_as_a_tensor_of_its_own(tmp_path):
    whole = torch.arange(12.0).reshape(6, 2)
    make_checkpoint(tmp_path, {"top": whole[:4], "rest": whole[4:], "note": "hello"}, files=1)
    metadata = folder_metadata(tmp_path).metadata
    # As two ranks would have saved it.
    tops, rest = metadata.state_dict_metadata["top"], metadata.state_dict_metadata.pop("rest")
    chunks = [*tops.chunks, ChunkStorageMetadata(torch.Size([4, 0]), rest.size)]
    metadata.state_dict_metadata["w"] = TensorStorageMetadata(tops.properties, whole.shape, chunks)
    del metadata.state_dict_metadata["top"]
    places = dict(metadata.storage_data)
    for name, row in (("top", 0), ("rest", 4)):
        info = places.pop(MetadataIndex(name, torch.Size([0, 0])))
        places[MetadataIndex("w", torch.Size([row, 0]))] = info
    metadata.storage_data = places
    case = Case(pieces_of(index_of(metadata)))
    for reader in (dcp.FileSystemReader(tmp_path), ParallelFileSystemReader(tmp_path)):
        case.poison()
        case.prepare(reader)()
        assert torch.equal(case.targets["w from (0, 0) on"], whole[:4])
        assert torch.equal(case.targets["w from (4, 0) on"], whole[4:])
    assert len(case.targets) == 2


def test_a_piece_without_a_place_is_named():
    metadata = checkpoint({"here": ("a", 0, 10), "gone": ("a", 10, 10)})
    del metadata.storage_data[MetadataIndex("gone", torch.Size([0]))]
    with pytest.raises(CheckpointReadError, match="'gone': the metadata names no file for it"):
        pieces_of(index_of(metadata))


def test_a_piece_without_elements_needs_no_place():
    metadata = checkpoint({"here": ("a", 0, 10), "empty": ("a", 10, 0)})
    del metadata.storage_data[MetadataIndex("empty", torch.Size([0]))]
    assert [piece.name for piece in pieces_of(index_of(metadata))] == ["here"]
