"""torch's default planner with a fast path for tensors that are saved and loaded whole.

torch plans each of them as it plans resharding: it sorts and intersects the chunks of both sides.
This takes 7 us an entry, a fifth of a load of small tensors; the fast path takes 2 us.
"""

from functools import cache
from typing import Any, Final

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from paraload.destinations.tensor_memory import TENSOR_TYPES

_VALUES: Final = frozenset({int, float, str, bool, type(None)})
_new: Any = object.__new__


class QuickLoadPlanner(DefaultLoadPlanner):
    """Makes the same plan as ``DefaultLoadPlanner``."""

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,  # noqa: FBT001 - torch's
    ) -> None:
        """As torch does, but without flattening a flat state dict, which takes three passes."""
        if not all(map(_is_flat, state_dict.items())):
            super().set_up_planner(state_dict, metadata, is_coordinator)
            return
        self.original_state_dict = self.state_dict = state_dict
        if self.flatten_sharded_tensors or self.flatten_state_dict:
            self.state_dict = dict(state_dict)
        if self.flatten_state_dict:
            self.mappings = {name: (name,) for name in state_dict}
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        if self.metadata is None or self._could_be_old():
            return super().create_local_plan()
        entries = self.metadata.state_dict_metadata
        items: list[ReadItem] = []
        for fqn, target in self.state_dict.items():
            whole = _whole_item(fqn, entries.get(fqn), target)
            if whole is not None:
                items.append(whole)
            else:
                items += create_default_local_load_plan(
                    {fqn: target}, self.metadata, not self.allow_partial_load
                ).items
        return LoadPlan(items)

    def _could_be_old(self) -> bool:
        """Whether torch would try the names that torch 2.3 gave to nested entries.

        It does so if the checkpoint has names that the state dict does not have.
        """
        if not self.flatten_state_dict or self.metadata is None:
            return False
        names = self.state_dict.keys()
        return not self.metadata.state_dict_metadata.keys() <= names and (
            len(names) != len(self.original_state_dict)
            or any(len(path) != 1 for path in self.mappings.values())
        )


def _is_flat(entry: tuple[Any, Any]) -> bool:
    """Whether flattening leaves this entry of a state dict as it is."""
    name, value = entry
    kind = type(value)
    return type(name) is str and (
        kind in _VALUES or (kind in TENSOR_TYPES and not value.is_meta)  # torch allocates these
    )


def _whole_item(fqn: str, entry: Any, target: Any) -> ReadItem | None:
    """The item of a tensor that was saved whole and is loaded whole; ``None`` for any other.

    torch lets a tensor describe itself as a part of a global one, by ``__create_chunk_list__`` or,
    from torch 2.14 on, by attributes of a plain tensor (``CheckpointableTensor``). A later torch
    may give a meaning to any attribute, so torch plans the tensors that have one.
    """
    if (
        type(target) not in TENSOR_TYPES
        or vars(target)
        or hasattr(target, "__create_chunk_list__")
        or type(entry) is not TensorStorageMetadata
        or len(entry.chunks) != 1
    ):
        return None
    [chunk] = entry.chunks
    size = target.size()
    start = _origin(len(size))
    # torch plans nothing for a tensor without elements.
    if chunk.sizes != size or entry.size != size or chunk.offsets != start or 0 in size:
        return None
    # The constructors of frozen dataclasses took half of the planning time.
    index: MetadataIndex = _new(MetadataIndex)
    item: ReadItem = _new(ReadItem)
    vars(index).update(fqn=fqn, index=0, offset=start)
    vars(item).update(
        type=LoadItemType.TENSOR,
        dest_index=index,
        dest_offsets=start,
        storage_index=index,
        storage_offsets=start,
        lengths=size,
    )
    return item


@cache
def _origin(dimensions: int) -> torch.Size:
    return torch.Size([0] * dimensions)
