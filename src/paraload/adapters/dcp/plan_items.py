"""The items of a DCP plan: a spec for each of them, and the tensors that they go to.

    plan.items + storage_data  -->  RecordSpec   where the bytes are, which part of them is wanted
    planner                    -->  Destination  where they go, if it may be resolved ahead

Everything here runs once for each item, before the first byte is read: a microsecond more is a
second for a million items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from paraload.adapters.dcp.reader_config import ReaderConfig, ReaderSteps, planning_with
from paraload.core.records import dtype_name
from paraload.core.tasks import (
    HookInfo,
    ItemKind,
    LocateTask,
    ReadTask,
    RecordSpec,
    RecordsTask,
    Stored,
    Wanted,
)
from paraload.destinations.host import Destinations
from paraload.destinations.tensor_memory import TENSOR_TYPES
from paraload.errors import ItemReadError, MissingEntryError, refuse_to_begin
from paraload.geometry.overlap import Block, overlapping_items
from paraload.hooks import ItemIndex, ReadItemInfo, StorageItem
from paraload.metadata.dcp_index import UNKNOWN, StoredTensors, descriptors_of


class PlanItems(NamedTuple):
    """The items of a plan, and where they go.

    Attributes:
        specs: one for each item, in the order of the plan.
        tasks: those of a reader that makes its own.
        targets: by item, if they were resolved ahead.
        ordered: items that are committed in the order of torch's reader: all of them under a
            planner that is resolved one by one, and targets that share memory.
        resolved_ahead: whether ``targets`` are known.
    """

    specs: list[RecordSpec]
    tasks: list[ReadTask] | None
    targets: Destinations
    ordered: set[int]
    resolved_ahead: bool


def items_of(
    reader: Any, steps: ReaderSteps, config: ReaderConfig, plan: LoadPlan, planner: LoadPlanner
) -> PlanItems:
    """What ``plan`` asks for, and where it goes.

    Raises:
        CheckpointReadError: the checkpoint does not say where some of the items are stored.
    """
    tasks: list[ReadTask] | None = None
    if steps.are_own("_create_read_tasks"):
        with planning_with(reader, config):
            tasks = steps["_create_read_tasks"](plan, reader.storage_data)
        specs = specs_of(tasks)
    else:
        specs = make_specs(steps, config, plan, reader.storage_data)
    config.remember(specs, plan, reader.storage_data)
    if not (resolved_ahead := may_resolve_ahead(planner)):
        return PlanItems(
            specs, tasks, Destinations(), {spec.item for spec in specs}, resolved_ahead
        )
    tensors = resolved_tensors(plan, planner)
    targets = Destinations(tensors)
    ordered = overlapping_items(*targets.spans(), partial(block_in_target, plan))
    return PlanItems(specs, tasks, targets, ordered, resolved_ahead)


def make_specs(
    steps: ReaderSteps, config: ReaderConfig, plan: LoadPlan, storage_data: Any
) -> list[RecordSpec]:
    """A spec for each item of the plan, made by the reader's steps where these are overridden."""
    names = ("_serialize_read_item", "_serialize_storage_metadata")
    if config.tells_hooks or steps.are_own(*names):
        infos = (steps[name] for name in names)
        return specs_for_hooks(plan, storage_data, *infos, path=config.path)
    return plain_specs(plan, storage_data, path=config.path, entries=config.entries)


def plain_specs(
    plan: LoadPlan, storage_data: Any, *, path: str, entries: Mapping[str, Any] | None = None
) -> list[RecordSpec]:
    """The items of ``plan``, for a load without hooks.

    A storage info has ``relative_path``, ``offset`` and ``length``; a reader that knows where the
    payload lies adds it as ``layout``, a :class:`~paraload.formats.TensorRecord`.

    Args:
        plan: what to read.
        storage_data: where it is.
        path: of the checkpoint, for texts.
        entries: of the metadata, which describe the stored tensors; ``None`` if not known.

    Raises:
        CheckpointReadError: there is no place for some of the items.
    """
    stored = StoredTensors(entries or {})
    known: dict[Any, Wanted] = {}
    specs = []
    try:
        for number, read_item in enumerate(plan.items):
            index = read_item.storage_index
            info = storage_data[index]
            lengths, offsets = read_item.lengths, read_item.storage_offsets
            is_bytes = read_item.type is LoadItemType.BYTE_IO
            descriptors = descriptors_of(info)
            dtype, shape = UNKNOWN if is_bytes else stored.of(index)
            layout = getattr(info, "layout", None)
            key = (is_bytes, offsets, lengths, descriptors, dtype, shape, layout)
            wanted = known.get(key)
            if wanted is None:
                wanted = known[key] = Wanted(
                    "bytes" if is_bytes else "tensor",
                    tuple(offsets),
                    tuple(lengths),
                    descriptors,
                    None if dtype is None else Stored(dtype_name(dtype), tuple(shape or ())),
                    layout,
                )
            start = info.offset
            end = start + info.length
            specs.append(RecordSpec(number, info.relative_path, start, end, index.fqn, wanted))
    except KeyError:
        require_places(plan, storage_data, path=path)  # names all that have none
        raise
    return specs


