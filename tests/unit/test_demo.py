"""The demo runs, and its "bit-identical" means something."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples._model import ModelShape, Transformer, shape_for
from examples._state import add_up, checksums, differences, poison, snapshot
from examples._table import Case
from examples.demo import print_identity, print_losses
from tests.old_torch import FSDP2_ON_CPU

REPOSITORY = Path(__file__).parents[2]


def demo(*options):
    command = [sys.executable, "examples/demo.py", *options]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=110
    )


@FSDP2_ON_CPU.needed
def test_the_demo_saves_loads_and_compares(tmp_path):
    folder = tmp_path / "checkpoint"
    done = demo("--size-mib", "16", "--rounds", "1", "--folder", str(folder))
    # Without a terminal the progress is lines.
    assert [line[:28] for line in done.stderr.splitlines()] == ["paraload: loading checkpoint"] * 2
    assert done.returncode == 0
    assert "bit-identical: yes" in done.stdout
    assert "the same from torch's load: yes" in done.stdout
    assert len(re.findall(r"^(?:1 process|2 FSDP2 ranks) +torch", done.stdout, re.MULTILINE)) == 2
    assert len(re.findall(r"^ +paraload .* \d+\.\dx ", done.stdout, re.MULTILINE)) == 2
    names = {path.name for path in folder.iterdir()}
    assert ".metadata" in names
    assert len(names) == 9
    assert sum(path.stat().st_size for path in folder.iterdir()) >= 16 << 20


@pytest.mark.parametrize("options", [("--rounds", "0"), ("--folder", "examples")])
def test_the_demo_refuses_a_wrong_call(options):
    done = demo(*options)
    assert done.returncode == 2
    assert done.stdout == ""


@pytest.mark.parametrize("mib", [1, 16, 100, 512, 4096])
def test_the_model_is_as_large_as_was_asked(mib):
    shape = shape_for(mib << 20)
    assert shape.parameters * 12 >= mib << 20
    if mib >= 16:
        assert shape.parameters * 12 <= 1.3 * (mib << 20)


def test_the_parameters_are_counted_right():
    shape = ModelShape(dim=128, layers=2)
    with torch.device("meta"):
        model = Transformer(shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters


def state():
    return {
        "model": {"w": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(4)},
        "optimizer": {"groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]},
    }


def flip_last_bit(tensor):
    tensor.view(torch.int32)[-1, -1] ^= 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda s: flip_last_bit(s["model"]["w"]), "model.w"),
        (lambda s: s["model"]["w"][0, 0].neg_(), "model.w"),  # 0.0 becomes -0.0
        (lambda s: s["model"]["w"][0].copy_(s["model"]["w"][0].flip(0)), "model.w"),
        (lambda s: s["model"]["step"].add_(1), "model.step"),
        (lambda s: s["optimizer"]["groups"][0].update(lr=0.2), "optimizer.groups.0.lr"),
        (
            lambda s: s["optimizer"]["groups"][0].update(betas=[0.9, 0.95]),
            "optimizer.groups.0.betas",
        ),
    ],
)
def test_every_change_is_seen(change, name):
    changed, reference, sums = state(), snapshot(state()), checksums(state(), rank=0)
    assert differences(changed, reference) == []
    assert checksums(changed, rank=0) == sums
    change(changed)
    assert differences(changed, reference) == [name]
    now = checksums(changed, rank=0)
    assert [key for key in sums if sums[key] != now[key]] == [name]


def test_poison_leaves_nothing_as_it_was():
    poisoned = state()
    poison(poisoned)
    assert differences(poisoned, snapshot(state())) == sorted(snapshot(state()))


def test_a_tensor_that_all_ranks_hold_counts_once():
    parts = [checksums(state(), rank=rank) for rank in range(3)]
    assert add_up(parts) == parts[0]


def test_a_difference_is_reported(capsys):
    cases = [Case(name=name, result={"wrong": wrong}) for name, wrong in (("a", []), ("b", ["w"]))]
    assert print_identity(cases[:1], items=3)
    assert not print_identity(cases, items=3)
    assert "bit-identical: no; 1 of 3 differ: w" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("torch_losses", "saved", "same"),
    [([2.0, 1.0], 2.0, 1), ([2.0, 1.5], 2.0, 0), ([2.0, 1.0], 3.0, 0)],
)
def test_a_loss_that_differs_is_reported(capsys, torch_losses, saved, same):
    assert print_losses(saved, {"torch": torch_losses, "paraload": [2.0, 1.0]}) == bool(same)
    assert ("the same from torch's load: yes" in capsys.readouterr().out) == bool(same)
