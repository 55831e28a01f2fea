"""What is loaded: a checkpoint, the tensors that it goes to, and how its plan is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from benchmarks.checkpoints import targets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch.distributed.checkpoint.planner import LoadPlanner

__all__ = ["Case", "sliced_case", "whole_case"]

_RANKS = 8
#: A rank in the middle: its slice has neighbours on both sides.
_RANK = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One load.

    Attributes:
        folder: of the checkpoint.
        targets: where it goes; every arm fills the same tensors.
        plan_items: what a planner that has been set up plans to read.
    """

    folder: Path
    targets: Mapping[str, torch.Tensor]
    plan_items: Callable[[LoadPlanner], LoadPlan]

    @property
    def payload_bytes(self) -> int:
        """Bytes that the targets take."""
        return sum(tensor.nbytes for tensor in self.targets.values())

    def plan(self, reader: Any) -> tuple[LoadPlan, LoadPlanner]:
        """All that ``dcp.load`` does before ``read_data``, for one process."""
        planner = DefaultLoadPlanner()
        metadata = reader.read_metadata()
        planner.set_up_planner(dict(self.targets), metadata, is_coordinator=True)
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        plan = reader.prepare_local_plan(self.plan_items(planner))
        (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
        return planner.finish_plan(plan), planner


def whole_case(folder: Path) -> Case:
    """Everything that the checkpoint holds."""
    return Case(
        folder=folder,
        targets=targets_of(folder),
        plan_items=lambda planner: planner.create_local_plan(),
    )


def sliced_case(folder: Path, *, dim: int) -> Case:
    """One of eight ranks loads its rows (``dim=0``) or columns (``dim=1``) of each matrix."""
    shapes = {name: tensor.shape for name, tensor in targets_of(folder).items()}
    (shape,) = set(shapes.values())
    lengths = list(shape)
    lengths[dim] //= _RANKS
    offsets = [0, 0]
    offsets[dim] = _RANK * lengths[dim]
    targets = {name: torch.empty(lengths, dtype=torch.bfloat16) for name in shapes}

    def read_item(name: str) -> ReadItem:
        # As a DTensor's plan has it, without the process group that a DTensor needs.
        return ReadItem(
            type=LoadItemType.TENSOR,
            dest_index=MetadataIndex(name),
            dest_offsets=torch.Size((0, 0)),
            storage_index=MetadataIndex(name, torch.Size((0, 0))),
            storage_offsets=torch.Size(offsets),
            lengths=torch.Size(lengths),
        )

    return Case(
        folder=folder,
        targets=targets,
        plan_items=lambda _: LoadPlan([read_item(name) for name in targets]),
    )
