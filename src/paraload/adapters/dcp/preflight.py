"""Checks before the first byte is read, which leave every target untouched when they fail.

Each item has a place, each tensor is complete, each target can take its values, and each transform
has a decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

from paraload._text import counted
from paraload.adapters.dcp.plan_items import PlanItems
from paraload.adapters.dcp.reader_config import ReaderConfig
from paraload.core.tasks import RecordSpec
from paraload.destinations.conversion import refused_conversion
from paraload.destinations.host import Destinations, require_shape, target_without_memory
from paraload.engine.file_checks import require_inside
from paraload.errors import (
    CoverageError,
    ItemReadError,
    ShapeMismatchError,
    refuse_to_begin,
)
from paraload.formats.record_checks import check_stored
from paraload.formats.transforms import no_decoder
from paraload.geometry.coverage import chunks_fault, coverage_fault
from paraload.workers.read_context import Work


def _refuse(failures: list[ItemReadError], *, items: int, path: str) -> None:
    if failures:
        raise refuse_to_begin(failures, items=items, path=path)


def require_loadable(
    items: PlanItems,
    config: ReaderConfig,
    work: Work,
    plan: LoadPlan,
    planner: LoadPlanner,
    *,
    has_own_commit: bool,
) -> None:
    """Require all that can be known of a load before its first byte.

    Raises:
        CheckpointReadError: with an error for each item that cannot be loaded.
    """
    path, specs, targets = config.path, items.specs, items.targets
    if not config.options.allow_outside_paths:
        require_inside(specs, path=path)
    require_decoders(specs, work, path=path)
    if not items.resolved_ahead:
        return
    require_writable(targets, plan, path=path)
    # A hook may change shape and dtype, and an overridden step may not use the target.
    if work.narrow_tensor is None and not has_own_commit:
        require_fitting(specs, targets, strict=config.options.strict, path=path)
    require_whole_tensors(plan, planner, path=path)


def require_whole_tensors(plan: LoadPlan, planner: Any, *, path: str) -> None:
    """Require that the chunks of each tensor tile it: without a hole, without an overlap.

    Only tensors that this rank loads are checked. Some planners change the sizes in the metadata,
    so a target that the plan fills completely is accepted whatever they are.

    Args:
        plan: of this rank.
        planner: torch's, or one that resolves as torch's does.
        path: of the checkpoint, for texts.
    """
    metadata = getattr(planner, "metadata", None)
    if metadata is None:  # it was not set up, or without metadata
        return
    entries = metadata.state_dict_metadata
    failures: list[ItemReadError] = []
    for fqn in planner.state_dict:
        entry = entries.get(fqn)
        if type(entry) is not TensorStorageMetadata:
            continue
        chunks = entry.chunks
        if len(chunks) == 1 and chunks[0].sizes == entry.size and not any(chunks[0].offsets):
            continue
        fault = chunks_fault(entry.size, tuple([(it.offsets, it.sizes) for it in chunks]))
        if fault is not None and not _is_filled(fqn, plan, planner):
            failure = CoverageError(
                f"the chunks in the checkpoint do not make up this tensor: {fault}",
                fqn=fqn,
                expected=f"each element of shape {tuple(entry.size)} once",
                got=counted(len(chunks), "chunk"),
                hint="The checkpoint is incomplete, or its metadata is damaged; load another one",
            )
            failures.append(failure)
    _refuse(failures, items=len(plan.items), path=path)


def require_writable(destinations: Destinations, plan: LoadPlan, *, path: str) -> None:
    """Require that every target has memory, and a separate place for each element."""
    failures: list[ItemReadError] = [
        ShapeMismatchError(
            "several elements of the target share one place in memory",
            fqn=plan.items[item].dest_index.fqn,
            expected=f"a place for each element of shape {tuple(tensor.shape)}",
            got=f"strides {tensor.stride()}",
            hint="Load into target.contiguous(), or into the tensor that it was expanded from",
        )
        for item, tensor in destinations.with_shared_places()
    ]
    failures += [
        target_without_memory(tensor, fault, fqn=plan.items[item].dest_index.fqn)
        for item, tensor, fault in destinations.without_memory()
    ]
    _refuse(failures, items=len(plan.items), path=path)


def require_fitting(
    specs: Sequence[RecordSpec], destinations: Destinations, *, strict: bool, path: str
) -> None:
    """Require that slices lie inside the stored tensors, and that targets fit in shape and dtype.

    If the metadata does not describe a stored tensor, it is checked after it has been read.
    """
    layouts = destinations.layouts
    wanted_ids = map(id, map(attrgetter("wanted"), specs))
    layout_ids = map(id, map(layouts.__getitem__, map(attrgetter("item"), specs)))
    # Similar items share both objects, so one of each kind is checked: 0.1 us an item. Targets
    # without a layout may differ, so they are checked one by one.
    kinds = dict(zip(zip(wanted_ids, layout_ids, strict=True), specs, strict=True))
    doubtful = {
        kind
        for kind, spec in kinds.items()
        if layouts[spec.item] is None or _misfit(spec, destinations, strict=strict) is not None
    }
    failures = [
        failure
        for spec in (specs if doubtful else ())
        if (id(spec.wanted), id(layouts[spec.item])) in doubtful
        and (failure := _misfit(spec, destinations, strict=strict)) is not None
    ]
    _refuse(failures, items=len(specs), path=path)


def _misfit(spec: RecordSpec, destinations: Destinations, *, strict: bool) -> ItemReadError | None:
    destination = destinations.get(spec.item)
    if destination is None:
        return None
    failure: ItemReadError | None = None
    tensor, stored = destination.tensor, spec.wanted.stored
    try:
        if stored is not None:
            check_stored(spec, stored.dtype, stored.shape)
        require_shape(tensor, spec.wanted.lengths)
    except ShapeMismatchError as error:
        failure = error.with_traceback(None)
    else:
        dtype = tensor.dtype if stored is None else getattr(torch, stored.dtype, tensor.dtype)
        if dtype != tensor.dtype:
            failure = refused_conversion(dtype, tensor.dtype, strict=strict)
    if failure is not None:
        failure.locate(fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end)
    return failure


def require_decoders(specs: Sequence[RecordSpec], work: Work, *, path: str) -> None:
    """Require a decoder for every transform of the records, unless a hook decodes them."""
    unknown = {names: left[0] for names, (_, left) in work.decoders.items() if left}
    if not unknown or work.transform is not None:
        return
    failures = []
    for spec in specs:
        if (descriptor := unknown.get(spec.wanted.descriptors)) is not None:
            failure = no_decoder(descriptor)
            failure.locate(fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end)
            failures.append(failure)
    raise refuse_to_begin(failures, items=len(specs), path=path)


def _is_filled(fqn: str, plan: LoadPlan, planner: Any) -> bool:
    """Whether the plan fills each element of this rank's part of the tensor once."""
    by_target: dict[Any, list[ReadItem]] = {}
    for item in plan.items:
        if item.dest_index.fqn == fqn:
            by_target.setdefault(item.dest_index, []).append(item)
    return bool(by_target) and all(
        coverage_fault(
            tuple(planner.lookup_tensor(target).shape),
            [(tuple(item.dest_offsets), tuple(item.lengths)) for item in items],
        )
        is None
        for target, items in by_target.items()
    )
