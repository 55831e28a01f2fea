"""What a DCP plan asks for: a spec for every read item, and the tensors that they go to.

    plan.items + storage_data  -->  RecordSpec   where the bytes are, what is wanted of them
    planner                    -->  Destination  where they go, if that may be asked ahead

Everything here runs once for each item, tens of thousands of times in one load, before the first
byte is read: a microsecond more is a second for a million items.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadItemType

from paraload._overlap import Block
from paraload._task import ItemIndex, LocateTask, RecordSpec, RecordsTask, Told, Wanted
from paraload.errors import CheckpointReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

    from paraload._task import ReadItemInfo, ReadTask, StorageItem

__all__ = [
    "block_in_target",
    "lean_specs",
    "may_resolve_ahead",
    "plain_index",
    "resolved_tensors",
    "specs_of",
    "storage_info",
    "told_specs",
]


def lean_specs(plan: LoadPlan, storage_data: Any) -> list[RecordSpec]:
    """The items of ``plan``, for a load in which nobody else is told of them."""
    known: dict[Any, Wanted] = {}
    specs = []
    number = -1
    try:
        for number, read_item in enumerate(plan.items):
            index = read_item.storage_index
            info = storage_data[index]
            lengths, offsets = read_item.lengths, read_item.storage_offsets
            is_bytes = read_item.type is LoadItemType.BYTE_IO
            # Older writers did not have descriptors.
            descriptors = tuple(getattr(info, "transform_descriptors", None) or ())
            key = (is_bytes, offsets, lengths, descriptors)
            wanted = known.get(key)
            if wanted is None:
                kind = "bytes" if is_bytes else "tensor"
                wanted = Wanted(kind, tuple(offsets), tuple(lengths), descriptors)  # type: ignore[arg-type]
                known[key] = wanted
            start = info.offset
            end = start + info.length
            specs.append(RecordSpec(number, info.relative_path, start, end, index.fqn, wanted))
    except KeyError:
        storage_info(storage_data, plan.items[number])  # names the item
        raise
    return specs


def told_specs(
    plan: LoadPlan,
    storage_data: Any,
    tell_item: Callable[[ReadItem], ReadItemInfo],
    tell_storage: Callable[[Any], StorageItem],
) -> list[RecordSpec]:
    """The same, from what hooks are told: who tells them something else reads something else."""
    specs = []
    for number, read_item in enumerate(plan.items):
        storage = tell_storage(storage_info(storage_data, read_item))
        info = tell_item(read_item)
        kind = "bytes" if info.type == "BYTE_IO" else "tensor"
        wanted = Wanted(kind, info.storage_offsets, info.lengths, storage.transform_descriptors)  # type: ignore[arg-type]
        specs.append(
            RecordSpec(
                number,
                storage.relative_path,
                storage.offset,
                storage.offset + storage.length,
                info.storage_index.fqn,
                wanted,
                Told(info, storage),
            )
        )
    return specs


def storage_info(storage_data: Any, read_item: ReadItem) -> Any:
    """The item's entry, or an error that names it."""
    try:
        return storage_data[read_item.storage_index]
    except KeyError:
        raise CheckpointReadError(
            f"the checkpoint has no storage entry for {read_item.storage_index.fqn!r} at offset"
            f" {read_item.storage_index.offset}; plan and metadata do not belong together"
        ) from None


def plain_index(index: MetadataIndex) -> ItemIndex:
    """``index`` without torch."""
    offset = None if index.offset is None else tuple(index.offset)
    return ItemIndex(index.fqn, offset, index.index)


def specs_of(tasks: Iterable[ReadTask]) -> list[RecordSpec]:
    """The items of first tasks, in the order of the plan."""
    found = [
        spec for task in tasks if isinstance(task, LocateTask | RecordsTask) for spec in task.specs
    ]
    return sorted(found, key=attrgetter("item"))


# ------------------------------------------------------------------------------- destinations

_ASKED: Final = ("resolve_tensor", "commit_tensor", "lookup_tensor", "transform_tensor")


def may_resolve_ahead(planner: LoadPlanner) -> bool:
    """Whether resolving has no effect that could be missed: torch's planner, unchanged there."""
    return isinstance(planner, DefaultLoadPlanner) and all(
        getattr(type(planner), name) is getattr(DefaultLoadPlanner, name)
        and name not in vars(planner)
        for name in _ASKED
    )


def resolved_tensors(plan: LoadPlan, planner: Any) -> Iterator[torch.Tensor | None]:
    """The target of each item, by a planner that :func:`may_resolve_ahead`; ``None`` for bytes.

    A plain tensor that is wanted whole is its own target: torch's planner would look it up, narrow
    none of its dimensions, and return it, in three times the time.
    """
    state_dict = planner.state_dict
    for item in plan.items:
        if item.type is LoadItemType.BYTE_IO:
            yield None
            continue
        index = item.dest_index
        tensor = state_dict.get(index.fqn)
        if (
            type(tensor) is not torch.Tensor
            or item.lengths != tensor.shape
            or (
                index.offset is not None
                and (any(index.offset) or len(index.offset) != tensor.dim())
            )
        ):
            tensor = planner.resolve_tensor(item)
        yield tensor


def block_in_target(plan: LoadPlan, item: int) -> Block:
    """The part of its target that an item fills."""
    read_item = plan.items[item]
    return Block(
        plain_index(read_item.dest_index),
        tuple(read_item.dest_offsets),
        tuple(read_item.lengths),
    )
