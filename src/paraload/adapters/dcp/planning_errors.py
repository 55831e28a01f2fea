"""Names every entry of a state dict that does not fit the checkpoint; torch names only the first.

An error of torch's planner starts a second pass, in which torch plans each entry by itself. So
torch alone decides what fits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from operator import itemgetter
from os.path import commonprefix
from typing import Any, Final

import torch
from torch import distributed
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlanner

from paraload._text import counted
from paraload.adapters.dcp.planner_steps import steps_replaced
from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.core.compat import flatten_state_dict
from paraload.destinations.targets import target_without_memory
from paraload.destinations.tensor_memory import memory_fault
from paraload.errors import (
    CheckpointReadError,
    ItemReadError,
    KindMismatchError,
    MissingKeyError,
    ShapeMismatchError,
    refuse_to_begin,
)

#: Only errors of these methods are replaced; a planner that overrides them keeps its own errors.
_EXPLAINED: Final = {
    getattr(kind, step)
    for kind in (DefaultLoadPlanner, QuickLoadPlanner)
    for step in ("set_up_planner", "create_local_plan")
}
#: Limits of the search for similar names, which takes 10 ms a name.
_EXPLAINED_NAMES: Final = 10
_MOST_CANDIDATES: Final = 1000
#: What torch.compile, FSDP, activation checkpointing and DDP put into names.
_WRAPPERS: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")


@contextmanager
def misplanned_named(planner: LoadPlanner, path: str) -> Iterator[None]:
    """In the block, a planning error of torch's planner or ours names every wrong entry."""
    explained: dict[str, Callable[..., CheckpointReadError | None]] = {
        "set_up_planner": lambda state_dict, *_, **__: _refused_meta(state_dict, path),
        "create_local_plan": lambda: _refusal(planner, path),
    }
    own = [getattr(type(planner), name, None) not in _EXPLAINED for name in explained]
    if any(own) or explained.keys() & vars(planner).keys():
        yield
        return
    steps = {name: _explaining(getattr(planner, name), it) for name, it in explained.items()}
    with steps_replaced(planner, steps):
        yield


def _explaining(
    step: Callable[..., Any], refusal: Callable[..., CheckpointReadError | None]
) -> Callable[..., Any]:
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except Exception:
            if (error := refusal(*args, **kwargs)) is None:
                raise
            raise error from None

    return explained


def _refused_meta(state_dict: Any, path: str) -> CheckpointReadError | None:
    """The error that names all targets on the meta device.

    torch allocates such targets, but only where there is a process group.
    """
    if distributed.is_available() and distributed.is_initialized():
        return None
    targets, _ = flatten_state_dict(state_dict)
    failures = [
        target_without_memory(target, fault, fqn=fqn)
        for fqn, target in targets.items()
        if isinstance(target, torch.Tensor) and target.is_meta and (fault := memory_fault(target))
    ]
    return refuse_to_begin(failures, items=len(targets), path=path) if failures else None


def _refusal(planner: Any, path: str) -> CheckpointReadError | None:
    """The error that names every entry that torch cannot plan; ``None`` if torch's own says it."""
    metadata, state_dict = planner.metadata, planner.state_dict
    if metadata is None:
        return None
    entries = metadata.state_dict_metadata
    failures: list[ItemReadError] = []
    for fqn, target in state_dict.items():
        try:
            create_default_local_load_plan({fqn: target}, metadata, not planner.allow_partial_load)
        except Exception as error:  # noqa: BLE001 - targets may run any code
            failures.append(_fault(fqn, target, entries, error))
    if all(type(failure) is ItemReadError for failure in failures):
        return None
    advice = ""
    if missing := [failure for failure in failures if isinstance(failure, MissingKeyError)]:
        advice = _advise(missing, [name for name in entries if name not in state_dict])
        kind = DefaultLoadPlanner if type(planner) is QuickLoadPlanner else type(planner)
        advice += (
            "\nTo load only what the checkpoint has, and leave the other targets as they are:"
            f" planner={kind.__name__}(allow_partial_load=True)"
        )
    return refuse_to_begin(failures, items=len(state_dict), path=path, advice=advice)