def specs_for_hooks(
    plan: LoadPlan,
    storage_data: Any,
    info_of_item: Callable[[ReadItem], ReadItemInfo],
    info_of_storage: Callable[[Any], StorageItem],
    *,
    path: str,
) -> list[RecordSpec]:
    """The same, from the descriptions for hooks: an overridden description changes what is read."""
    require_places(plan, storage_data, path=path)
    specs = []
    for number, read_item in enumerate(plan.items):
        storage = info_of_storage(storage_data[read_item.storage_index])
        info = info_of_item(read_item)
        kind: ItemKind = "bytes" if info.type == "BYTE_IO" else "tensor"
        wanted = Wanted(kind, info.storage_offsets, info.lengths, storage.transform_descriptors)
        start, end = storage.offset, storage.offset + storage.length
        fqn, hook_info = info.storage_index.fqn, HookInfo(info, storage)
        specs.append(RecordSpec(number, storage.relative_path, start, end, fqn, wanted, hook_info))
    return specs


def require_places(plan: LoadPlan, storage_data: Any, *, path: str) -> None:
    """Require that the metadata says where each item is stored."""
    failures: list[ItemReadError] = [
        MissingEntryError(
            f"the checkpoint does not say where the part at offset {tuple(index.offset or ())} is"
            " stored",
            fqn=index.fqn,
            hint="Its metadata is damaged, or the plan was made for another checkpoint",
        )
        for item in plan.items
        if (index := item.storage_index) not in storage_data
    ]
    if failures:
        raise refuse_to_begin(failures, items=len(plan.items), path=path)


def plain_index(index: MetadataIndex) -> ItemIndex:
    """``index`` without torch."""
    offset = None if index.offset is None else tuple(index.offset)
    return ItemIndex(index.fqn, offset, index.index)


def specs_of(tasks: Iterable[ReadTask]) -> list[RecordSpec]:
    """The items of the tasks that begin a load, in the order of the plan."""
    found = [
        spec for task in tasks if isinstance(task, LocateTask | RecordsTask) for spec in task.specs
    ]
    return sorted(found, key=attrgetter("item"))


_RESOLVE_STEPS: Final = ("resolve_tensor", "commit_tensor", "lookup_tensor", "transform_tensor")


def may_resolve_ahead(planner: LoadPlanner) -> bool:
    """Whether this is torch's planner, unchanged in resolving: then resolving has no effect."""
    return isinstance(planner, DefaultLoadPlanner) and all(
        getattr(type(planner), name) is getattr(DefaultLoadPlanner, name)
        and name not in vars(planner)
        for name in _RESOLVE_STEPS
    )


def is_just_a_tensor(target: Any) -> bool:
    """Whether ``target`` is a plain local tensor, and not a part of a global one.

    torch lets a tensor describe itself as a part of a global one, by a method
    (``__create_chunk_list__``) or, from torch 2.14 on, by attributes of a plain tensor
    (``CheckpointableTensor``). A later torch may give a meaning to any attribute, so torch's own
    planner plans the tensors that have one.
    """
    return (
        type(target) in TENSOR_TYPES
        and not vars(target)
        and not hasattr(target, "__create_chunk_list__")
    )


def resolved_tensors(plan: LoadPlan, planner: Any) -> Iterator[torch.Tensor | None]:
    """The target of each item, by a planner that :func:`may_resolve_ahead`; ``None`` for bytes.

    A plain tensor that is wanted whole is its own target: torch's planner would return it after a
    look-up and narrowing none of its dimensions, in three times the time.
    """
    # torch's plans have the order of the state dict, so walking both saves 0.5 us an
    # item for the look-up. In any other order, the walk soon ends, and the rest is looked up.
    entries = iter(planner.state_dict.items())
    name = tensor = None
    for item in plan.items:
        index = item.dest_index
        if index.fqn != name:
            name = index.fqn
            for key, value in entries:
                if key == name:
                    tensor = value
                    break
            else:
                tensor = planner.state_dict.get(name)
        if item.type is LoadItemType.BYTE_IO:
            yield None
        elif (
            type(tensor) is not torch.Tensor
            or vars(tensor)
            or item.lengths != tensor.shape
            or (
                index.offset is not None
                and (any(index.offset) or len(index.offset) != tensor.dim())
            )
        ):
            yield planner.resolve_tensor(item)
        else:
            yield tensor


def block_in_target(plan: LoadPlan, item: int) -> Block:
    """The part of its target that an item fills."""
    read_item = plan.items[item]
    return Block(
        plain_index(read_item.dest_index),
        tuple(read_item.dest_offsets),
        tuple(read_item.lengths),
    )
