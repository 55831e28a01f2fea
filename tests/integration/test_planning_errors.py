"""``paraload.load`` names everything in a state dict that does not match, and nothing else."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    _version,
)
from torch.distributed.checkpoint.api import CheckpointException

import paraload
from paraload import CheckpointReadError, SafeLoadPlanner
from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.errors import (
    ItemReadError,
    KindMismatchError,
    MissingKeyError,
    ShapeMismatchError,
    TargetMemoryError,
)
from paraload.testing import leaked, resources
from tests.integration import support
from tests.integration.ranks import run_ranks

PLANNERS = [None, QuickLoadPlanner, SafeLoadPlanner, DefaultLoadPlanner]
NOTHING_READ = "nothing was read, and the targets are as they were"


class Renamed(DefaultLoadPlanner):
    """Torch's in everything that matters here."""


def made(kind, **flags):
    return kind(**flags) if kind is not None else (QuickLoadPlanner(**flags) if flags else None)


def refusal(targets, folder, planner=None, **keywords):
    as_they_were = pickle.dumps(targets)
    before = resources()
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load(targets, folder, planner=planner, no_dist=True, **keywords)
    assert leaked(before) == []
    assert pickle.dumps(targets) == as_they_were
    assert type(caught.value) is CheckpointReadError
    assert NOTHING_READ in str(caught.value)
    assert planner is None or "create_local_plan" not in vars(planner)
    back = pickle.loads(pickle.dumps(caught.value))
    assert str(back) == str(caught.value)
    assert list(map(str, back.failures)) == list(map(str, caught.value.failures))
    return caught.value


def faults(error):
    return {failure.fqn: type(failure) for failure in error.failures}


# ----------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("kind", [*PLANNERS, Renamed])
@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_all_faults_are_named_in_one_error(folder, saved, kind, executor):
    targets = support.empty_like(saved)
    targets |= {"big.0": torch.zeros(700, 300), "small.2": torch.zeros(50, 4).bfloat16()}
    targets |= {"new": torch.zeros(3), "other": 7, "big.1": "text", "big.2": None}
    error = refusal(targets, folder, made(kind), executor=executor)
    assert faults(error) == {
        "big.0": ShapeMismatchError,
        "small.2": ShapeMismatchError,
        "new": MissingKeyError,
        "other": MissingKeyError,
        "big.1": KindMismatchError,
        "big.2": KindMismatchError,
    }
    text = str(error)
    assert f"the checkpoint {str(folder)!r} cannot fill 6 of 14 items" in text
    assert "'big.0': the shapes of the target and the tensor in the checkpoint differ" in text
    assert "expected shape (300, 700), as it was saved, got shape (700, 300)" in text
    assert "'new': the checkpoint has no entry of this name" in text
    assert "expected a tensor of shape (300, 700), got an object of type str" in text
    assert "torch.empty((300, 700), dtype=torch.float32)" in text
    advised = "SafeLoadPlanner" if kind is SafeLoadPlanner else "DefaultLoadPlanner"
    advised = "Renamed" if kind is Renamed else advised
    assert f"planner={advised}(allow_partial_load=True)" in text


def test_they_are_key_and_value_errors_too(folder, saved):
    error = refusal({"new": torch.zeros(3), "big.0": torch.zeros(1), "big.1": 0}, folder)
    by_name = {failure.fqn: failure for failure in error.failures}
    assert isinstance(by_name["new"], KeyError)
    assert isinstance(by_name["big.0"], ValueError)
    assert isinstance(by_name["big.1"], TypeError)


@pytest.mark.parametrize("kind", [QuickLoadPlanner, SafeLoadPlanner, DefaultLoadPlanner])
def test_a_partial_load_leaves_out_what_is_missing_and_nothing_else(folder, saved, kind):
    targets = {"new": torch.full((3,), 5.0), "big.0": torch.zeros(300, 700)}
    paraload.load(targets, folder, planner=kind(allow_partial_load=True), no_dist=True)
    assert torch.equal(targets["big.0"], saved["big.0"])
    assert torch.equal(targets["new"], torch.full((3,), 5.0))
    wrong = {"new": torch.zeros(3), "big.0": torch.zeros(3), "big.1": 1, "big.2": torch.zeros(2)}
    error = refusal(wrong, folder, kind(allow_partial_load=True))
    assert faults(error) == {
        "big.0": ShapeMismatchError,
        "big.1": KindMismatchError,
        "big.2": ShapeMismatchError,
    }
    assert "allow_partial_load" not in str(error)


