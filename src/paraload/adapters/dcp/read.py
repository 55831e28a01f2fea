"""``paraload.read``: the contents of a checkpoint as a new dict, without a model.

metadata --keys--> empty tensors --load--> dict
"""

import os
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from paraload.adapters.dcp.load import load_alone
from paraload.adapters.dcp.reader_choice import reader_for
from paraload.adapters.dcp.safe_planner import SafeLoadPlanner
from paraload.errors import InvalidOptionError
from paraload.options import ReadOptions

Keys = str | Iterable[str] | Callable[[str], bool]


def read(
    path: str | os.PathLike[str],
    keys: Keys | None = None,
    device: torch.device | str | int = "cpu",
    dtype: torch.dtype | None = None,
    *,
    nested: bool = False,
    options: ReadOptions | None = None,
    **keywords: Any,
) -> dict[str, Any]:
    """Read a checkpoint, or some of its entries, into new tensors.

    Objects are unpickled without running code from the checkpoint, by
    :class:`~paraload.SafeLoadPlanner`.

    Args:
        path: folder of the checkpoint.
        keys: names to read, which may be patterns such as ``"model.layers.0.*"``; or a function
            that returns whether a name is to be read. By default everything is read.
        device: where the tensors are created.
        dtype: for floating-point tensors; by default that of the checkpoint.
        nested: rebuild the dicts and lists that were saved, instead of one flat dict.
        options: a :class:`~paraload.ReadOptions`, instead of keywords.
        **keywords: fields of :class:`~paraload.ReadOptions`; they override ``options``.

    Returns:
        Tensors and objects, by name in the order of the checkpoint; all ranks get all of them.

    Raises:
        CheckpointReadError: something could not be read.
        InvalidOptionError: an option has an invalid value, or one of ``keys`` matches nothing.

    >>> import tempfile, torch, paraload, torch.distributed.checkpoint as dcp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state = {"model": {"w": torch.arange(4.0)}, "step": 7}
    ...     _ = dcp.save(state, checkpoint_id=folder, no_dist=True)
    ...     paraload.read(folder), paraload.read(folder, "model.*", nested=True)
    ({'model.w': tensor([0., 1., 2., 3.]), 'step': 7}, {'model': {'w': tensor([0., 1., 2., 3.])}})
    """
    reader = reader_for(path, options=options, **keywords)
    metadata = reader.read_metadata()
    names = _selected(metadata.state_dict_metadata, keys)
    state = {name: _empty(metadata.state_dict_metadata[name], device, dtype) for name in names}
    load_alone(state, reader, SafeLoadPlanner(), metadata=metadata)
    return _nested(state, metadata) if nested else state


def _selected(names: Iterable[str], keys: Keys | None) -> list[str]:
    names = list(names)
    if keys is None:
        return names
    if callable(keys):
        return [name for name in names if keys(name)]
    patterns = [keys] if isinstance(keys, str) else list(keys)
    known = set(names)
    chosen: set[str] = set()
    for pattern in patterns:
        # A name may contain characters that have a meaning in patterns.
        found = {pattern} & known or {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise InvalidOptionError(_no_match(pattern, names))
        chosen |= found
    return [name for name in names if name in chosen]


def _no_match(pattern: str, names: list[str]) -> str:
    near = get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
    such_as = f", such as {', '.join(map(repr, near))}" if near else ""
    return f"keys: {pattern!r} matches none of the checkpoint's {len(names)} names{such_as}"


def _empty(entry: Any, device: torch.device | str | int, dtype: torch.dtype | None) -> Any:
    if not isinstance(entry, TensorStorageMetadata):
        return None
    stored = entry.properties.dtype
    wanted = dtype if dtype is not None and stored.is_floating_point else stored
    return torch.empty(entry.size, dtype=wanted, device=device)


def _nested(state: dict[str, Any], metadata: Metadata) -> dict[str, Any]:
    paths: Mapping[str, Any] = metadata.planner_data or {}
    return unflatten_state_dict(state, {name: paths.get(name, (name,)) for name in state})
