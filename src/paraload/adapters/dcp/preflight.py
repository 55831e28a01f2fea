"""Checks before the first byte is read, which leave every target untouched when they fail."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

from paraload._text import counted
from paraload.adapters.dcp.plan_items import PlanItems
from paraload.adapters.dcp.reader_config import ReaderConfig
from paraload.core.tasks import RecordSpec
from paraload.destinations.conversion import refused_conversion
from paraload.destinations.targets import Targets, require_shape, target_without_memory
from paraload.engine.file_checks import path_failures
from paraload.errors import CoverageError, ItemReadError, ShapeMismatchError, refuse_to_begin
from paraload.formats.record_checks import check_stored
from paraload.formats.transforms import no_decoder
from paraload.geometry.coverage import chunks_fault, coverage_fault
from paraload.workers.read_context import ReadContext


def require_loadable(
    items: PlanItems,
    config: ReaderConfig,
    read_context: ReadContext,
    plan: LoadPlan,
    planner: LoadPlanner,
) -> None:
    """Require all that can be known of a load before its first byte.

    Raises:
        CheckpointReadError: with an error for each item that fails the first check that fails.
    """
    specs, targets, options = items.specs, items.targets, config.options
    checks: list[Callable[[], Iterable[ItemReadError]]] = []
    if not options.allow_outside_paths:
        checks.append(lambda: path_failures(specs).values())
    if read_context.transform is None:  # otherwise it decodes what remains
        checks.append(lambda: _undecodable(specs, read_context))
    if items.resolved_ahead:
        checks.append(lambda: _unwritable(targets, plan))
        # A hook may change shape and dtype, and an overridden step may not use the target.
        if read_context.narrow_tensor is None and not config.is_overridden("_process_results"):
            checks.append(lambda: _misfits(specs, targets, strict=options.strict))
        checks.append(lambda: _incomplete(plan, planner))
    for check in checks:
        if failures := list(check()):
            raise refuse_to_begin(failures, items=len(specs), path=config.path)


def _undecodable(specs: Sequence[RecordSpec], read_context: ReadContext) -> Iterator[ItemReadError]:
    """Records with a transform that has no decoder."""
    unknown = {names: left[0] for names, (_, left) in read_context.decoders.items() if left}
    for spec in specs if unknown else ():
        if (descriptor := unknown.get(spec.wanted.descriptors)) is not None:
            yield _located(no_decoder(descriptor), spec)


def _unwritable(targets: Targets, plan: LoadPlan) -> Iterator[ItemReadError]:
    """Targets without memory, or with one place in memory for several elements."""
    for item, tensor in targets.with_shared_places():
        yield ShapeMismatchError(
            "several elements of the target share one place in memory",
            fqn=plan.items[item].dest_index.fqn,
            expected=f"a place for each element of shape {tuple(tensor.shape)}",
            got=f"strides {tensor.stride()}",
            hint="Load into target.contiguous(), or into the tensor that it was expanded from",
        )
    for item, tensor, fault in targets.without_memory():
        yield target_without_memory(tensor, fault, fqn=plan.items[item].dest_index.fqn)


def _misfits(
    specs: Sequence[RecordSpec], targets: Targets, *, strict: bool
) -> Iterator[ItemReadError]:
    """Slices outside their stored tensor, and targets of the wrong shape or dtype.

    A stored tensor that the metadata does not describe is checked after it has been read.
    """
    layouts = targets.layouts
    wanted_ids = map(id, map(attrgetter("wanted"), specs))
    layout_ids = map(id, map(layouts.__getitem__, map(attrgetter("item"), specs)))
    # Similar items share both objects, so one of each kind is checked: 0.1 us an item. Targets
    # without a layout may differ, so they are checked one by one.
    kinds = dict(zip(zip(wanted_ids, layout_ids, strict=True), specs, strict=True))
    doubtful = {
        kind
        for kind, spec in kinds.items()
        if layouts[spec.item] is None or _misfit(spec, targets, strict=strict) is not None
    }
    for spec in specs if doubtful else ():
        is_doubtful = (id(spec.wanted), id(layouts[spec.item])) in doubtful
        if is_doubtful and (failure := _misfit(spec, targets, strict=strict)) is not None:
            yield _located(failure, spec)


def _misfit(spec: RecordSpec, targets: Targets, *, strict: bool) -> ItemReadError | None:
    if (target := targets.get(spec.item)) is None:
        return None
    tensor, stored = target.tensor, spec.wanted.stored
    try:
        if stored is not None:
            check_stored(spec, stored.dtype, stored.shape)
        require_shape(tensor, spec.wanted.lengths)
    except ShapeMismatchError as error:
        return error.with_traceback(None)
    dtype = tensor.dtype if stored is None else getattr(torch, stored.dtype, tensor.dtype)
    if dtype == tensor.dtype:
        return None
    return refused_conversion(dtype, tensor.dtype, strict=strict)


def _located(error: ItemReadError, spec: RecordSpec) -> ItemReadError:
    error.locate(fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end)
    return error


def _incomplete(plan: LoadPlan, planner: Any) -> Iterator[ItemReadError]:
    """Tensors that this rank loads, and whose chunks leave a hole or overlap.

    Some planners change the sizes in the metadata, so a target that the plan fills completely is
    accepted anyway.
    """
    metadata = getattr(planner, "metadata", None)
    entries = {} if metadata is None else metadata.state_dict_metadata
    for fqn in planner.state_dict if entries else ():
        entry = entries.get(fqn)
        if type(entry) is not TensorStorageMetadata:
            continue
        chunks = entry.chunks
        if len(chunks) == 1 and chunks[0].sizes == entry.size and not any(chunks[0].offsets):
            continue
        fault = chunks_fault(entry.size, tuple([(it.offsets, it.sizes) for it in chunks]))
        if fault is not None and not _is_filled(fqn, plan, planner):
            yield CoverageError(
                f"the chunks in the checkpoint do not make up this tensor: {fault}",
                fqn=fqn,
                expected=f"each element of shape {tuple(entry.size)} once",
                got=counted(len(chunks), "chunk"),
                hint="The checkpoint is incomplete, or its metadata is damaged; load another one",
            )


def _is_filled(fqn: str, plan: LoadPlan, planner: Any) -> bool:
    """Whether the plan fills each element of this rank's part of the tensor once."""
    by_target: defaultdict[Any, list[tuple[Any, Any]]] = defaultdict(list)
    for item in plan.items:
        if item.dest_index.fqn == fqn:
            by_target[item.dest_index].append((tuple(item.dest_offsets), tuple(item.lengths)))
    return bool(by_target) and all(
        coverage_fault(tuple(planner.lookup_tensor(target).shape), blocks) is None
        for target, blocks in by_target.items()
    )