# ------------------------------------------------------------------------------------ the advice


def test_a_prefix_that_all_lack_is_hinted(tmp_path):
    support.save(tmp_path, {f"module.{n}": torch.ones(3) for n in "ab"} | {"epoch": 3})
    error = refusal({"a": torch.zeros(3), "b": torch.zeros(3), "epoch": 0}, tmp_path)
    assert "the 2 missing names with 'module.' in front" in str(error)
    assert "load into {'module': state_dict}" in str(error)
    targets = {"module": {"a": torch.zeros(3), "b": torch.zeros(3)}}
    paraload.load(targets, tmp_path, no_dist=True)
    assert torch.equal(targets["module"]["b"], torch.ones(3))


def test_and_one_that_all_have_too_much(tmp_path):
    support.save(tmp_path, {n: torch.ones(3) for n in "abc"})
    targets = {"model": {"module": {"a": torch.zeros(3), "b": torch.zeros(3)}}}
    error = refusal(targets, tmp_path)
    assert "the 2 missing names without 'model.module.' in front" in str(error)
    assert "name.removeprefix('model.module.')" in str(error)


def test_a_prefix_is_hinted_only_where_all_names_fit(tmp_path):
    support.save(tmp_path, {"module.a": torch.ones(3), "b": torch.ones(3)})
    error = refusal({"a": torch.zeros(3), "b": torch.zeros(3), "zzz": torch.zeros(3)}, tmp_path)
    assert "in front" not in str(error)


ADVICE = {
    "another front": ("net.{}", "module.{}", "with 'module.' in place of 'net.'"),
    "compiled here": ("l.{}._orig_mod.w", "l.{}.w", "name.replace('_orig_mod.', '')"),
    "compiled there": ("l.{}.w", "l.{}._orig_mod.w", "with '_orig_mod.' in them"),
    "DDP inside": ("a.module.{}", "a.{}", "with 'a.' in place of 'a.module.'"),
}


@pytest.mark.parametrize("count", [2, 30])
@pytest.mark.parametrize("case", ADVICE)
def test_a_part_of_the_names_that_differs_is_hinted(tmp_path, case, count):
    ours, theirs, words = ADVICE[case]
    support.save(tmp_path, {theirs.format(n): torch.ones(3) for n in range(count)})
    error = refusal({ours.format(n): torch.zeros(3) for n in range(count)}, tmp_path)
    assert words in str(error)
    assert f"The checkpoint has the {count} missing names with" in str(error)  # or without


def test_a_front_that_most_names_lack_is_hinted(tmp_path):
    support.save(tmp_path, {f"module.{n}": torch.ones(3) for n in range(30)})
    targets = {f"{n}": torch.zeros(3) for n in range(30)} | {"!scaler": torch.zeros(3)}
    error = refusal(targets, tmp_path)
    assert "has 30 of the 31 missing names with 'module.' in front" in str(error)
    assert "load into" not in str(error)


def test_a_container_in_the_place_of_its_parts_is_hinted(tmp_path):
    support.save(tmp_path, {"opt": {"m": torch.ones(3)}, "step": 5})
    error = refusal({"opt": None, "step": {"x": torch.zeros(2)}}, tmp_path)
    hints = {failure.fqn: failure.hint for failure in error.failures}
    assert hints["opt"] == "It has parts of it, such as 'opt.m': put a dict or list of them there"
    assert hints["step.x"] == "It has 'step' as a whole: put one value there"


def test_similar_names_are_hints(tmp_path):
    support.save(tmp_path, {"layers.0.weight": torch.ones(3), "layers.0.bias": torch.ones(3)})
    error = refusal({"layers.0.wieght": torch.zeros(3), "layers.0.bias": torch.ones(3)}, tmp_path)
    [failure] = error.failures
    assert str(failure).endswith("Did you mean 'layers.0.weight'?")


