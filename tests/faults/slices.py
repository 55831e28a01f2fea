"""A rank that wants some rows of every big tensor, as resharding does."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

if TYPE_CHECKING:
    from tests.faults.scene import Scene

__all__ = ["Rows", "rows_only"]


class Rows(DefaultLoadPlanner):
    """Loads the rows ``[start, end)`` of two-dimensional tensors, in place."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.rows = start, end

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()
        start, end = self.rows
        items = []
        for item in plan.items:
            if len(item.lengths) == 2 and item.lengths[0] >= end:
                offsets = torch.Size((start, 0))
                lengths = torch.Size((end - start, item.lengths[1]))
                item = dataclasses.replace(  # noqa: PLW2901
                    item, dest_offsets=offsets, storage_offsets=offsets, lengths=lengths
                )
            items.append(item)
        return dataclasses.replace(plan, items=items)


def rows_only(scene: Scene, start: int, end: int) -> None:
    """Expect no other rows than these."""
    for name, value in scene.expected.items():
        if isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[0] >= end:
            whole = scene.targets[name].clone()
            whole[start:end] = value[start:end]
            scene.expected[name] = whole
