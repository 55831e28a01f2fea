"""Targets that do not match what is stored: all are named before the first read."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlan

import paraload
from paraload import CheckpointReadError, ParallelFileSystemReader, SafeLoadPlanner
from paraload.errors import DtypeMismatchError, ShapeMismatchError, TransformError
from paraload.testing import FaultySource, leaked, resources
from tests.integration import hooks, support
from tests.integration.support import EXECUTORS

NOTHING_READ = "nothing was read, and the targets are as they were"


class Watched(FaultySource):
    """Notes what is read in this process."""

    def __init__(self, inner, reads):
        super().__init__(inner)
        self.reads = reads

    def read(self, path, reads):
        self.reads.append(path)
        return super().read(path, reads)


class Reader(ParallelFileSystemReader):
    def __init__(self, path, **keywords):
        super().__init__(path, **keywords)
        self.reads = []

    def _make_source(self):
        return Watched(super()._make_source(), self.reads)


def refusal(folder, targets, planner=None, *, kind=Reader, **keywords):
    """The error of a load that reads nothing, writes nothing, and leaves nothing behind."""
    reader = kind(folder, **keywords)
    plan = support.plan_for(reader, targets, planner)
    as_they_were = {name: pickle.dumps(value) for name, value in targets.items()}
    before = resources()
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(*plan)
    assert leaked(before) == []
    assert reader.reads == []
    assert {name: pickle.dumps(value) for name, value in targets.items()} == as_they_were
    assert NOTHING_READ in str(caught.value)
    places = support.records_of(folder)
    for failure in caught.value.failures:
        file, start, length = places[failure.fqn]
        assert (failure.path, failure.start, failure.end) == (file.name, start, start + length)
        assert f"{failure.fqn!r}" in str(caught.value)
    return caught.value


# ---------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("planner", [DefaultLoadPlanner, SafeLoadPlanner])
def test_strict_names_every_conversion_before_the_first_byte(folder, saved, executor, planner):
    targets = support.empty_like(saved)
    changed = {"big.1": torch.float64, "big.3": torch.bfloat16, "small.5": torch.float32}
    for name, dtype in changed.items():
        targets[name] = targets[name].to(dtype)
    error = refusal(folder, targets, planner(), strict=True, executor=executor, max_workers=2)
    assert {failure.fqn for failure in error.failures} == set(changed)
    assert {type(failure) for failure in error.failures} == {DtypeMismatchError}
    [failure] = [failure for failure in error.failures if failure.fqn == "big.1"]
    assert (failure.expected, failure.got) == ("float32", "float64")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("strict", [False, True])
def test_complex_into_real_is_always_refused_before_the_first_byte(tmp_path, executor, strict):
    saved = {"a": torch.ones(8, dtype=torch.complex64), "z": torch.ones(300_000).to(torch.cfloat)}
    saved |= {"real": torch.ones(5), "same": torch.ones(3, dtype=torch.complex64)}
    support.save(tmp_path, saved)
    targets = support.empty_like(saved) | {"a": torch.zeros(8), "z": torch.zeros(300_000)}
    error = refusal(tmp_path, targets, strict=strict, executor=executor, max_workers=2)
    assert {failure.fqn for failure in error.failures} == {"a", "z"}
    assert {type(failure) for failure in error.failures} == {DtypeMismatchError}


def odd_targets():
    """Targets of ``(4, 6)`` that have no memory for workers, or an odd one; all of float32."""
    return {
        "plain": torch.zeros(4, 6),
        "strided": torch.zeros(6, 4).t(),
        "cut": torch.zeros(8, 12)[::2, ::2],
        "parameter": torch.nn.Parameter(torch.zeros(4, 6)),
        "subclass": torch.zeros(4, 6).as_subclass(Subclass),
    }


class Subclass(torch.Tensor):
    pass


def test_every_kind_of_target_is_looked_at(tmp_path):
    support.save(tmp_path, {name: torch.randn(4, 6).double() for name in odd_targets()})
    error = refusal(tmp_path, odd_targets(), strict=True)
    assert {failure.fqn for failure in error.failures} == set(odd_targets())
    targets = odd_targets()
    report = paraload.load(targets, tmp_path, no_dist=True)
    assert report.conversions == {"float64 to float32": 5}
    assert all(target.any() for target in targets.values())


def test_of_staged_targets_only_the_wrong_ones_are_named(tmp_path):
    support.save(tmp_path, {f"w{n}": torch.randn(3) for n in range(6)})
    targets = {f"w{n}": torch.zeros(3).as_subclass(Subclass) for n in range(6)}
    targets["w2"] = torch.zeros(3).half().as_subclass(Subclass)
    [failure] = refusal(tmp_path, targets, strict=True).failures
    assert (failure.fqn, failure.got) == ("w2", "float16")


def test_a_slice_is_named_by_its_record(tmp_path):
    """A sharded target reads parts of several records: each of them is one."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    class Half(torch.Tensor):
        def __create_chunk_list__(self):
            return [ChunkStorageMetadata(torch.Size([2]), torch.Size([2]))]

        def __get_tensor_shard__(self, index):
            return self.as_subclass(torch.Tensor)[:2]

        def size(self):
            return torch.Size([4])

    support.save(tmp_path, {"w": torch.arange(4.0)})
    reader = Reader(tmp_path, strict=True)
    plan, planner = support.plan_for(reader, {"w": torch.zeros(4).double().as_subclass(Half)})
    with pytest.raises(CheckpointReadError, match=NOTHING_READ) as caught:
        reader.read_data(plan, planner)
    assert [failure.fqn for failure in caught.value.failures] == ["w"]
    assert reader.reads == []


