"""What programs do with a reader object, and a drop-in must support."""

from __future__ import annotations

import io
import os
import pathlib
from contextlib import contextmanager

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.planner import LoadPlan

import paraload
from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import InvalidOptionError, ShapeMismatchError
from tests.integration import support


class PathLike:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, pathlib.Path, PathLike, os.fspath])
def test_the_path_may_be_anything_that_torch_takes(folder, saved, kind):
    reader = ParallelFileSystemReader(path=kind(folder))
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


def test_it_is_a_file_system_reader(folder):
    reader = ParallelFileSystemReader(folder)
    assert isinstance(reader, FileSystemReader)
    assert ParallelFileSystemReader.validate_checkpoint_id(str(folder))
    assert reader.checkpoint_id == FileSystemReader(folder).checkpoint_id


def test_options_go_by_keyword_only(folder):
    with pytest.raises(TypeError):
        ParallelFileSystemReader(folder, None, "threads")


def test_one_reader_serves_several_loads(folder, saved):
    reader = ParallelFileSystemReader(folder)
    for _ in range(3):
        support.assert_same(support.load(reader, support.empty_like(saved)), saved)


def test_reset_moves_a_reader_to_another_checkpoint(tmp_path, folder, saved):
    other = support.save(tmp_path / "other", {"w": torch.arange(9.0)})
    reader = ParallelFileSystemReader(folder)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    targets = support.empty_like(other)
    dcp.load(targets, checkpoint_id=tmp_path / "other", storage_reader=reader, no_dist=True)
    support.assert_same(targets, other)
    reader.reset()
    support.assert_same(support.load(reader, support.empty_like(other)), other)
    reader.reset(folder)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


class CountingFileSystem(FileSystem):
    """A third-party storage: other names, streams that only go forward."""

    def __init__(self):
        self.opened = []

    @contextmanager
    def create_stream(self, path, mode):
        self.opened.append(pathlib.Path(path).name)
        with super().create_stream(path, mode) as stream:
            yield ForwardOnly(stream)


class ForwardOnly(io.RawIOBase):
    def __init__(self, stream):
        self.stream = stream

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.stream.tell()

    def seek(self, offset, whence=os.SEEK_SET):
        assert whence == os.SEEK_SET
        assert offset >= self.stream.tell(), "this stream only goes forward"
        return self.stream.seek(offset)

    def readinto(self, buffer):
        return self.stream.readinto(buffer)


@pytest.mark.parametrize("executor", ["sequential", "threads", "processes"])
def test_fs_may_be_replaced_after_construction(tmp_path, executor, caplog):
    state = {f"w{n}": torch.randn(700, 1000) for n in range(20)}
    support.save(tmp_path / "x", state, files=2)
    reader = ParallelFileSystemReader(tmp_path / "x", executor=executor, max_workers=3)
    reader.fs = CountingFileSystem()
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    data = [name for name in reader.fs.opened if name.endswith(".distcp")]
    assert sorted(data) == ["__0_0.distcp", "__0_1.distcp"], "one stream for each file"
    assert reader.last_report.executor in {"sequential", "threads"}
    assert any("CountingFileSystem" in reason for reason in reader.last_report.fallbacks)
    assert "CountingFileSystem" in caplog.text


def test_a_foreign_storage_under_a_foreign_planner(tmp_path):
    from tests.integration.test_planners import ForeignPlanner

    class Reader(ParallelFileSystemReader):
        """Sorts its plan, as the S3 connector's reader does: its streams cannot go back."""

        def prepare_local_plan(self, plan):
            plan.items.sort(key=lambda item: self.storage_data[item.storage_index].offset)
            return plan

    state = {f"w{n}": torch.randn(700, 1000) for n in range(20)}
    support.save(tmp_path / "x", state, files=2)
    reader = Reader(tmp_path / "x", max_workers=3, memory_budget_bytes=4 << 20)
    reader.fs = CountingFileSystem()
    targets = support.empty_like(state)
    support.assert_same(support.load(reader, targets, ForeignPlanner()), state)