def test_ten_thousand_missing_names_take_a_moment(tmp_path):
    import time

    support.save(tmp_path, {f"layer.{n}.w": torch.ones(1) for n in range(10_000)}, files=1)
    started = time.monotonic()
    error = refusal({f"block.{n}.v": torch.ones(1) for n in range(10_000)}, tmp_path)
    assert len(error.failures) == 10_000
    assert time.monotonic() - started < 15


# -------------------------------------------------------------------------------- as torch has it


class WithSize:
    def size(self):
        return torch.Size([2])


OBJECTS = {"int": 3, "none": None, "text": "x", "list": [1, [2]], "empty": {}}
TENSORS = {
    "vector": torch.arange(6.0),
    "scalar": torch.tensor(2.5),
    "one": torch.tensor([2.5]),
    "nothing": torch.zeros(0, 3),
}
NESTED = {"m": {"w": torch.arange(4.0), "l": [torch.ones(2), {"x": 1}]}, "step": 5}
SAVED = {**OBJECTS, **TENSORS}

#: Targets: torch accepts some and refuses others.
TARGETS = {
    "0-dimensional for a number": {"int": torch.tensor(0)},
    "number for a 0-dimensional": {"scalar": 0},
    "vector for a 0-dimensional": {"scalar": torch.zeros(1)},
    "0-dimensional for a vector": {"one": torch.tensor(0.0)},
    "tensor for None": {"none": torch.zeros(2)},
    "text for a list": {"list[0]": "x"},
    "array for a tensor": {"vector": np.zeros(6)},
    "array for a number": {"int": np.zeros(6)},
    "object with a size": {"vector": WithSize()},
    "parameter": {"vector": torch.nn.Parameter(torch.zeros(6))},
    "other dtype": {"vector": torch.zeros(6, dtype=torch.int32)},
    "strided": {"vector": torch.zeros(12)[::2]},
    "other dimensions": {"vector": torch.zeros(2, 3)},
    "no elements": {"nothing": torch.zeros(0, 3)},
    "no elements, otherwise": {"nothing": torch.zeros(3, 0)},
    "some for no elements": {"nothing": torch.zeros(2, 3)},
    "no elements for some": {"vector": torch.zeros(0)},
    "class": {"vector": torch.Tensor},
    "nested": {"m": {"w": torch.zeros(4)}},
    "nested wrong": {"m": {"w": torch.zeros(5)}},
    "nested missing": {"m": {"v": torch.zeros(4)}},
    "list": {"m": {"l": [torch.zeros(2), {"x": 0}]}},
    "list too long": {"m": {"l": [torch.zeros(2), {"x": 0}, torch.zeros(1)]}},
    "object for a nested tensor": {"m": 3},
    "tensor for something nested": {"m": torch.zeros(3)},
    "nothing": {},
}


def outcome(load, targets):
    try:
        load(targets)
    except (Exception, CheckpointException) as error:  # noqa: BLE001 - all that torch raises
        return error
    return None


def dumped(targets):
    return str(targets)


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("is_partial", [True, False])
@pytest.mark.parametrize("name", TARGETS)
def test_what_torch_takes_is_taken_and_what_it_refuses_is_typed(
    tmp_path, name, is_flat, is_partial
):
    saver = DefaultSavePlanner(flatten_state_dict=is_flat)
    saved = SAVED | NESTED if is_flat else SAVED | {"m": 3}
    dcp.save(saved, checkpoint_id=tmp_path, planner=saver, no_dist=True)
    flags = {"flatten_state_dict": is_flat, "allow_partial_load": is_partial}

    def stock(targets):
        reader = FileSystemReader(tmp_path)
        planner = DefaultLoadPlanner(**flags)
        dcp.load(targets, storage_reader=reader, planner=planner, no_dist=True)

    expected = copy.deepcopy(TARGETS[name])
    error = outcome(stock, expected)
    for kind in (QuickLoadPlanner, SafeLoadPlanner, DefaultLoadPlanner):
        got = copy.deepcopy(TARGETS[name])
        ours = outcome(
            lambda targets, kind=kind: paraload.load(
                targets, tmp_path, planner=kind(**flags), no_dist=True
            ),
            got,
        )
        if error is None:
            assert ours is None, ours
            assert dumped(got) == dumped(expected)
        else:
            assert isinstance(ours, CheckpointReadError), ours
            assert ours.failures
            assert {type(failure) for failure in ours.failures} <= {
                MissingKeyError,
                ShapeMismatchError,
                KindMismatchError,
            }


