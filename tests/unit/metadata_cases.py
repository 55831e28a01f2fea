"""Metadata for tests, and how to compare it."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)


def same(got, expected, where="metadata"):
    """Equal, and of the same types on all levels."""
    assert type(got) is type(expected), where
    if dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            same(
                getattr(got, field.name, None),
                getattr(expected, field.name, None),
                f"{where}.{field.name}",
            )
    elif isinstance(expected, dict):
        assert list(map(repr, got)) == list(map(repr, expected)), where
        for one, other in zip(got, expected, strict=True):
            same(one, other, f"{where}: key")
            same(got[one], expected[other], f"{where}[{other!r}]")
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for number, (one, other) in enumerate(zip(got, expected, strict=True)):
            same(one, other, f"{where}[{number}]")
    else:
        assert got == expected, where


def tensor(size=(4, 6), chunks=(((0, 0), (4, 6)),), dtype=torch.float32, kind=TensorProperties):
    return TensorStorageMetadata(
        properties=kind(dtype=dtype),
        size=torch.Size(size),
        chunks=[ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in chunks],
    )


def example():
    """Everything that torch's writer writes."""
    halves = (((0, 0), (2, 6)), ((2, 0), (2, 6)))
    zipped = _StorageInfo("__0_1.distcp", 0, 3)
    made = Metadata(
        state_dict_metadata={
            "whole": tensor(),
            "scalar": tensor((), (((), ()),), torch.int64),
            "object": BytesStorageMetadata(),
            "halves": tensor(chunks=halves, dtype=torch.bfloat16),
            "nowhere": tensor(chunks=()),
        },
        planner_data={"whole": ("whole",), "object": ("a", 0, "b"), "halves": ("halves",)},
        storage_data={
            MetadataIndex("whole", (0, 0), 0): _StorageInfo("__0_0.distcp", 0, 700),
            MetadataIndex("scalar", (), 0): _StorageInfo("__0_0.distcp", 700, 1 << 40),
            MetadataIndex("object"): zipped,
            MetadataIndex("halves", (0, 0), 0): _StorageInfo("__0_1.distcp", 3, 100),
            MetadataIndex("halves", (2, 0), 1): _StorageInfo("__1_0.distcp", 0, 100),
        },
        storage_meta=StorageMeta(Path("/ckpt"), "save"),
    )
    # Older torch has no fields for these, but reads what newer torch wrote.
    made.storage_meta.modules = ["a"]
    made.version = "1.0.0"
    zipped.transform_descriptors = ["stream.zstd/1"]
    return made


def write(folder, what, protocol=4):
    path = folder / ".metadata"
    path.write_bytes(what if isinstance(what, bytes) else pickle.dumps(what, protocol))
    return path
