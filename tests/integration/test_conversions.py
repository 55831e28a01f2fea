"""Targets of another dtype than the stored tensor: converted and counted, or refused."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import DtypeMismatchError, ItemReadError
from tests.integration import support
from tests.integration.support import EXECUTORS

#: Small and big ones, that are staged in one piece and in several.
SHAPES = {"small": (5, 3), "big": (3000, 3000)}


class Own(DefaultLoadPlanner):
    """Not resolved ahead."""

    def resolve_tensor(self, read_item):
        return super().resolve_tensor(read_item)


def read(folder, targets, planner, **keywords):
    reader = ParallelFileSystemReader(folder, **keywords)
    plan, planner = support.plan_for(reader, targets, planner)
    reader.read_data(plan, planner)
    return reader.last_report


def refusals(folder, targets, planner, **keywords):
    with pytest.raises(CheckpointReadError) as caught:
        read(folder, targets, planner, **keywords)
    return caught.value.failures


@pytest.fixture
def mixed(tmp_path):
    saved = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    saved["whole"] = torch.arange(7)
    support.save(tmp_path, saved)
    return tmp_path, saved


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("planner", [DefaultLoadPlanner, Own])
def test_conversions_are_torchs_and_counted(mixed, executor, planner):
    folder, saved = mixed
    targets = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    targets["whole"] = torch.zeros(7, dtype=torch.int64)
    expected = support.load(
        FileSystemReader(folder), {name: tensor.clone() for name, tensor in targets.items()}
    )
    report = read(folder, targets, planner(), executor=executor, max_workers=2)
    support.assert_same(targets, expected)
    assert torch.equal(targets["small"], saved["small"].bfloat16())
    assert report.conversions == {"float32 to bfloat16": 2}
    assert "converted: float32 to bfloat16 (2)" in str(report)


@pytest.mark.parametrize("planner", [DefaultLoadPlanner, Own])
def test_strict_refuses_them(mixed, planner):
    folder, _ = mixed
    targets = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    failures = refusals(folder, targets, planner(), strict=True)
    assert {failure.fqn for failure in failures} == set(SHAPES)
    assert all(isinstance(failure, DtypeMismatchError) for failure in failures)
    assert "expected float32, got float64" in str(failures[0])
    assert "without strict=True" in str(failures[0])


@pytest.mark.parametrize("planner", [DefaultLoadPlanner, Own])
def test_strict_has_nothing_against_the_same(mixed, planner):
    folder, saved = mixed
    targets = support.empty_like(saved)
    targets["small"] = torch.zeros(3, 5).T  # staged, but not converted
    assert read(folder, targets, planner(), strict=True).conversions == {}
    support.assert_same(targets, saved)


@pytest.mark.parametrize("size", [4, 300_000])
@pytest.mark.parametrize("planner", [DefaultLoadPlanner, Own])
def test_imaginary_parts_are_not_dropped(tmp_path, size, planner):
    support.save(tmp_path, {"z": torch.ones(size, dtype=torch.complex64)})
    [failure] = refusals(tmp_path, {"z": torch.zeros(size)}, planner())
    assert isinstance(failure, DtypeMismatchError)
    assert "complex" in str(failure)
    wide = {"z": torch.zeros(size, dtype=torch.complex128)}
    assert read(tmp_path, wide, planner()).conversions == {"complex64 to complex128": 1}


@pytest.mark.parametrize("planner", [DefaultLoadPlanner, Own])
def test_an_expanded_target_is_an_error_that_names_it(mixed, planner):
    folder, saved = mixed
    targets = support.empty_like(saved)
    targets["small"] = torch.zeros(1, 3).expand(5, 3)
    [failure] = refusals(folder, targets, planner())
    assert isinstance(failure, ItemReadError)
    assert failure.fqn == "small"
    assert "share one place in memory" in str(failure) or "an expanded" in str(failure)
