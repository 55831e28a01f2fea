"""The items of a DCP plan: a spec for each of them, and the tensors that they go to.

    plan.items + storage_data  -->  RecordSpec    where the bytes are, which part is wanted
    planner                    -->  Targets       where they go, if that can be resolved ahead

Everything here runs once for each item, before the first byte is read: a microsecond more is a
second for a million items.
"""

from collections.abc import Iterator
from contextlib import closing
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, Final, NamedTuple

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner

from paraload.adapters.dcp.reader_config import OwnSlice, ReaderConfig
from paraload.core.records import dtype_name
from paraload.core.tasks import (
    HookInfo,
    LocateTask,
    ReadTask,
    RecordSpec,
    RecordsTask,
    Stored,
    Wanted,
)
from paraload.destinations.targets import Targets
from paraload.errors import ItemReadError, MissingEntryError, refuse_to_begin
from paraload.geometry.overlap import Block, overlapping_items
from paraload.metadata.dcp_index import UNKNOWN, StoredTensors, descriptors_of


class PlanItems(NamedTuple):
    """The items of a plan, and where they go.

    Attributes:
        specs: one for each item, in the order of the plan.
        tasks: the first tasks, if the reader makes its own.
        targets: by item, if they were resolved ahead.
        ordered: items that must be committed in the order of torch's reader: all under a planner
            that is resolved item by item, otherwise those whose targets share memory.
        resolved_ahead: whether ``targets`` are known.
    """

    specs: list[RecordSpec]
    tasks: list[ReadTask] | None
    targets: Targets
    ordered: set[int]
    resolved_ahead: bool


#: The load for which a reader is creating tasks. It is a context variable because users override
#: and call `_create_read_tasks`: its signature must not change.
_planning: Final[ContextVar[ReaderConfig | None]] = ContextVar("paraload_planning", default=None)


def items_of(config: ReaderConfig, plan: LoadPlan, planner: LoadPlanner) -> PlanItems:
    """The items of ``plan``, and where they go.

    Raises:
        CheckpointReadError: the checkpoint does not say where some of the items are stored, or the
            reader's own tasks leave some out.
    """
    storage_data = config.reader.storage_data
    own_tasks: list[ReadTask] | None = None
    if config.is_overridden("_create_read_tasks"):
        token = _planning.set(config)
        try:
            own_tasks = tasks = config.step("_create_read_tasks")(plan, storage_data)
        finally:
            _planning.reset(token)
        first = (task for task in tasks if isinstance(task, LocateTask | RecordsTask))
        specs = sorted((spec for task in first for spec in task.specs), key=attrgetter("item"))
        _require_all(plan, specs, path=config.path)
    else:
        specs = _make_specs(config, plan, storage_data)
    if isinstance(config.slice_file, OwnSlice):
        config.slice_file.infos |= {
            spec.for_hooks.storage: storage_data[plan.items[spec.item].storage_index]
            for spec in specs
        }
    if not may_resolve_ahead(planner):
        everything = {spec.item for spec in specs}
        return PlanItems(specs, own_tasks, Targets(), everything, resolved_ahead=False)

    def block_of(item: int) -> Block:
        read_item = plan.items[item]
        return Block(read_item.dest_index, read_item.dest_offsets, read_item.lengths)

    targets = Targets(resolved_tensors(plan, planner))
    ordered = overlapping_items(*targets.spans(), block_of)
    return PlanItems(specs, own_tasks, targets, ordered, resolved_ahead=True)


def _require_all(plan: LoadPlan, specs: list[RecordSpec], *, path: str) -> None:
    planned = {spec.item for spec in specs}
    failures = [
        ItemReadError(
            "the reader's _create_read_tasks returned no task for it",
            fqn=read_item.dest_index.fqn,
            hint="Return the tasks of all items; to load less, make a plan with fewer items",
        )
        for number, read_item in enumerate[Any](plan.items)
        if number not in planned
    ]
    if failures:
        raise refuse_to_begin(failures, items=len(plan.items), path=path)


def create_tasks(reader: Any, defaults: type, plan: LoadPlan, storage_data: Any) -> list[ReadTask]:
    """The first tasks of ``plan``, with the configuration of the running load of ``reader``.

    Outside a load, they are made with a new configuration, and its source is closed here.
    """
    config = _planning.get()
    if config is not None and config.reader is reader:
        return config.make_tasks(_make_specs(config, plan, storage_data))
    config = ReaderConfig(reader, defaults)
    with closing(config.source):
        return config.make_tasks(_make_specs(config, plan, storage_data))


def _make_specs(config: ReaderConfig, plan: LoadPlan, storage_data: Any) -> list[RecordSpec]:
    """A spec for each item of the plan.

    A storage info has ``relative_path``, ``offset`` and ``length``; a reader that knows where the
    payload is adds that as ``layout``, a :class:`~paraload.core.records.TensorRecord`. Descriptions
    for hooks have the same attributes as torch's objects and replace them, so a reader that
    overrides a description changes what is read.
    """
    names = ("_serialize_read_item", "_serialize_storage_metadata")
    describe_item, describe_info = map(config.step, names)
    is_described = (
        config.needs_streams
        or config.transform is not None
        or any(map(config.is_overridden, names))
    )
    stored = StoredTensors({} if is_described else config.entries or {})
    known: dict[Any, Wanted] = {}
    specs: list[RecordSpec] = []
    failures: list[ItemReadError] = []
    for number, read_item in enumerate[Any](plan.items):
        index = read_item.storage_index
        try:
            info, hook_info = storage_data[index], None
        except KeyError:
            failure = MissingEntryError(
                f"the checkpoint does not say where the part at offset {tuple(index.offset or ())}"
                " is stored",
                fqn=index.fqn,
                hint="Its metadata is damaged, or the plan was made for another checkpoint",
            )
            failures.append(failure)
            continue
        is_bytes = read_item.type is LoadItemType.BYTE_IO
        layout = getattr(info, "layout", None)
        if is_described:
            hook_info = HookInfo(describe_item(read_item), describe_info(info))
            read_item, info = hook_info  # noqa: PLW2901
            index = read_item.storage_index
            is_bytes = read_item.type == "BYTE_IO"
        lengths, offsets = read_item.lengths, read_item.storage_offsets
        descriptors = descriptors_of(info)
        dtype, shape = UNKNOWN if is_bytes else stored.of(index)
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
        path = info.relative_path
        specs.append(RecordSpec(number, path, start, end, index.fqn, wanted, hook_info))
    if failures:
        raise refuse_to_begin(failures, items=len(plan.items), path=config.path)
    return specs


_RESOLVE_STEPS: Final = ("resolve_tensor", "commit_tensor", "lookup_tensor", "transform_tensor")


def may_resolve_ahead(planner: LoadPlanner) -> bool:
    """Whether ``planner`` resolves and commits as torch's does, so that resolving has no effect."""
    return isinstance(planner, DefaultLoadPlanner) and all(
        getattr(type(planner), name) is getattr(DefaultLoadPlanner, name)
        and name not in vars(planner)
        for name in _RESOLVE_STEPS
    )


def resolved_tensors(plan: LoadPlan, planner: Any) -> Iterator[torch.Tensor | None]:
    """The target of each item, by a planner that :func:`may_resolve_ahead`; ``None`` for bytes.

    A plain tensor that is wanted whole is its own target: torch's planner would also return it, but
    take three times as long, for a look-up and for narrowing no dimension.
    """
    # torch's plans have the order of the state dict, so walking both in step saves a look-up of
    # 0.5 us per item. In any other order the walk soon ends, and the rest is looked up.
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
