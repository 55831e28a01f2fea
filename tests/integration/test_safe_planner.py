"""SafeLoadPlanner: objects of a checkpoint run no code."""

from __future__ import annotations

import collections
import datetime as dt
import pathlib
import re

import numpy as np
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


def refusal_of(folder, value):
    support.save(folder, {"it": value})
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load({"it": None}, folder, planner=SafeLoadPlanner(), no_dist=True)
    [failure] = caught.value.failures
    assert isinstance(failure, UnsafeObjectError)
    return str(failure)


@pytest.mark.parametrize(
    "value",
    [np.float64(3), np.ones(3), dt.timedelta(1), pathlib.Path("x"), slice(3)],
    ids=lambda value: type(value).__name__,
)
def test_the_error_for_plain_data_of_python_and_numpy_has_a_recipe_that_works(tmp_path, value):
    text = refusal_of(tmp_path / "ckpt", value)
    assert "Do not trust" not in text
    recipe = re.search(r"call torch\.serialization\.(add_safe_globals\(.+\)) before", text)[1]
    allowed = eval(
        recipe.removeprefix("add_safe_globals"), {"numpy": np, "datetime": dt, "pathlib": pathlib}
    )
    state = {"it": None}
    with torch.serialization.safe_globals(allowed):
        paraload.load(state, tmp_path / "ckpt", planner=SafeLoadPlanner(), no_dist=True)
    assert np.array_equal(state["it"], value)


def test_the_reason_is_reported_where_torch_has_it_on_another_line(tmp_path):
    with torch.serialization.safe_globals([collections.deque]):
        text = refusal_of(tmp_path / "ckpt", collections.deque([1]))
    assert "UnpicklingError: Can only append to lists, but got" in text
    assert "file an issue" not in text


def test_it_is_resolved_ahead_as_torchs_own_is():
    from paraload.adapters.dcp.plan_items import may_resolve_ahead

    assert may_resolve_ahead(SafeLoadPlanner())


def test_an_error_of_the_planner_for_good_bytes_is_raised_unchanged(tmp_path):
    class Broken(DefaultLoadPlanner):
        def load_bytes(self, read_item, value):
            raise ZeroDivisionError("the planner's own problem")

    support.save(tmp_path, {"step": 7})
    with pytest.raises(ZeroDivisionError, match="own problem"):
        paraload.load({"step": None}, tmp_path, planner=Broken(), no_dist=True)