def test_names_of_torch_2_3_are_not_missing_keys(tmp_path, monkeypatch):
    state = {"m": {"l": [torch.ones(2), {"x": 1}], "w": torch.arange(4.0)}}
    with monkeypatch.context() as patch:
        patch.setattr(_version, "_derived_version", "2_3")
        dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    for kind in (QuickLoadPlanner, SafeLoadPlanner, DefaultLoadPlanner):
        targets = {"m": {"l": [torch.zeros(2), {"x": 0}], "w": torch.zeros(4)}}
        paraload.load(targets, tmp_path, planner=kind(), no_dist=True)
        assert str(targets) == str(state)
        targets["m"] |= {"w": torch.zeros(5), "v": torch.zeros(2)}
        error = refusal(targets, tmp_path, kind())
        assert faults(error) == {"m.w": ShapeMismatchError, "m.v": MissingKeyError}


# -------------------------------------------------------------------------------- other planners


def test_a_planner_with_plans_of_its_own_keeps_its_errors(folder, saved):
    class Own(DefaultLoadPlanner):
        def create_local_plan(self):
            return super().create_local_plan()

    with pytest.raises(RuntimeError, match="Missing key in checkpoint state_dict: new"):
        paraload.load({"new": torch.zeros(3)}, folder, planner=Own(), no_dist=True)
    planner = DefaultLoadPlanner()
    planner.create_local_plan = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        paraload.load({"new": torch.zeros(3)}, folder, planner=planner, no_dist=True)
    assert "create_local_plan" in vars(planner)


def test_an_error_that_is_not_about_an_entry_is_that_of_torch(folder, saved, monkeypatch):
    def broken(planner):
        raise RuntimeError("of another kind")

    monkeypatch.setattr("paraload.adapters.dcp.planning_errors._EXPLAINED", {broken})
    monkeypatch.setattr(DefaultLoadPlanner, "create_local_plan", broken)
    planner = DefaultLoadPlanner()
    with pytest.raises(RuntimeError, match="of another kind"):
        paraload.load({"big.0": torch.zeros(300, 700)}, folder, planner=planner, no_dist=True)
    assert "create_local_plan" not in vars(planner)


class Broken(torch.Tensor):
    def __create_chunk_list__(self):
        raise OSError("no chunks today")


def test_an_error_of_a_target_is_its_own_or_listed_with_the_others(folder, saved):
    broken = torch.zeros(300, 700).as_subclass(Broken)
    with pytest.raises(OSError, match="no chunks today") as caught:
        paraload.load({"big.0": broken}, folder, no_dist=True)
    assert type(caught.value) is OSError
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load({"big.0": broken, "new": torch.zeros(3)}, folder, no_dist=True)
    assert faults(caught.value) == {"big.0": ItemReadError, "new": MissingKeyError}
    assert "torch cannot plan it (OSError: no chunks today)" in str(caught.value)


def test_a_planner_may_be_used_again(folder, saved):
    planner = DefaultLoadPlanner()
    refusal({"new": torch.zeros(3)}, folder, planner)
    targets = support.empty_like(saved)
    paraload.load(targets, folder, planner=planner, no_dist=True)
    support.assert_same(targets, saved)


# ----------------------------------------------------------------------------------------- ranks