def _fault(fqn: str, target: Any, entries: Any, error: Exception) -> ItemReadError:
    if fqn not in entries:
        return MissingKeyError("the checkpoint has no entry of this name", fqn=fqn)
    entry = entries[fqn]
    if isinstance(entry, TensorStorageMetadata):
        stored, dtype = tuple(entry.size), entry.properties.dtype
        # torch splits these into chunks, like tensors
        is_sharded = hasattr(target, "__create_chunk_list__") or hasattr(target, "local_shards")
        if not (isinstance(target, torch.Tensor) or is_sharded):
            return KindMismatchError(
                "the checkpoint has a tensor of this name, but the target is not a tensor",
                fqn=fqn,
                expected=f"a tensor of shape {stored}",
                got=f"an object of type {type(target).__name__}",
                hint=f"Put torch.empty({stored}, dtype={dtype}) into the state dict instead",
            )
        size = getattr(target, "size", None)
        # torch raises a ValueError for wrong sizes, and checks this one first.
        if isinstance(error, ValueError) and size and (shape := tuple(size())) != stored:
            return ShapeMismatchError(
                "the shapes of the target and the tensor in the checkpoint differ",
                fqn=fqn,
                expected=f"shape {stored}, as it was saved",
                got=f"shape {shape}",
                hint="Build the model with the sizes that it was saved with",
            )
    return ItemReadError(f"torch cannot plan it ({type(error).__name__}: {error})", fqn=fqn)


def _advise(missing: Sequence[MissingKeyError], unclaimed: Sequence[str]) -> str:
    """Advise a renaming of most ``missing`` names, or else hint at similar names for each.

    ``unclaimed`` are the names that only the checkpoint has.
    """
    names = [str(failure.fqn) for failure in missing]
    count, how = max(_renamings(names, set(unclaimed)), key=itemgetter(0))
    if 2 * count > len(names):
        some = f"{count} of " if count < len(names) else ""
        return f"\nThe checkpoint has {some}the {counted(len(names), 'missing name')} {how}"
    for failure, name in zip(missing[:_EXPLAINED_NAMES], names, strict=False):
        failure.hint = _hint(name, unclaimed)
    return ""


def _renamings(names: Sequence[str], unclaimed: set[str]) -> Iterator[tuple[int, str]]:
    """Possible renamings: how many of ``names`` are in ``unclaimed`` then, and the advice.

    >>> list(_renamings(["a.w", "a.b"], {"m.a.w", "m.a.b"}))[0][0]
    2
    """
    for old, new in _prefixes(names, unclaimed):
        count = sum(n.startswith(old) and new + n.removeprefix(old) in unclaimed for n in names)
        if old and new:
            count -= count == 1  # any two names differ in such a way
            what = f"with {new!r} in place of {old!r}"
        else:
            what = f"with {new!r} in front" if new else f"without {old!r} in front"
        name = f"name.removeprefix({old!r})" if old else "name"
        what += f": rename the keys of the state dict to {f'{new!r} + {name}' if new else name}"
        if not old and count == len(names):
            what += f", or load into {{{new.removesuffix('.')!r}: state_dict}}"
        yield count, what
    for part in _WRAPPERS:
        count = sum(n.replace(part, "") in unclaimed for n in names)
        yield count, f"without {part!r} in them: rename the keys to name.replace({part!r}, '')"
        bare = {name.replace(part, "") for name in unclaimed}
        count = sum(n in bare for n in names)
        yield count, f"with {part!r} in them: load into the state dict of a model wrapped like that"


def _prefixes(names: Sequence[str], unclaimed: set[str]) -> list[tuple[str, str]]:
    """Different prefixes of ``names`` and of those in ``unclaimed`` with the longest common end."""
    found = set()
    for name in names[:_EXPLAINED_NAMES]:
        others = [other for other in unclaimed if other.endswith(name.rpartition(".")[2])]
        ends = [(_common_end(name, other), -len(other), other) for other in others]
        length, _, other = max(ends, default=(0, 0, ""))
        if length:
            found.add((name[:-length], other[:-length]))
    return sorted(found, key=lambda pair: (len("".join(pair)), pair))


def _common_end(one: str, other: str) -> int:
    """The length of the dotted parts that both names end with."""
    parts = [one.split(".")[::-1], other.split(".")[::-1]]
    return len(".".join(commonprefix(parts)))  # noqa: RUF071 - of lists, so not by characters


def _hint(name: str, unclaimed: Sequence[str]) -> str | None:
    for other in unclaimed:
        if other.startswith(f"{name}."):
            return f"It has parts of it, such as {other!r}: put a dict or list of them there"
        if name.startswith(f"{other}."):
            return f"It has {other!r} as a whole: put one value there"
    candidates = unclaimed
    if len(candidates) > _MOST_CANDIDATES:
        candidates = [other for other in candidates if other.endswith(name.rpartition(".")[2])]
    similar = get_close_matches(name, candidates[:_MOST_CANDIDATES], n=2)
    return f"Did you mean {' or '.join(map(repr, similar))}?" if similar else None
