"""The documented interface: imports, three kinds of integration, hooks."""

from __future__ import annotations

import multiprocessing as mp
import time

import psutil
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from paraload import ParallelFileSystemReader
from paraload.errors import HookNotPicklableError, InvalidOptionError
from paraload.options import ReadOptions
from tests.integration import hooks, support
from tests.integration.support import EXECUTORS


@pytest.fixture
def path(tmp_path, saved):
    return str(tmp_path / "ckpt")


def prepared(reader_class, path, saved, **keywords):
    """A plan and a planner over fresh targets, and the storage data that the plan speaks of."""
    targets = support.empty_like(saved)
    stock = FileSystemReader(path)
    plan, planner = support.plan_for(stock, targets)
    return plan, planner, stock.storage_data, targets


# ----------------------------------------------------------------- 方式一: 使用 ParallelFileReader


def test_way_one_the_mixin(path, saved):
    from parallel_reader_implementation import ParallelFileReader

    plan, planner, storage_data, targets = prepared(None, path, saved)

    class MyReader(ParallelFileReader):
        def __init__(self, path):
            super().__init__(enable_parallel=True, max_workers=8)
            self.path = path
            self.storage_data = storage_data

    reader = MyReader(path)
    future = reader.read_data(plan, planner)
    assert future.wait() is None
    support.assert_same(targets, saved)


# ----------------------------------------------------------------- 方式二: 集成到现有类


def test_way_two_methods_copied_into_an_existing_class(path, saved):
    from parallel_reader_implementation import ParallelFileReader

    plan, planner, storage_data, targets = prepared(None, path, saved)

    class ExistingReader:
        def __init__(self, path, num_workers=None):
            self.path = path
            self.storage_data = storage_data
            self.enable_parallel = True
            self.max_workers = num_workers or mp.cpu_count()

        _serialize_read_item = ParallelFileReader._serialize_read_item
        _serialize_storage_metadata = ParallelFileReader._serialize_storage_metadata
        _create_read_tasks = ParallelFileReader._create_read_tasks
        _process_results = ParallelFileReader._process_results
        read_data = ParallelFileReader.read_data

    reader = ExistingReader(path)
    reader.read_data(plan, planner).wait()
    support.assert_same(targets, saved)


# ----------------------------------------------------------------- 方式三: 带进度显示


def test_way_three_with_progress(path, saved, capsys):
    plan, planner, _, targets = prepared(None, path, saved)
    reader = ParallelFileSystemReader(path)
    reader.set_up_storage_reader(reader.read_metadata(), True)

    def progress_callback(current, total):
        print(f"Progress: {current}/{total} files loaded")

    future = reader.read_data_with_progress(
        plan,
        planner,
        progress_callback=progress_callback,
    )
    future.wait()
    support.assert_same(targets, saved)
    assert capsys.readouterr().out.splitlines() == [
        f"Progress: {n}/3 files loaded" for n in (1, 2, 3)
    ]


# ----------------------------------------------------------------- read_data_parallel.py


@pytest.mark.parametrize("name", ["read_data_parallel", "read_data_parallel_v2"])
def test_the_functions_work_with_any_file_system_reader(path, saved, name):
    import read_data_parallel as module

    targets = support.empty_like(saved)
    reader = FileSystemReader(path)
    plan, planner = support.plan_for(reader, targets)
    getattr(module, name)(reader, plan, planner, num_workers=2).wait()
    support.assert_same(targets, saved)
    expected = {"read_data_parallel": "pool", "read_data_parallel_v2": "processes"}
    assert reader.last_report.executor == expected[name]
    assert reader.last_report.workers == 2


def test_and_as_methods_of_a_subclass(path, saved):
    from read_data_parallel import read_data_parallel, read_data_parallel_v2

    class WithPool(FileSystemReader):
        read_data = read_data_parallel

    class WithProcesses(FileSystemReader):
        read_data = read_data_parallel_v2

    for reader_class in (WithPool, WithProcesses):
        support.assert_same(support.load(reader_class(path), support.empty_like(saved)), saved)


def test_the_worker_and_the_replaceable_steps_are_where_the_request_has_them():
    import parallel_reader_implementation
    import read_data_parallel

    for module in (parallel_reader_implementation, read_data_parallel):
        assert callable(module._process_single_file)
    assert callable(parallel_reader_implementation._slice_file_simple)
    assert callable(parallel_reader_implementation._narrow_tensor_simple)


# ----------------------------------------------------------------- the steps are real


def test_overriding_a_step_has_an_effect(path, saved):
    calls = []

    class Watching(ParallelFileSystemReader):
        def _serialize_read_item(self, read_item):
            calls.append("item")
            return super()._serialize_read_item(read_item)

        def _serialize_storage_metadata(self, storage_info):
            calls.append("storage")
            return super()._serialize_storage_metadata(storage_info)

        def _create_read_tasks(self, plan, storage_data):
            calls.append("tasks")
            return super()._create_read_tasks(plan, storage_data)

        def _process_results(self, results, plan, planner):
            calls.extend("result" for _ in results)
            super()._process_results(results, plan, planner)

    support.assert_same(support.load(Watching(path), support.empty_like(saved)), saved)
    assert calls.count("tasks") == 1
    assert calls.count("item") == calls.count("storage") == calls.count("result") == len(saved)