def test_where_the_stored_dtype_is_not_known_it_is_checked_later(folder, saved):
    """A class that only has the methods was never shown the metadata."""
    targets = support.empty_like(saved)
    targets["small.0"] = targets["small.0"].double()
    reader = Reader(folder, strict=True)
    plan = support.plan_for(reader, targets)
    reader._entries = None
    with pytest.raises(CheckpointReadError, match="partly filled") as caught:
        reader.read_data(*plan)
    [failure] = caught.value.failures
    assert isinstance(failure, DtypeMismatchError)


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_hook_may_change_the_dtype(folder, saved, executor):
    targets = {"big.0": torch.zeros(300, 700).double()}
    reader = ParallelFileSystemReader(
        folder, strict=True, executor=executor, max_workers=2, narrow_tensor=hooks.to_double
    )
    reader.read_data(*support.plan_for(reader, targets))
    assert torch.equal(targets["big.0"], saved["big.0"].double())


def test_so_may_a_step(folder, saved):
    class Converting(ParallelFileSystemReader):
        def _process_results(self, results, plan, planner):
            for result in results:
                result.destination.tensor.fill_(3)

    targets = {"small.0": torch.zeros(50, 3).double()}
    reader = Converting(folder, strict=True)
    reader.read_data(*support.plan_for(reader, targets))
    assert torch.equal(targets["small.0"], torch.full((50, 3), 3.0).double())


# ---------------------------------------------------------------------------------------- shapes


class OtherLengths(DefaultLoadPlanner):
    """Plans items that do not have the shape of their targets; resolves as torch does."""

    def create_local_plan(self):
        items = super().create_local_plan().items
        return LoadPlan([change(item) for item in items])


def change(item):
    from dataclasses import replace

    if item.dest_index.fqn not in {"w1", "w3"}:
        return item
    return replace(item, lengths=torch.Size([4]), dest_offsets=torch.Size([0]))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_targets_of_another_shape_than_planned_are_all_named(tmp_path, executor):
    support.save(tmp_path, {f"w{n}": torch.randn(4, 5) for n in range(5)})
    targets = {f"w{n}": torch.zeros(4, 5) for n in range(5)}
    error = refusal(tmp_path, targets, OtherLengths(), executor=executor, max_workers=2)
    assert {failure.fqn for failure in error.failures} == {"w1", "w3"}
    assert {type(failure) for failure in error.failures} == {ShapeMismatchError}


class OutsideOfStored(DefaultLoadPlanner):
    """Plans slices that begin too late in what is stored."""

    def create_local_plan(self):
        items = super().create_local_plan().items
        return LoadPlan([shifted(item) for item in items])


def shifted(item):
    from dataclasses import replace

    if item.dest_index.fqn not in {"w0", "w3"}:
        return item
    return replace(item, storage_offsets=torch.Size([3, 0]))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_slices_outside_of_what_is_stored_are_all_named(tmp_path, executor):
    support.save(tmp_path, {f"w{n}": torch.randn(4, 5) for n in range(5)})
    targets = {f"w{n}": torch.zeros(4, 5) for n in range(5)}
    error = refusal(tmp_path, targets, OutsideOfStored(), executor=executor, max_workers=2)
    assert {failure.fqn for failure in error.failures} == {"w0", "w3"}
    assert "planned slice does not lie inside the stored tensor" in str(error)


# -------------------------------------------------------------------------------------- decoders


class Own(DefaultLoadPlanner):
    """Not resolved ahead."""

    def resolve_tensor(self, read_item):
        return super().resolve_tensor(read_item)


def describe(folder, names, *descriptors):
    with support.rewritten(folder) as metadata:
        for index, info in metadata.storage_data.items():
            if index.fqn in names:
                info.transform_descriptors = list(descriptors)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("planner", [DefaultLoadPlanner, Own])
def test_transforms_without_a_decoder_are_all_named(folder, saved, executor, planner):
    names = {"big.2", "small.1", "step"}
    describe(folder, names, "stream.unheard-of/7")
    targets = support.empty_like(saved)
    error = refusal(folder, targets, planner(), executor=executor, max_workers=2)
    assert {failure.fqn for failure in error.failures} == names
    assert {type(failure) for failure in error.failures} == {TransformError}
    assert "no decoder for transform 'stream.unheard-of/7'" in str(error)
    assert "_extension_registry=" in str(error)


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_hook_may_decode_them(folder, saved, executor):
    describe(folder, set(saved), "stream.unheard-of/7")
    targets = support.empty_like(saved)
    reader = ParallelFileSystemReader(
        folder, executor=executor, max_workers=2, transform=hooks.decoded
    )
    support.assert_same(support.load(reader, targets), saved)
