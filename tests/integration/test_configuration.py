"""A load has one configuration, from its call, and one source, which it closes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader

import paraload
from paraload import CheckpointReadError, ParallelFileReader, ParallelFileSystemReader
from paraload.adapters.dcp.readers import read_data_parallel, read_data_parallel_v2
from paraload.core.tasks import LocateTask
from paraload.sources.local import LocalSource
from tests.integration import support
from tests.integration.support import EXECUTORS

FUNCTIONS = [read_data_parallel, read_data_parallel_v2]


class CountedSource(LocalSource):
    """Counts the closes of the process that made it."""

    def __init__(self, root, log):
        super().__init__(root)
        self._log = log

    def __reduce__(self):
        return LocalSource, (self.root,)

    def read(self, path, reads):
        self._log += [(path, start) for start, _ in reads]
        return super().read(path, reads)

    def close(self):
        self._log.append("close")
        super().close()


class Counting(ParallelFileSystemReader):
    """Notes each source that is made and closed, and its first tasks."""

    def __init__(self, path, **keywords):
        super().__init__(path, **keywords)
        self.log = []
        self.tasks = []

    def _make_source(self):
        self.log.append("make")
        return CountedSource(self.path, self.log)

    def _create_read_tasks(self, plan, storage_data):
        self.tasks = super()._create_read_tasks(plan, storage_data)
        return self.tasks

    @property
    def reads(self):
        return [entry for entry in self.log if isinstance(entry, tuple)]

    def sources(self):
        """How many sources were made, and how many closed."""
        return self.log.count("make"), self.log.count("close")


@pytest.fixture
def big(tmp_path):
    """Twenty tensors that are located before they are read, in two files."""
    saved = {f"w.{n:02}": torch.randn(300, 300) for n in range(20)}
    support.save(tmp_path / "big", saved, files=2)
    return tmp_path / "big", saved


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_load_makes_one_source_and_closes_it(folder, saved, executor):
    reader = Counting(folder, executor=executor, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.sources() == (1, 1)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.sources() == (2, 2)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("workers", [1, 2])
def test_so_does_a_function_of_its_own_configuration(folder, saved, function, workers):
    reader = Counting(folder)
    targets = support.empty_like(saved)
    function(reader, *support.plan_for(reader, targets), num_workers=workers)
    support.assert_same(targets, saved)
    assert reader.sources() == (1, 1)


def unlink(folder):
    support.data_files(folder)[0].unlink()


def lose_an_entry(folder):
    with support.rewritten(folder) as metadata:
        metadata.storage_data.popitem()


def leave_the_folder(folder):
    with support.rewritten(folder) as metadata:
        next(iter(metadata.storage_data.values())).relative_path = "../x"


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("damage", [unlink, lose_an_entry, leave_the_folder])
def test_an_error_before_the_first_byte_closes_it_too(folder, saved, executor, damage):
    damage(folder)
    reader = Counting(folder, executor=executor, max_workers=2, retries=0)
    plan = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(CheckpointReadError, match="nothing was read"):
        reader.read_data(*plan)
    assert reader.sources() == (1, 1)
    assert reader.reads == []


@pytest.mark.parametrize("step", ["_create_read_tasks", "_process_results"])
def test_an_error_of_a_step_closes_it_too(folder, saved, step, monkeypatch):
    reader = Counting(folder)
    plan = support.plan_for(reader, support.empty_like(saved))

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(reader, step, broken)
    with pytest.raises(ZeroDivisionError):
        reader.read_data(*plan)
    assert reader.sources() == (1, 1)


def test_items_that_a_reader_makes_no_tasks_for_are_refused(folder, saved):
    class Forgetful(Counting):
        def _create_read_tasks(self, plan, storage_data):
            return super()._create_read_tasks(plan, storage_data)[:-1]

    reader = Forgetful(folder)
    plan = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(CheckpointReadError, match="_create_read_tasks returned no task") as caught:
        reader.read_data(*plan)
    assert caught.value.failures
    assert reader.reads == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_worker_of_a_call_reads_each_file_from_front_to_back(big, function):
    folder, saved = big
    reader = Counting(folder)  # whose own configuration reads headers ahead
    targets = support.empty_like(saved)
    function(reader, *support.plan_for(reader, targets), num_workers=1)
    support.assert_same(targets, saved)
    assert all(isinstance(task, LocateTask) for task in reader.tasks)
    assert {len(task.specs) for task in reader.tasks} == {1}
    assert reader.reads
    for file in support.data_files(folder):
        starts = [start for path, start in reader.reads if path == file.name]
        assert starts == sorted(starts)
    reader.read_data(*support.plan_for(reader, support.empty_like(saved)))
    assert max(len(task.specs) for task in reader.tasks) > 1


@pytest.mark.parametrize("function", FUNCTIONS)
def test_several_workers_of_a_call_read_headers_ahead(big, function):
    folder, saved = big
    reader = Counting(folder, max_workers=1)
    targets = support.empty_like(saved)
    function(reader, *support.plan_for(reader, targets), num_workers=2)
    support.assert_same(targets, saved)
    assert max(len(task.specs) for task in reader.tasks) > 1


def test_a_class_that_took_the_methods_makes_one_source(folder, saved, monkeypatch):
    made = []

    class Watched(LocalSource):
        def __init__(self, *args, **keywords):
            made.append(self)
            super().__init__(*args, **keywords)

    monkeypatch.setattr("paraload.sources.opening.LocalSource", Watched)
    reader = FileSystemReader(folder)
    targets = support.empty_like(saved)
    read_data_parallel(reader, *support.plan_for(reader, targets), num_workers=1)
    support.assert_same(targets, saved)
    assert len(made) == 1


# --------------------------------------------------------------------------- called by the user


def test_tasks_can_be_made_without_a_load_and_leave_nothing_open(big):
    folder, saved = big
    reader = Counting(folder)
    plan, _ = support.plan_for(reader, support.empty_like(saved))
    tasks = reader._create_read_tasks(plan, reader.storage_data)
    assert sorted(item for task in tasks for item in task.items) == list(range(20))
    assert max(len(task.specs) for task in tasks) > 1
    assert reader.sources() == (1, 1)
    plain = FileSystemReader(folder)
    others = ParallelFileReader._create_read_tasks(plain, plan, reader.storage_data)
    assert [task.items for task in others] == [task.items for task in tasks]


def test_another_reader_s_tasks_have_its_own_configuration(big):
    folder, saved = big
    other = Counting(folder, max_workers=1)

    class Borrowing(Counting):
        def _create_read_tasks(self, plan, storage_data):
            self.tasks = other._create_read_tasks(plan, storage_data)
            return self.tasks

    reader = Borrowing(folder)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert {len(task.specs) for task in reader.tasks} == {1}
    assert reader.sources() == other.sources() == (1, 1)


# --------------------------------------------------------------------------------- nested loads


class Nesting(DefaultLoadPlanner):
    """Loads another checkpoint when its first object comes."""

    def __init__(self, load):
        super().__init__()
        self._load = load
        self.done = []

    def load_bytes(self, read_item, value):
        if not self.done:
            self.done.append(self._load())
        super().load_bytes(read_item, value)


@pytest.mark.parametrize("is_same", [True, False])
def test_a_load_within_a_load_has_a_configuration_of_its_own(folder, saved, big, is_same):
    other_folder, other_saved = (folder, saved) if is_same else big
    reader = Counting(folder, max_workers=2)
    inner = reader if is_same else Counting(other_folder, max_workers=1)
    targets, other_targets = support.empty_like(saved), support.empty_like(other_saved)
    inner_plan = support.plan_for(inner, other_targets)
    planner = Nesting(lambda: read_data_parallel_v2(inner, *inner_plan, num_workers=1))
    reader.read_data(*support.plan_for(reader, targets, planner))
    support.assert_same(targets, saved)
    support.assert_same(other_targets, other_saved)
    assert reader.sources() == ((2, 2) if is_same else (1, 1))
    assert inner.sources() == ((2, 2) if is_same else (1, 1))


def test_a_load_while_tasks_are_made_leaves_the_outer_configuration(big, folder, saved):
    other_folder, other_saved = big
    inner_targets = support.empty_like(saved)

    class Reentrant(Counting):
        def _create_read_tasks(self, plan, storage_data):
            if not self.tasks:
                self.tasks = [None]
                paraload.load(inner_targets, folder, no_dist=True)
            return super()._create_read_tasks(plan, storage_data)

    reader = Reentrant(other_folder)
    targets = support.empty_like(other_saved)
    read_data_parallel(reader, *support.plan_for(reader, targets), num_workers=1)
    support.assert_same(targets, other_saved)
    support.assert_same(inner_targets, saved)
    assert {len(task.specs) for task in reader.tasks} == {1}
    assert reader.sources() == (1, 1)


def test_dcp_load_closes_the_one_source(folder, saved):
    reader = Counting(folder)
    dcp.load(support.empty_like(saved), storage_reader=reader, no_dist=True)
    assert reader.sources() == (1, 1)
