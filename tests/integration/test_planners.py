"""Planners other than torch's: resolve, copy and commit for each item, on one thread."""

from __future__ import annotations

import io
import threading

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlanner

from paraload import CheckpointReadError, ParallelFileSystemReader
from tests.integration import support
from tests.integration.support import EXECUTORS


class ForeignPlanner(LoadPlanner):
    """Wraps torch's planner and asserts what Megatron's does: commit comes right after resolve."""

    def __init__(self):
        self.inner = DefaultLoadPlanner()
        self.log = []
        self.pending = None
        self.thread = threading.get_ident()

    def set_up_planner(self, state_dict, metadata=None, is_coordinator=False):
        self.inner.set_up_planner(state_dict, metadata, is_coordinator)

    def create_local_plan(self):
        return self.inner.create_local_plan()

    def create_global_plan(self, global_plan):
        return self.inner.create_global_plan(global_plan)

    def finish_plan(self, central_plan):
        return self.inner.finish_plan(central_plan)

    def load_bytes(self, read_item, value):
        assert threading.get_ident() == self.thread
        assert self.pending is None
        assert isinstance(value, io.BytesIO)
        self.log.append(("bytes", read_item.dest_index.fqn))
        self.inner.load_bytes(read_item, value)

    def resolve_tensor(self, read_item):
        assert threading.get_ident() == self.thread
        assert self.pending is None, f"{self.pending} was not committed"
        self.pending = read_item.dest_index.fqn
        return self.inner.resolve_tensor(read_item)

    def commit_tensor(self, read_item, tensor):
        assert threading.get_ident() == self.thread
        assert self.pending == read_item.dest_index.fqn
        self.pending = None
        self.log.append(("tensor", read_item.dest_index.fqn))
        self.inner.commit_tensor(read_item, tensor)


class ConvertingPlanner(ForeignPlanner):
    """Reads into float64 buffers of its own, and converts on commit."""

    def resolve_tensor(self, read_item):
        return super().resolve_tensor(read_item).to(torch.float64)

    def commit_tensor(self, read_item, tensor):
        assert tensor.dtype is torch.float64
        super().commit_tensor(read_item, tensor)
        self.inner.resolve_tensor(read_item).copy_(tensor)


class CommitWatcher(DefaultLoadPlanner):
    """torch's planner with one method changed, which makes it a foreign one."""

    def commit_tensor(self, read_item, tensor):
        super().commit_tensor(read_item, tensor)
        tensor.add_(1)


@pytest.mark.parametrize("budget", [1 << 20, 256 << 20])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_commit_comes_right_after_resolve_in_torch_s_order(tmp_path, saved, executor, budget):
    expected = ForeignPlanner()
    support.load(FileSystemReader(tmp_path / "ckpt"), support.empty_like(saved), expected)
    planner = ForeignPlanner()
    reader = ParallelFileSystemReader(
        tmp_path / "ckpt", executor=executor, max_workers=2, memory_budget_bytes=budget
    )
    support.assert_same(support.load(reader, support.empty_like(saved), planner), saved)
    assert planner.log == expected.log


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_planner_may_change_the_dtype(tmp_path, saved, executor):
    reader = ParallelFileSystemReader(tmp_path / "ckpt", executor=executor, max_workers=2)
    targets = support.empty_like(saved)
    support.assert_same(support.load(reader, targets, ConvertingPlanner()), saved)


def test_a_subclass_that_overrides_commit_sees_the_loaded_tensor(tmp_path, saved):
    reader = ParallelFileSystemReader(tmp_path / "ckpt", max_workers=2)
    got = support.load(reader, support.empty_like(saved), CommitWatcher())
    assert torch.equal(got["big.0"], saved["big.0"] + 1)
    assert torch.equal(got["small.0"], saved["small.0"] + 1)


def test_one_changed_method_of_an_instance_counts_too(tmp_path, saved):
    planner = DefaultLoadPlanner()
    seen = []
    planner.commit_tensor = lambda read_item, tensor: seen.append(tensor.flatten()[0].item())
    reader = ParallelFileSystemReader(tmp_path / "ckpt", max_workers=2)
    support.load(reader, support.empty_like(saved), planner)
    assert len(seen) == len([name for name in saved if "." in name])
    assert -7 not in seen


@pytest.mark.parametrize("method", ["resolve_tensor", "commit_tensor", "load_bytes"])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_of_the_planner_comes_out_unchanged(tmp_path, saved, executor, method):
    planner = ForeignPlanner()
    reader = ParallelFileSystemReader(tmp_path / "ckpt", executor=executor, max_workers=2)
    plan, planner = support.plan_for(reader, support.empty_like(saved), planner)
    calls = []

    def failing(*args):
        calls.append(args)
        raise ZeroDivisionError("the planner's own problem")

    setattr(planner, method, failing)
    with pytest.raises(ZeroDivisionError, match="own problem"):
        reader.read_data(plan, planner)
    assert len(calls) == 1


def test_what_load_bytes_raises_for_unproved_bytes_is_tied_to_the_item(tmp_path, saved):
    """Damaged bytes fail there, and torch's errors name no item and no file."""
    planner = ForeignPlanner()
    reader = ParallelFileSystemReader(tmp_path / "ckpt", max_workers=2, verify=False)
    plan, planner = support.plan_for(reader, support.empty_like(saved), planner)

    def failing(*_):
        raise ZeroDivisionError("the planner's own problem")

    planner.load_bytes = failing
    with pytest.raises(CheckpointReadError, match="ZeroDivisionError") as caught:
        reader.read_data(plan, planner)
    assert {failure.fqn for failure in caught.value.failures} == {"note", "step"}
    assert isinstance(caught.value.failures[0].__cause__, ZeroDivisionError)


def test_staged_memory_stays_within_the_budget(tmp_path):
    state = {f"w{n}": torch.randn(200, 1000) for n in range(12)}
    support.save(tmp_path / "x", state)
    budget = 2 << 20
    reader = ParallelFileSystemReader(tmp_path / "x", max_workers=4, memory_budget_bytes=budget)
    support.assert_same(support.load(reader, support.empty_like(state), ForeignPlanner()), state)
    assert 800_000 <= reader.last_report.peak_in_flight_bytes <= budget