@pytest.mark.parametrize("executor", ["sequential", "threads", "pool"])
def test_an_overridden_slice_file_is_called_once_for_each_item(folder, saved, executor):
    calls = []

    class Reader(ParallelFileSystemReader):
        def _slice_file(self, file, sinfo):
            calls.append((sinfo.relative_path, sinfo.offset))
            return super()._slice_file(file, sinfo)

    reader = Reader(folder, executor=executor, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    infos = FileSystemReader(folder).read_metadata().storage_data.values()
    assert sorted(calls) == sorted((info.relative_path, info.offset) for info in infos)


def test_read_metadata_may_be_overridden_and_share_what_it_returns(folder, saved):
    shared = FileSystemReader(folder).read_metadata()

    class Reader(ParallelFileSystemReader):
        def read_metadata(self):
            return shared

    for _ in range(2):
        support.assert_same(support.load(Reader(folder), support.empty_like(saved)), saved)


def test_a_mixed_in_class_may_come_first(folder, saved):
    class Cached(FileSystemReader):
        def read_metadata(self):
            return super().read_metadata()

    class Reader(Cached, ParallelFileSystemReader):
        pass

    reader = Reader(folder, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report is not None


def test_read_data_may_be_put_into_torch_s_own_class(folder, saved, monkeypatch):
    monkeypatch.setattr(FileSystemReader, "read_data", ParallelFileSystemReader.read_data)
    reader = FileSystemReader(folder)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report.executor == "threads"


def test_plan_items_may_be_in_any_order(folder, saved):
    targets = support.empty_like(saved)
    reader = ParallelFileSystemReader(folder)
    plan, planner = support.plan_for(reader, targets)
    reader.read_data(LoadPlan(plan.items[::-1]), planner)
    support.assert_same(targets, saved)


def test_the_plan_is_left_as_it_was(folder, saved):
    reader = ParallelFileSystemReader(folder)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    before = list(plan.items)
    reader.read_data(plan, planner)
    assert plan.items == before


def test_an_empty_plan_is_a_load_of_nothing(folder, saved):
    reader = ParallelFileSystemReader(folder)
    _, planner = support.plan_for(reader, support.empty_like(saved))
    reader.read_data(LoadPlan([]), planner).wait()
    assert reader.last_report.items == 0


def test_read_data_calls_no_collective(folder, saved, monkeypatch):
    reader = ParallelFileSystemReader(folder)
    plan, planner = support.plan_for(reader, support.empty_like(saved))

    def refuse(*args, **keywords):
        raise AssertionError("a collective")

    for name in ("all_gather_object", "gather_object", "broadcast_object_list", "barrier"):
        monkeypatch.setattr(torch.distributed, name, refuse)
    reader.read_data(plan, planner)


def test_items_without_a_storage_entry_are_all_named(folder, saved):
    reader = ParallelFileSystemReader(folder)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    reader.storage_data = {
        index: info
        for index, info in reader.storage_data.items()
        if index.fqn not in {"big.2", "note"}
    }
    with pytest.raises(CheckpointReadError, match="nothing was read") as caught:
        reader.read_data(plan, planner)
    assert sorted(failure.fqn for failure in caught.value.failures) == ["big.2", "note"]
    assert "does not say where the part at offset (0, 0) is stored" in str(caught.value)


def test_a_target_of_another_shape_is_refused_by_name(folder, saved):
    targets = support.empty_like(saved)
    reader = ParallelFileSystemReader(folder)
    plan, planner = support.plan_for(reader, targets)
    planner.state_dict["big.1"] = torch.zeros(700, 300)
    with pytest.raises(CheckpointReadError, match="nothing was read") as caught:
        reader.read_data(plan, planner)
    (failure,) = caught.value.failures
    assert isinstance(failure, ShapeMismatchError)
    assert failure.fqn == "big.1"
    support.assert_same(targets, support.empty_like(saved))


def test_several_chunks_of_threads_do_not_share_a_reader_s_state(folder, saved):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        loads = [
            pool.submit(support.load, ParallelFileSystemReader(folder), support.empty_like(saved))
            for _ in range(8)
        ]
        for done in loads:
            support.assert_same(done.result(), saved)


def test_paraload_load_returns_the_report(folder, saved):
    targets = support.empty_like(saved)
    report = paraload.load(targets, folder, max_workers=2, no_dist=True)
    support.assert_same(targets, saved)
    assert (report.items, report.files, report.workers) == (len(saved), 3, 2)
    assert report.bytes_needed == report.bytes_needed
    assert report.bytes_verified >= 4 * 300 * 700 * 4
    assert report.reads > 0
    assert sorted(report.file_timings) == [f"__0_{n}.distcp" for n in range(3)]


def test_paraload_load_refuses_unknown_options(folder):
    with pytest.raises(InvalidOptionError, match="no_such"):
        paraload.load({}, "s3://bucket/step-1", no_such="1")
    with pytest.raises(InvalidOptionError, match="unknown option 'workers'"):
        paraload.load({}, folder, workers=3)


def test_a_misspelt_option_of_a_url_is_no_option_of_its_storage():
    with pytest.raises(InvalidOptionError, match="'max_worker'; did you mean 'max_workers'"):
        paraload.load({}, "http://127.0.0.1:1/ckpt", max_worker=3)


def test_swapped_arguments_are_told(folder):
    with pytest.raises(InvalidOptionError, match=r"state_dict: expected a dict.* got a PosixPath"):
        paraload.load(folder, {"w": torch.zeros(3)})
    with pytest.raises(InvalidOptionError, match="path: expected a path or URL, got a dict"):
        paraload.load({"w": torch.zeros(3)}, {})
    with pytest.raises(InvalidOptionError, match=r"state_dict: expected a dict.* got a Linear"):
        paraload.load(torch.nn.Linear(3, 2), folder)


def test_the_environment_sets_options_for_callers_that_pass_none(folder, saved, monkeypatch):
    monkeypatch.setenv("PARALOAD_MAX_WORKERS", "3")
    monkeypatch.setenv("PARALOAD_EXECUTOR", "threads")
    monkeypatch.setenv("PARALOAD_MEMORY_BUDGET", "32MiB")
    reader = ParallelFileSystemReader(folder)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert (reader.last_report.workers, reader.last_report.executor) == (3, "threads")
    assert reader.options.memory_budget_bytes == 32 << 20
