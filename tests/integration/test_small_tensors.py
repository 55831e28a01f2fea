"""Many small tensors: the fast path gives the same bytes and errors as the general one."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import ChecksumMismatchError, FormatError
from paraload.workers import layout_cache as _layout_cache
from paraload.workers import records as _records
from tests.integration import support

SHAPES = [(40,), (8, 5), (3, 4, 5), ()]


def small_state(count=60):
    state = {f"w{n:03}": torch.randn(SHAPES[n % len(SHAPES)]) for n in range(count)}
    state |= {f"h{n:03}": torch.randn(64).to(torch.bfloat16) for n in range(count)}
    return state | {"step": 7}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return folder, support.save(folder, small_state(), files=2)


@pytest.fixture
def looked_at(monkeypatch):
    """The items that were looked at one by one."""
    seen = []
    whole = _records._take_record

    def take(reader, sink, spec, data):
        seen.append(spec.fqn)
        return whole(reader, sink, spec, data)

    monkeypatch.setattr(_records, "_take_record", take)
    return seen


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_one_record_of_each_layout_is_looked_at_and_the_others_land(saved, looked_at, executor):
    folder, state = saved
    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=1)
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert len(looked_at) == len(SHAPES) + 2  # bfloat16, and the object
    report = reader.last_report
    assert report.items == len(state)
    assert report.bytes_verified >= sum(state[name].nbytes for name in state if name != "step")
    assert report.unverified == {}


def test_targets_of_another_layout_or_dtype_are_looked_at(saved, looked_at):
    folder, state = saved
    targets = support.empty_like(state)
    targets["w001"] = torch.zeros(5, 8).t()
    targets["w005"] = torch.zeros(8, 5, dtype=torch.float64)
    targets["w009"] = torch.nn.Parameter(torch.zeros(8, 5))
    reader = ParallelFileSystemReader(folder, executor="sequential")
    loaded = support.load(reader, targets)
    assert all(torch.equal(loaded[n], state[n].to(loaded[n].dtype)) for n in state if n != "step")
    assert {"w001", "w005"} <= set(looked_at)


def test_records_of_one_length_may_be_stored_in_another_order(tmp_path):
    state = {f"w{n}": torch.randn(6, 6) if n % 3 else torch.randn(6, 6).t() for n in range(12)}
    support.save(tmp_path, state, files=1)
    assert len({length for _, _, length in support.records_of(tmp_path).values()}) == 1
    reader = ParallelFileSystemReader(tmp_path, executor="sequential", verify=False)
    targets = {name: torch.zeros(6, 6) for name in state}
    support.assert_same(support.load(reader, targets), state)


def test_without_verification_nothing_is_proved(saved):
    folder, state = saved
    reader = ParallelFileSystemReader(folder, executor="sequential", verify=False)
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert reader.last_report.bytes_verified == 0
    assert reader.last_report.unverified == {"verify=False": len(state)}


@pytest.mark.parametrize("number", [4, 8])  # the first of its layout may have been another
def test_a_flipped_bit_fails_its_item_alone_or_is_harmless(tmp_path, number):
    state = support.save(tmp_path, small_state(12), files=1)
    name = f"w{number:03}"
    path, offset, length = support.records_of(tmp_path)[name]
    untouched = path.read_bytes()
    seen = set()
    for at in range(0, length, 7):
        support.flip(path, offset + at)
        targets = support.empty_like(state)
        try:
            support.load(ParallelFileSystemReader(tmp_path, executor="sequential"), targets)
        except (CheckpointReadError, CheckpointException) as error:
            failure = error.failures[0][0] if hasattr(error, "failures") else error
            assert isinstance(failure, CheckpointReadError), at
            (failed,) = failure.failures
            assert failed.fqn == name
            assert failed.start == offset
            seen.add(type(failed))
        else:
            support.assert_same(targets, state)
        others = {key for key in state if key not in {name, "step"}}
        assert all(torch.equal(targets[key], state[key]) for key in others), at
        path.write_bytes(untouched)
    assert seen == {ChecksumMismatchError, FormatError}


def test_overridden_steps_see_every_item(saved):
    folder, state = saved
    seen = {"reader": [], "planner": []}

    class Reader(ParallelFileSystemReader):
        def _process_results(self, results, plan, planner):
            seen["reader"] += [plan.items[result.item].dest_index.fqn for result in results]
            super()._process_results(results, plan, planner)

    class Planner(DefaultLoadPlanner):
        def commit_tensor(self, read_item, tensor):
            seen["planner"].append(read_item.dest_index.fqn)

    support.load(Reader(folder), support.empty_like(state))
    assert sorted(seen["reader"]) == sorted(state)
    support.load(ParallelFileSystemReader(folder), support.empty_like(state), Planner())
    assert sorted(seen["planner"]) == sorted(set(state) - {"step"})


def test_only_so_many_layouts_are_remembered(saved, monkeypatch):
    monkeypatch.setattr(_layout_cache, "_MAX_LAYOUTS", 2)
    folder, state = saved
    reader = ParallelFileSystemReader(folder, executor="sequential")
    support.assert_same(support.load(reader, support.empty_like(state)), state)


# ----------------------------------------------------------------- where they go


@pytest.mark.parametrize(
    "order",
    [
        lambda items: items,
        lambda items: items[::-1],
        lambda items: items[1::3],
        lambda items: items[7:] + items[:7],
        lambda items: [item for item in items[:9] for _ in range(2)],
    ],
    ids=["unchanged", "backwards", "a part", "reversed", "twice each"],
)
def test_a_whole_tensor_is_resolved_to_what_the_planner_would(saved, order):
    folder, state = saved
    from paraload.adapters.dcp import plan_items

    plan, planner = support.plan_for(FileSystemReader(folder), support.empty_like(state))
    plan = LoadPlan(order(plan.items))
    for item, got in zip(plan.items, plan_items.resolved_tensors(plan, planner), strict=True):
        if got is not None:
            expected = planner.resolve_tensor(item)
            assert (got.data_ptr(), got.shape) == (expected.data_ptr(), expected.shape)


def test_an_offset_that_a_plain_tensor_does_not_have_is_the_planners_to_refuse(saved):
    import dataclasses

    from paraload.adapters.dcp import plan_items

    folder, state = saved
    plan, planner = support.plan_for(FileSystemReader(folder), support.empty_like(state))
    number = next(n for n, item in enumerate(plan.items) if item.lengths == torch.Size([40]))
    item = plan.items[number]
    for offset in ((5,), (0, 0)):
        index = dataclasses.replace(item.dest_index, offset=torch.Size(offset))
        plan.items[number] = dataclasses.replace(item, dest_index=index)
        with pytest.raises(ValueError, match="is not a ShardedTensor"):
            list(plan_items.resolved_tensors(plan, planner))


# ----------------------------------------------------------------- the collector


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_after_a_load_and_after_an_error(saved, tmp_path, enabled):
    folder, state = saved
    (gc.enable if enabled else gc.disable)()
    try:
        support.load(ParallelFileSystemReader(folder), support.empty_like(state))
        assert (gc.isenabled(), gc.get_freeze_count()) == (enabled, 0)
        reader = ParallelFileSystemReader(folder)
        plan, planner = support.plan_for(reader, support.empty_like(state))
        reader.path = tmp_path
        with pytest.raises(CheckpointReadError):
            reader.read_data(plan, planner)
        assert (gc.isenabled(), gc.get_freeze_count()) == (enabled, 0)
    finally:
        gc.enable()


def test_what_a_program_has_frozen_stays_frozen(saved):
    folder, state = saved
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        support.load(ParallelFileSystemReader(folder), support.empty_like(state))
        assert gc.get_freeze_count() >= frozen - 10_000  # some of it is freed by its own count
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
