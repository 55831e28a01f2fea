"""SafeLoadPlanner: objects of a checkpoint run no code."""

from __future__ import annotations

import pathlib

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner

import paraload
from paraload import CheckpointReadError, SafeLoadPlanner
from paraload.errors import UnsafeObjectError
from tests.integration import support

PLAIN = {
    "w": torch.arange(5.0),
    "step": 7,
    "nested": {"names": ("a", "b"), "order": {1, 2}, "t": torch.ones(2)},
    "none": None,
}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("flatten", [True, False])
def test_plain_objects_load_as_torchs_planner_loads_them(tmp_path, flatten):
    saved = PLAIN if flatten else {"w": PLAIN["w"], "step": 7}
    support.save(tmp_path, saved)
    loaded = []
    for kind in (DefaultLoadPlanner, SafeLoadPlanner):
        state = {"w": torch.zeros(5), "step": None}
        if flatten:
            state |= {"nested": {"names": None, "order": None, "t": torch.zeros(2)}, "none": None}
        paraload.load(
            state,
            tmp_path,
            planner=kind(flatten_state_dict=flatten, flatten_sharded_tensors=flatten),
            no_dist=True,
        )
        loaded.append(state)
    assert str(loaded[0]) == str(loaded[1])
    assert loaded[1]["step"] == 7


def test_code_is_refused_and_named(tmp_path):
    touched = tmp_path / "touched"
    support.save(tmp_path / "ckpt", {"w": torch.ones(3), "trap": Trap(touched)})
    touched.unlink(missing_ok=True)
    state = {"w": torch.zeros(3), "trap": None}
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load(state, tmp_path / "ckpt", planner=SafeLoadPlanner(), no_dist=True)
    assert not touched.exists()
    [failure] = caught.value.failures
    assert isinstance(failure, UnsafeObjectError)
    assert failure.fqn == "trap"
    assert failure.path.endswith(".distcp")
    assert "add_safe_globals" not in str(failure)  # nothing honest needs what the trap names
    assert "Do not trust this file" in str(failure)
    paraload.load({"trap": None}, tmp_path / "ckpt", no_dist=True)  # as torch by default
    assert touched.exists()


def test_it_is_resolved_ahead_as_torchs_own_is():
    from paraload._intake import may_resolve_ahead

    assert may_resolve_ahead(SafeLoadPlanner())


def test_what_a_planner_raises_for_good_bytes_comes_out_as_it_is(tmp_path):
    class Broken(DefaultLoadPlanner):
        def load_bytes(self, read_item, value):
            raise ZeroDivisionError("the planner's own problem")

    support.save(tmp_path, {"step": 7})
    with pytest.raises(ZeroDivisionError, match="own problem"):
        paraload.load({"step": None}, tmp_path, planner=Broken(), no_dist=True)
