"""Reads bypass torch, so paraload checks the memory of targets itself."""

from __future__ import annotations

import contextlib
import gc
import warnings

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.utils._python_dispatch import TorchDispatchMode

import paraload
from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.destinations.tensor_memory import extent
from paraload.errors import TargetMemoryError
from tests.integration.support import EXECUTORS, assert_same, empty_like, load, save


class Foreign(DefaultLoadPlanner):
    """Strict resolve, copy, commit: nothing is resolved ahead."""

    def resolve_tensor(self, read_item):
        return super().resolve_tensor(read_item)


@pytest.fixture
def saved(tmp_path):
    """Staged and direct, above and below the size from which records are located."""
    state = {
        "big": torch.randn(500, 700),  # with less than 1 MiB a load has no workers
        "small": torch.randn(16, 16),
        "none": torch.zeros(0, 3),
        "object": "text",
    }
    return tmp_path, save(tmp_path, state)


def targets(state, dtype=torch.float32):
    made = empty_like(state)
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in made.items()}


def converted(state, dtype):
    return {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in state.items()}


# ------------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", ["big", "small"])
@pytest.mark.parametrize("planner", [DefaultLoadPlanner, Foreign])
def test_backward_through_weights_that_were_loaded_meanwhile_is_an_error(
    saved, executor, name, planner
):
    folder, state = saved
    weight = torch.nn.Parameter(torch.zeros_like(state[name]))
    output = (weight * torch.ones_like(weight, requires_grad=True)).sum()
    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2)
    load(reader, {name: weight}, planner())
    assert torch.equal(weight, state[name])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_a_refused_load_leaves_the_version_alone(saved):
    folder, _ = saved
    weight = torch.zeros(16, 16)
    (folder / "__0_0.distcp").unlink()
    for path in folder.glob("*.distcp"):
        path.unlink()
    with pytest.raises(CheckpointReadError):
        paraload.load({"small": weight}, folder, no_dist=True)
    assert weight._version == 0


# --------------------------------------------------------------------------- targets without memory


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunk(tensor):
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() - 1)
    return tensor


def view_beyond(tensor):
    """A view that begins inside of its storage and ends behind it."""
    wide = torch.zeros(2, *tensor.shape)
    view = wide[1]
    wide.untyped_storage().resize_(tensor.numel() * 4 + 8)
    return view


def zero(tensor):
    return torch._efficientzerotensor(tensor.shape)


def fake(tensor):
    with FakeTensorMode():
        return torch.zeros(tensor.shape)


def meta(tensor):
    return tensor.to("meta")


def parameter_freed(tensor):
    return freed(torch.nn.Parameter(tensor))


WITHOUT = [freed, shrunk, view_beyond, zero, fake, parameter_freed]


@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.parametrize("make", WITHOUT)
def test_a_target_without_memory_is_refused_before_the_first_byte(saved, make, executor):
    folder, state = saved
    good = torch.full_like(state["big"], -7)
    made = {name: make(torch.zeros_like(state[name])) for name in ("big", "small")}
    with pytest.raises(CheckpointReadError, match="nothing was read") as caught:
        # The names sort before and behind, so that both would be written to.
        paraload.load(
            {"big": good, "small": made["small"]}, folder, no_dist=True, executor=executor
        )
    [failure] = caught.value.failures
    assert isinstance(failure, TargetMemoryError)
    assert failure.fqn == "small"
    assert torch.all(good == -7)
    with pytest.raises(CheckpointReadError, match="nothing was read") as caught:
        paraload.load(made, folder, no_dist=True, executor=executor)
    assert {failure.fqn for failure in caught.value.failures} == {"big", "small"}


class ToMeta(Foreign):
    """``copy_`` into a meta tensor does nothing, and says nothing."""

    def resolve_tensor(self, read_item):
        return super().resolve_tensor(read_item).to("meta")


@pytest.mark.parametrize("make", [*WITHOUT, meta])
def test_a_foreign_planner_that_resolves_to_none_is_an_error(saved, make):
    folder, state = saved
    made = {name: make(torch.zeros_like(state[name])) for name in ("big", "small")}
    if make is meta:
        made = {name: torch.zeros_like(state[name]) for name in ("big", "small")}
    planner = ToMeta() if make is meta else Foreign()
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load(made, folder, no_dist=True, planner=planner)
    assert {type(failure) for failure in caught.value.failures} == {TargetMemoryError}


class StateOnMeta(DefaultLoadPlanner):
    def set_up_planner(self, state_dict, metadata=None, is_coordinator=False):
        super().set_up_planner(state_dict, metadata, is_coordinator)
        self.state_dict = {name: value.to("meta") for name, value in self.state_dict.items()}


def test_targets_on_meta_are_refused(saved):
    folder, state = saved
    with pytest.raises(CheckpointReadError, match="it is on the meta device") as caught:
        paraload.load(
            {"big": torch.zeros_like(state["big"])}, folder, no_dist=True, planner=StateOnMeta()
        )
    assert {type(failure) for failure in caught.value.failures} == {TargetMemoryError}


def test_what_needs_no_memory_is_loaded(tmp_path):
    save(tmp_path, {"none": torch.zeros(0, 3), "one": torch.ones(1)})
    target = {"none": freed(torch.zeros(0, 3)), "one": torch.zeros(1)}
    report = paraload.load(target, tmp_path, no_dist=True)
    assert target["one"] == 1
    assert report.items == 1


def sparse(tensor):
    return tensor.to_sparse()


def compressed(tensor):
    return torch.ones_like(tensor).to_sparse_csr()


def mkldnn(tensor):
    return tensor.to_mkldnn()