# ----------------------------------------------------------------- 自定义和扩展: hooks


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    "given",
    [
        {"slice_file": hooks.sliced},
        {"transform": hooks.passed},
        {
            "slice_file": hooks.sliced,
            "narrow_tensor": hooks.narrowed,
            "transform": hooks.passed,
        },
    ],
    ids="+".join,
)
def test_hooks_work_with_every_executor(path, saved, executor, given):
    reader = ParallelFileSystemReader(path, executor=executor, max_workers=2, **given)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report.executor == executor


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_narrow_hook_s_tensor_is_what_is_loaded(path, saved, executor):
    reader = ParallelFileSystemReader(
        path, executor=executor, max_workers=2, narrow_tensor=hooks.doubled
    )
    got = support.load(reader, support.empty_like(saved))
    assert torch.equal(got["big.0"], saved["big.0"] * 2)
    assert torch.equal(got["small.0"], saved["small.0"] * 2)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_transform_hook_decodes(path, saved, executor):
    support.scramble(path)
    reader = ParallelFileSystemReader(
        path, executor=executor, max_workers=2, transform=hooks.unscrambled
    )
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


@pytest.mark.parametrize("executor", ["processes", "pool"])
@pytest.mark.parametrize("hook", ["slice_file", "narrow_tensor", "transform"])
def test_a_lambda_is_refused_before_any_work(path, saved, executor, hook):
    targets = support.empty_like(saved)
    reader = ParallelFileSystemReader(
        path, executor=executor, max_workers=2, **{hook: lambda *_: None}
    )
    plan, planner = support.plan_for(reader, targets)
    with pytest.raises(HookNotPicklableError, match=rf"{hook}=<function .*executor='threads'"):
        reader.read_data(plan, planner)
    assert all((targets[name] == -7).all() for name in targets if "." in name)


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_a_lambda_is_fine_where_nothing_is_pickled(path, saved, executor):
    reader = ParallelFileSystemReader(
        path, executor=executor, max_workers=2, slice_file=lambda *given: hooks.sliced(*given)
    )
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


# ----------------------------------------------------------------- 测试, 配置建议


def test_parallel_correctness(path, saved):
    """验证并行和顺序结果一致."""
    planner_seq = support.empty_like(saved)
    planner_par = support.empty_like(saved)

    reader_seq = ParallelFileSystemReader(path, enable_parallel=False)
    plan, planner = support.plan_for(reader_seq, planner_seq)
    reader_seq.read_data(plan, planner)

    reader_par = ParallelFileSystemReader(path, enable_parallel=True, max_workers=4)
    plan, planner = support.plan_for(reader_par, planner_par)
    reader_par.read_data(plan, planner)

    support.assert_same(planner_seq, planner_par)
    assert (reader_seq.last_report.executor, reader_par.last_report.executor) == (
        "sequential",
        "threads",
    )


def test_the_request_s_timing_loop(path, saved, capsys):
    for num_workers in [1, 2, 4, 8]:
        start = time.time()
        reader = ParallelFileSystemReader(path, max_workers=num_workers)
        plan, planner = support.plan_for(reader, support.empty_like(saved))
        reader.read_data(plan, planner)
        elapsed = time.time() - start
        print(f"{num_workers} workers: {elapsed:.2f}s")
        assert reader.last_report.workers == num_workers
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_request_s_memory_rule(path, saved):
    available_gb = psutil.virtual_memory().available / (1024**3)
    avg_file_size_gb = 2.0
    max_workers = min(mp.cpu_count(), max(1, int(available_gb * 0.8 / avg_file_size_gb)))
    reader = ParallelFileSystemReader(path, max_workers=max_workers)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)


# ----------------------------------------------------------------- falling back to sequential


@pytest.mark.parametrize(
    ("keywords", "state"),
    [
        ({"enable_parallel": False}, support.example_state()),
        ({"max_workers": 1}, support.example_state()),
        ({"max_workers": 1, "executor": "processes"}, support.example_state()),
        ({"max_workers": 4}, {"tiny": torch.ones(3)}),
        ({"max_workers": 4, "executor": "pool"}, {"tiny": torch.ones(3)}),
    ],
)
def test_it_falls_back_to_sequential_by_itself(tmp_path, keywords, state):
    support.save(tmp_path / "x", state)
    reader = ParallelFileSystemReader(tmp_path / "x", options=ReadOptions(**keywords))
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert reader.last_report.executor == "sequential"


def test_a_url_is_no_folder_unless_the_file_system_is_replaced():
    with pytest.raises(InvalidOptionError, match="'s3://bucket/step' is a URL") as caught:
        ParallelFileSystemReader("s3://me:secret@bucket/step?sig=secret")
    assert "secret" not in str(caught.value)

    class OwnFileSystem(ParallelFileSystemReader):
        def __init__(self, url):
            super().__init__(url)
            self.path = url

    assert OwnFileSystem("s3://bucket/step").path == "s3://bucket/step"
