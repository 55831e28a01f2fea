"""Every caller gets a metadata object of its own, read at the time of the call."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    TensorStorageMetadata,
)

from paraload import ParallelFileSystemReader
from paraload.errors import MetadataError, MissingMetadataError
from paraload.metadata import reading as metadata
from tests.unit.metadata_cases import example, same, write

# ------------------------------------------------------------------------------ the caller's own


def change_everything(made):
    """What no program should do, to what it was given."""
    for entry in made.state_dict_metadata.values():
        if isinstance(entry, TensorStorageMetadata):
            entry.size = torch.Size([9, 9, 9])
            entry.properties.dtype = torch.float64
            for chunk in entry.chunks:
                chunk.offsets = torch.Size([7])
                chunk.sizes = torch.Size([8])
            entry.chunks.append("x")
        entry.more = 1
    for index, info in list(made.storage_data.items()):
        vars(index)["fqn"] = "changed"
        info.relative_path, info.offset, info.length = "changed", -1, -1
        if getattr(info, "transform_descriptors", None):
            info.transform_descriptors.append("changed")
    made.state_dict_metadata.clear()
    made.storage_data.clear()
    made.planner_data.clear()
    made.storage_meta.modules.append("changed")
    made.storage_meta.save_id = "changed"
    made.version = "changed"
    made.more = 2


@pytest.mark.parametrize("extra", [False, True])
def test_changes_reach_no_other_caller(tmp_path, extra):
    made = example()
    if extra:
        made.mcore_data = {}
    path = write(tmp_path, made)
    first, second = metadata.read_metadata(path), metadata.read_metadata(path)
    change_everything(first)
    same(second, example())
    third = metadata.read_metadata(path)
    same(third, example())
    change_everything(third)
    same(metadata.read_metadata(path), example())


class Megatron(dcp.DefaultLoadPlanner):
    """Sets sizes while it plans, as Megatron's planner does."""

    def create_local_plan(self):
        for entry in self.metadata.state_dict_metadata.values():
            if isinstance(entry, TensorStorageMetadata):
                entry.size = torch.Size([*entry.size[:-1], entry.size[-1] // 2])
        return super().create_local_plan()


def test_a_client_that_changes_sizes_does_not_spoil_the_next_load(tmp_path):
    dcp.save({"w": torch.arange(8.0)}, checkpoint_id=tmp_path, no_dist=True)
    for _ in range(3):
        half = {"w": torch.zeros(4)}
        reader = ParallelFileSystemReader(tmp_path)
        dcp.load(half, storage_reader=reader, planner=Megatron(), no_dist=True)
        assert torch.equal(half["w"], torch.arange(4.0))
    whole = {"w": torch.zeros(8)}
    dcp.load(whole, storage_reader=ParallelFileSystemReader(tmp_path), no_dist=True)
    assert torch.equal(whole["w"], torch.arange(8.0))


def test_threads_may_read_at_once(tmp_path):
    path = write(tmp_path, example())
    found = []

    def read():
        found.extend(metadata.read_metadata(path) == example() for _ in range(50))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 200


# ------------------------------------------------------------------------------ the file


def test_any_spelling_of_the_path_works(tmp_path, monkeypatch):
    path = write(tmp_path, example())
    monkeypatch.chdir(tmp_path)
    for name in (path, str(path), ".metadata", Path(".metadata")):
        same(metadata.read_metadata(name), example())
    assert ParallelFileSystemReader(tmp_path).read_metadata().version == "1.0.0"


def other(version="1.0.1"):  # as long as the first
    made = example()
    made.version = version
    return made


def rewrite_in_place(path):
    before = path.stat()
    path.write_bytes(pickle.dumps(other()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename_over(path):
    before = path.stat()
    new = path.with_name("new")
    new.write_bytes(pickle.dumps(other()))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)


def write_longer(path):
    path.write_bytes(pickle.dumps(other("1.0.1 and more")))


def link_elsewhere(path):
    there = path.parent / "there"
    there.write_bytes(pickle.dumps(other()))
    path.unlink()
    path.symlink_to(there)


@pytest.mark.parametrize("change", [rewrite_in_place, rename_over, write_longer, link_elsewhere])
def test_a_changed_file_is_read_again(tmp_path, change):
    path = write(tmp_path, example())
    assert metadata.read_metadata(path).version == "1.0.0"
    change(path)
    assert metadata.read_metadata(path).version.startswith("1.0.1")


def test_a_file_that_is_gone_is_missed(tmp_path):
    path = write(tmp_path, example())
    metadata.read_metadata(path)
    path.unlink()
    with pytest.raises(MissingMetadataError):
        metadata.read_metadata(path)


# ------------------------------------------------------------------------------ the collector


@pytest.mark.parametrize("step", ["unpickle", "metadata_fault"])
def test_the_collector_rests_while_objects_are_made_and_checked(tmp_path, monkeypatch, step):
    seen, true_step = [], getattr(metadata, step)

    def watched(*given, **keywords):
        seen.append(gc.isenabled())
        return true_step(*given, **keywords)

    monkeypatch.setattr(metadata, step, watched)
    metadata.read_metadata(write(tmp_path, example()))
    assert seen == [False]


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("what", [example, dict, lambda: b"\x80\x04nonsense", lambda: b""])
def test_the_collector_is_as_it_was_afterwards(tmp_path, is_on, what):
    path = write(tmp_path, what())
    (gc.enable if is_on else gc.disable)()
    try:
        for _ in range(2):
            with contextlib.suppress(MetadataError):
                assert metadata.read_metadata(path).version == "1.0.0"
            assert gc.isenabled() is is_on
    finally:
        gc.enable()