@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("make", [sparse, compressed, mkldnn])
@pytest.mark.parametrize("planner", [None, Foreign])
def test_a_target_of_another_layout_is_refused_and_blames_no_expansion(
    saved, make, executor, planner
):
    folder, state = saved
    made = {name: make(torch.zeros_like(state[name])) for name in ("big", "small")}
    with pytest.raises(CheckpointReadError, match="its layout is torch") as caught:
        paraload.load(made, folder, no_dist=True, executor=executor, planner=planner and planner())
    assert {failure.fqn for failure in caught.value.failures} == {"big", "small"}
    assert "expanded" not in str(caught.value)
    assert ("nothing was read" in str(caught.value)) is (planner is None)


def test_elements_that_share_places_without_a_stride_of_zero_are_refused(saved):
    """torch's copy does not refuse these, and the order of its threads decides what they hold."""
    folder, state = saved
    rows, columns = state["small"].shape
    shared = torch.zeros(rows * columns).as_strided((rows, columns), (1, 1))
    with pytest.raises(CheckpointReadError, match="share one place in memory"):
        paraload.load({"small": shared}, folder, no_dist=True)
    interleaved = torch.zeros(2 * rows * columns).as_strided((rows, columns), (columns + 1, rows))
    paraload.load({"small": interleaved}, folder, no_dist=True)
    assert torch.equal(interleaved, state["small"])


def test_wrappers_without_an_address_share_no_memory(saved):
    folder, state = saved
    made = {name: torch.zeros_like(state[name]) for name in ("big", "small")}
    wrapped = {name: torch._to_functional_tensor(tensor) for name, tensor in made.items()}
    report = paraload.load(wrapped, folder, no_dist=True, strict=True)
    assert not report.overwritten
    assert {extent(tensor) for tensor in wrapped.values()} == {(0, 0)}
    for name, tensor in wrapped.items():
        torch._sync(tensor)
        assert torch.equal(torch._from_functional_tensor(tensor), state[name])


# ------------------------------------------------------------------------------- ambient state


class Refuses(TorchDispatchMode):
    """Stands for tracers: nothing of ours may reach it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} was called")


@contextlib.contextmanager
def patched_factories():
    """What accelerate's ``init_empty_weights(include_buffers=True)`` does."""
    names = ["empty", "zeros", "ones", "full"]
    real = {name: getattr(torch, name) for name in names}

    def patch(function):
        return lambda *args, **keywords: function(*args, **(keywords | {"device": "meta"}))

    try:
        for name, function in real.items():
            setattr(torch, name, patch(function))
        yield
    finally:
        for name, function in real.items():
            setattr(torch, name, function)


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(mode=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=False)


AMBIENT = {
    "default device": default_device,
    "device": lambda: torch.device("meta"),
    "patched factories": patched_factories,
    "default dtype": default_dtype,
    "deterministic": deterministic,
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "fake tensors": FakeTensorMode,
}


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("executor", "planner"), [("threads", None), ("threads", Foreign), ("processes", None)]
)
def test_ambient_state_does_not_reach_our_own_memory(saved, ambient, dtype, executor, planner):
    folder, state = saved
    target = targets(state, dtype)
    made = None if planner is None else planner()
    with AMBIENT[ambient]():
        paraload.load(target, folder, no_dist=True, planner=made, executor=executor, max_workers=2)
    assert target["object"] == state["object"]
    assert_same(target, converted(state, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dispatch_mode_sees_nothing_of_a_load(saved, dtype):
    folder, state = saved
    names = ["big", "small"]
    target = {name: value for name, value in targets(state, dtype).items() if name in names}
    reader = ParallelFileSystemReader(folder)
    metadata, planner = reader.read_metadata(), DefaultLoadPlanner()
    planner.set_up_planner(target, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = planner.create_local_plan()
    with Refuses():
        reader.read_data(plan, planner)
    assert_same(target, {name: state[name].to(dtype) for name in names})


@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_no_buffer_error_hides_what_went_wrong(saved, executor, monkeypatch):
    """The frames of the error hold views of shared memory."""
    folder, state = saved

    def refuses(*arguments):
        raise OSError("mine")

    monkeypatch.setattr("paraload.executors.processes.slots.copy_runs", refuses)
    # The caller's own reads do not come out of shared memory.
    monkeypatch.setattr("paraload.executors.processes.executor._PLAIN_READS", ())
    with pytest.raises(OSError, match="mine"):
        paraload.load(targets(state), folder, no_dist=True, executor=executor, max_workers=2)


@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_keeping_a_view_of_a_result_is_harmless(saved, executor):
    folder, state = saved
    kept = []

    class Keeps(ParallelFileSystemReader):
        def _process_results(self, results, plan, planner):
            for result in results:
                if result.data is not None:
                    kept.extend([result.data[:1], np.frombuffer(result.data, np.uint8)])
            super()._process_results(results, plan, planner)

    target = targets(state)
    load(Keeps(folder, executor=executor, max_workers=2), target)
    assert_same(target, state)
    assert kept
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.clear()
        gc.collect()


# --------------------------------------------------------------------------- created in inference


@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("planner", [None, Foreign])
def test_targets_that_were_created_in_inference_mode(saved, executor, dtype, planner):
    folder, state = saved
    with torch.inference_mode():
        target, expected = targets(state, dtype), targets(state, dtype)
    load(FileSystemReader(folder), expected)
    made = None if planner is None else planner()
    paraload.load(target, folder, no_dist=True, planner=made, executor=executor, max_workers=2)
    with torch.inference_mode():
        assert_same(target, expected)