def load_wrongly(folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))

    def sharded(rows):
        return DTensor.from_local(torch.full((rows, 3), float(rank)), mesh, [Shard(0)])

    dcp.save({"rows": sharded(2), "w": torch.ones(4)}, checkpoint_id=f"{folder}/ckpt")
    right = {"rows": sharded(2), "w": torch.zeros(4)}
    right["rows"].to_local().fill_(-1)
    paraload.load(right, f"{folder}/ckpt")
    wrong = {"rows": sharded(3), "w": torch.zeros(4)}
    wrong |= {"only.1": torch.zeros(1)} if rank else {"w": torch.zeros(5)}
    try:
        paraload.load(wrong, f"{folder}/ckpt", planner=DefaultLoadPlanner())
    except CheckpointException as error:
        hints = {
            str(number): sorted(
                [failure.fqn, type(failure).__name__] for failure in raised.failures
            )
            for number, (raised, _) in error.failures.items()
        }
    return {"right": right["rows"].to_local().tolist(), "hints": hints}


def test_each_rank_names_its_own(tmp_path):
    for rank, answer in enumerate(run_ranks(load_wrongly, tmp_path)):
        assert answer["right"] == [[rank] * 3] * 2
        assert answer["hints"] == {
            "0": [["rows", "ShapeMismatchError"], ["w", "ShapeMismatchError"]],
            "1": [["only.1", "MissingKeyError"], ["rows", "ShapeMismatchError"]],
        }


@pytest.mark.parametrize("kind", PLANNERS)
def test_targets_on_meta_without_a_process_group_are_named(tmp_path, kind):
    """torch asks for the default process group, to know on which device to allocate them."""
    state = {"a": torch.randn(3), "m": {"w": torch.randn(4, 5)}, "n": torch.randn(2)}
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    targets = {"a": torch.zeros(3), "m": {"w": torch.zeros(4, 5, device="meta")}}
    targets["n"] = torch.zeros(2, device="meta")
    planner = made(kind)
    with pytest.raises(CheckpointReadError, match=NOTHING_READ) as caught:
        paraload.load(targets, tmp_path, planner=planner, no_dist=True)
    assert faults(caught.value) == {"m.w": TargetMemoryError, "n": TargetMemoryError}
    assert planner is None or "set_up_planner" not in vars(planner)
    assert not targets["a"].any()


# ------------------------------------------------------------- errors that cannot be sent


class UnsendableError(Exception):
    """Pickling keeps one argument, and unpickling needs two."""

    def __init__(self, name, number):
        super().__init__(f"{name} number {number}")


class FailsAt(DefaultLoadPlanner):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def fail(self, step):
        if step == self.step and dist.get_rank() == 1:
            raise UnsendableError("planner", 7)

    def set_up_planner(self, *args, **kwargs):
        self.fail("set_up_planner")
        super().set_up_planner(*args, **kwargs)

    def create_local_plan(self):
        self.fail("create_local_plan")
        return super().create_local_plan()

    def finish_plan(self, plan):
        self.fail("finish_plan")
        return super().finish_plan(plan)

    def commit_tensor(self, *args):
        self.fail("commit_tensor")


STEPS = ["set_up_planner", "create_local_plan", "finish_plan", "commit_tensor"]


def fail_at_steps(folder):
    support.save(f"{folder}/rank{dist.get_rank()}", {"w": torch.ones(3)})
    answers = []
    for step in STEPS:
        planner = FailsAt(step)
        try:
            paraload.load({"w": torch.zeros(3)}, f"{folder}/rank{dist.get_rank()}", planner=planner)
        except CheckpointException as error:
            answers.append([str(it) for it, _ in error.failures.values()])
        assert vars(planner).keys().isdisjoint(STEPS)
    return answers


def test_an_error_that_cannot_be_sent_ends_the_load_on_all_ranks(tmp_path):
    for answers in run_ranks(fail_at_steps, tmp_path):
        assert answers == [[f"{__name__}.UnsendableError: planner number 7"]] * len(STEPS)


def test_such_an_error_is_unchanged_without_other_ranks(folder, saved):
    class Planner(DefaultLoadPlanner):
        def commit_tensor(self, *args):
            raise UnsendableError("planner", 7)

    with pytest.raises(UnsendableError):
        paraload.load(support.empty_like(saved), folder, planner=Planner(), no_dist=True)
