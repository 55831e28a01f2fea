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

from paraload._destination import dtype_name
from paraload._overlap import Block
from paraload._task import LocateTask, RecordSpec, RecordsTask, Stored, Told, Wanted
from paraload._tensor_memory import TENSOR_TYPES
from paraload._wholeness import require_places
from paraload.hooks import ItemIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

    from paraload._task import ReadTask
    from paraload.hooks import ReadItemInfo, StorageItem

__all__ = [
    "block_in_target",
    "is_just_a_tensor",
    "lean_specs",
    "may_resolve_ahead",
    "plain_index",
    "resolved_tensors",
    "specs_of",
    "told_specs",
]


def lean_specs(
    plan: LoadPlan, storage_data: Any, *, path: str, entries: Mapping[str, Any] | None = None
) -> list[RecordSpec]:
    """The items of ``plan``, for a load in which nobody else is told of them.

    Args:
        plan: what to read.
        storage_data: where it is.
        path: of the checkpoint, for texts.
        entries: of the metadata, which say what stored tensors have to be; ``None`` where they are
            not known.

    Raises:
        CheckpointReadError: there is no place for some of the items.
    """
    facts = _StoredFacts(entries or {})
    known: dict[Any, Wanted] = {}
    specs = []
    try:
        for number, read_item in enumerate(plan.items):
            index = read_item.storage_index
            info = storage_data[index]
            lengths, offsets = read_item.lengths, read_item.storage_offsets
            is_bytes = read_item.type is LoadItemType.BYTE_IO
            # Older writers did not have descriptors.
            descriptors = tuple(getattr(info, "transform_descriptors", None) or ())
            dtype, shape = _UNKNOWN if is_bytes else facts.of(index)
            key = (is_bytes, offsets, lengths, descriptors, dtype, shape)
            wanted = known.get(key)
            if wanted is None:
                wanted = known[key] = Wanted(
                    "bytes" if is_bytes else "tensor",
                    tuple(offsets),
                    tuple(lengths),
                    descriptors,
                    None if dtype is None else Stored(dtype_name(dtype), tuple(shape or ())),
                )
            start = info.offset
            end = start + info.length
            specs.append(RecordSpec(number, info.relative_path, start, end, index.fqn, wanted))
    except KeyError:
        require_places(plan, storage_data, path=path)  # names all that have none
        raise
    return specs


_UNKNOWN: Final = (None, None)


class _StoredFacts:
    """What the metadata says of stored tensors, one chunk after the other."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries
        self._by_offset: dict[str, dict[Any, Any]] = {}

    def of(self, index: MetadataIndex) -> tuple[Any, Any]:
        """The dtype and the shape; both ``None`` where there is no telling."""
        entry = self._entries.get(index.fqn)
        chunks = getattr(entry, "chunks", None)
        if not chunks:
            return _UNKNOWN
        hint = index.index
        chunk = chunks[hint if hint is not None and 0 <= hint < len(chunks) else 0]
        if chunk.offsets != index.offset and index.offset is not None:
            by_offset = self._by_offset.get(index.fqn)
            if by_offset is None:
                by_offset = self._by_offset[index.fqn] = {c.offsets: c for c in chunks}
            chunk = by_offset.get(index.offset)
            if chunk is None:
                return _UNKNOWN
        return entry.properties.dtype, chunk.sizes  # type: ignore[union-attr]


def told_specs(
    plan: LoadPlan,
    storage_data: Any,
    tell_item: Callable[[ReadItem], ReadItemInfo],
    tell_storage: Callable[[Any], StorageItem],
    *,
    path: str,
) -> list[RecordSpec]:
    """The same, from what hooks are told: who tells them something else reads something else."""
    require_places(plan, storage_data, path=path)
    specs = []
    for number, read_item in enumerate(plan.items):
        storage = tell_storage(storage_data[read_item.storage_index])
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


def is_just_a_tensor(target: Any) -> bool:
    """Whether ``target`` is a plain local tensor, and not a part of a global one.

    torch lets a tensor describe itself as a part of a global one, by a method
    (``__create_chunk_list__``) or, from torch 2.14 on, by attributes of a plain tensor
    (``CheckpointableTensor``). A later torch may give a meaning to any attribute, so a tensor that
    has one is left to torch's own planner.
    """
    return (
        type(target) in TENSOR_TYPES
        and not vars(target)
        and not hasattr(target, "__create_chunk_list__")
    )


def resolved_tensors(plan: LoadPlan, planner: Any) -> Iterator[torch.Tensor | None]:
    """The target of each item, by a planner that :func:`may_resolve_ahead`; ``None`` for bytes.

    A plain tensor that is wanted whole is its own target: torch's planner would look it up, narrow
    none of its dimensions, and return it, in three times the time.
    """
    # Torch's plans have the order of the state dict, so that to walk both finds each tensor without
    # a look-up; what has another order is looked up, once the walk has come to the end.
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
