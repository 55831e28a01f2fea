"""``.metadata`` is read once while it is the same, and every caller gets his own."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    Metadata,
    TensorStorageMetadata,
)

from paraload import ParallelFileSystemReader, metadata
from paraload._columns import Columns
from paraload._late_metadata import LateMetadata
from paraload.errors import MetadataError, MissingMetadataError
from tests.unit.metadata_cases import example, same, write

pytestmark = pytest.mark.usefixtures("nothing_kept")


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
        if info.transform_descriptors:
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
        made.mcore_data = {}  # is not kept
    path = write(tmp_path, made)
    first, second = metadata.read_metadata(path), metadata.read_metadata(path)
    second.version  # noqa: B018 - it is made now, beside the first
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


# ------------------------------------------------------------------------------ made when looked at

LOOKS = {
    "attribute": lambda late: late.storage_data,
    "missing attribute": lambda late: getattr(late, "nothing", None),
    "repr": repr,
    "equal": lambda late: late == 3,
    "class": lambda late: late.__class__,
    "vars": vars,
    "dir": dir,
    "set": lambda late: setattr(late, "more", 1),
    "delete": lambda late: delattr(late, "version"),
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": lambda late: dataclasses.replace(late, version="2"),
    "fields": lambda late: [getattr(late, field.name) for field in dataclasses.fields(late)],
}


def late_one(folder):
    path = write(folder, example())
    metadata.read_metadata(path)
    return metadata.read_metadata(path)


@pytest.mark.parametrize("look", LOOKS)
def test_any_look_makes_it_a_metadata_like_any_other(tmp_path, look):
    late = late_one(tmp_path)
    assert isinstance(late, Metadata)
    assert bool(late)
    assert type(late) is LateMetadata
    LOOKS[look](late)
    assert type(late) is Metadata
    if look not in {"set", "delete"}:
        same(late, example())


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda md: pickle.loads(pickle.dumps(md))]
)
def test_copies_are_of_torch_s_class(tmp_path, make):
    same(make(late_one(tmp_path)), example())


def test_a_look_waits_for_one_that_has_begun(tmp_path, monkeypatch):
    late, others, true_attributes = late_one(tmp_path), [], Columns.attributes

    def attributes(columns):
        if not others:
            others.append(threading.Thread(target=lambda: late.version))
            others[0].start()
            others[0].join(0.2)
            assert others[0].is_alive()
        return true_attributes(columns)

    monkeypatch.setattr(Columns, "attributes", attributes)
    assert late.version == "1.0.0"
    others[0].join()


def test_threads_that_look_at_once_see_one_object(tmp_path):
    path = write(tmp_path, example())
    metadata.read_metadata(path)
    for _ in range(20):
        late, seen, start = metadata.read_metadata(path), [], threading.Barrier(4)

        def look(late=late, seen=seen, start=start):
            start.wait()
            seen.append(late.storage_data)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(found) for found in seen}) == 1


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


# ------------------------------------------------------------------------------ the cache


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that were opened."""
    names, true_open = [], metadata.open_regular

    def watch(name):
        names.append(name)
        return true_open(name)

    monkeypatch.setattr(metadata, "open_regular", watch)
    return names


def test_an_unchanged_file_is_opened_once_whatever_the_path_is_called(
    tmp_path, opened, monkeypatch
):
    path = write(tmp_path, example())
    monkeypatch.chdir(tmp_path)
    for name in (path, str(path), ".metadata", Path(".metadata")):
        same(metadata.read_metadata(name), example())
    assert ParallelFileSystemReader(tmp_path).read_metadata().version == "1.0.0"
    assert opened == [str(path)]


def other():
    return dataclasses.replace(example(), version="1.0.1")  # as long as the first


def rewrite_in_place(path):
    before = path.stat()
    path.write_bytes(pickle.dumps(other()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # ctime still tells


def rename_over(path):
    before = path.stat()
    new = path.with_name("new")
    new.write_bytes(pickle.dumps(other()))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)


def write_longer(path):
    path.write_bytes(pickle.dumps(dataclasses.replace(example(), version="1.0.1 and more")))


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


def test_a_file_that_changed_just_now_is_not_kept(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(metadata, "SETTLED_AFTER_NS", 60 * 10**9)
    path = write(tmp_path, example())
    metadata.read_metadata(path)
    metadata.read_metadata(path)
    assert len(opened) == 2


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, opened, monkeypatch):
    path = write(tmp_path, example())
    true_fstat, calls = os.fstat, []

    def fstat(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:  # after the read: one look opens it, one is before
            os.utime(path, ns=(1, 1))
        return true_fstat(descriptor)

    monkeypatch.setattr(metadata.os, "fstat", fstat)
    metadata.read_metadata(path)
    assert str(path) not in metadata._cache._files


def test_few_files_are_kept_and_the_one_used_last_longest(tmp_path, opened):
    folders = [tmp_path / str(number) for number in range(metadata._MOST_FILES + 1)]
    for folder in folders:
        folder.mkdir()
        write(folder, example())
    for folder in folders[:-1]:
        metadata.read_metadata(folder / ".metadata")
    metadata.read_metadata(folders[0] / ".metadata")
    metadata.read_metadata(folders[-1] / ".metadata")
    opened.clear()
    for folder in (folders[0], folders[-1], folders[1]):
        metadata.read_metadata(folder / ".metadata")
    assert opened == [str(folders[1] / ".metadata")]


def test_files_are_kept_up_to_a_size(tmp_path, opened, monkeypatch):
    path = write(tmp_path, example())
    monkeypatch.setattr(metadata, "_MOST_BYTES", path.stat().st_size - 1)
    metadata.read_metadata(path)
    metadata.read_metadata(path)
    assert len(opened) == 2


def test_forget_drops_what_is_kept(tmp_path, opened):
    path = write(tmp_path, example())
    metadata.read_metadata(path)
    metadata.forget()
    metadata.read_metadata(path)
    assert len(opened) == 2


# ------------------------------------------------------------------------------ the collector


@pytest.mark.parametrize("where", ["columns_in", "unpickle"])
def test_the_collector_rests_while_objects_are_made(tmp_path, monkeypatch, where):
    seen, true_step = [], getattr(metadata, where)

    def step(*given):
        seen.append(gc.isenabled())
        return true_step(*given)

    monkeypatch.setattr(metadata, where, step)
    made = example()
    if where == "unpickle":
        made.more = 1
    metadata.read_metadata(write(tmp_path, made))
    assert seen == [False]


def test_the_collector_rests_while_a_late_one_is_made(tmp_path, monkeypatch):
    late, seen, true_attributes = late_one(tmp_path), [], Columns.attributes
    monkeypatch.setattr(
        Columns,
        "attributes",
        lambda columns: seen.append(gc.isenabled()) or true_attributes(columns),
    )
    assert late.version == "1.0.0"
    assert seen == [False]


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("what", [example, dict, lambda: b"\x80\x04nonsense", lambda: b""])
def test_the_collector_is_as_it_was_afterwards(tmp_path, is_on, what):
    path = write(tmp_path, what())
    (gc.enable if is_on else gc.disable)()
    try:
        for _ in range(2):
            with contextlib.suppress(MetadataError):
                late = metadata.read_metadata(path)
                assert gc.isenabled() is is_on
                assert late.version == "1.0.0"
            assert gc.isenabled() is is_on
    finally:
        gc.enable()
