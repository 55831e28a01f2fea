"""``paraload.read``: the contents of a checkpoint as a new dict, without a model.

DCP, safetensors     metadata --keys--> empty tensors --load--> dict
torch.save           torch.load, mapped --keys--> copies --> dict
  at a URL           the file as one tensor of bytes --load--> torch.load --keys--> dict
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final, Unpack

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from paraload.adapters.dcp.hf_reader import ParallelHuggingFaceReader
from paraload.adapters.dcp.load import load_alone
from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.adapters.dcp.reader_choice import file_stat, reader_for, source_of
from paraload.adapters.dcp.safe_planner import SafeLoadPlanner
from paraload.adapters.dcp.urls import (
    is_url,
    local_path,
    refuse_storage_options,
    require_path,
    split_file,
)
from paraload.core.compat import flatten_state_dict, unflatten_state_dict
from paraload.core.records import TensorRecord
from paraload.errors import FormatError, InvalidOptionError, UnsafeObjectError
from paraload.formats.safetensors import Header, StoredTensor
from paraload.metadata.safetensors_chunks import SafetensorsFile, metadata_of
from paraload.options import ReadOptions, ReadOptionsDict
from paraload.sources.retrying import storage_error
from paraload.sources.urls import without_credentials

#: How the URL of a file of ``torch.save`` ends; not every storage can tell a folder from a file.
_TORCH_SAVE: Final = (".pt", ".pth")

#: What is rebuilt of a container with none of the wanted entries.
_NOTHING: Final = object()

Keys = str | Iterable[str] | Callable[[str], bool]


def read(
    path: str | os.PathLike[str],
    keys: Keys | None = None,
    device: torch.device | str | int = "cpu",
    dtype: torch.dtype | None = None,
    *,
    nested: bool = False,
    options: ReadOptions | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **keywords: Unpack[ReadOptionsDict],
) -> dict[str, Any]:
    """Read a checkpoint, or some of its entries, into new tensors.

    Objects are unpickled without running code from the checkpoint, by
    :class:`~paraload.SafeLoadPlanner`.

    Args:
        path: folder or URL of a DCP or safetensors checkpoint; or a ``.safetensors`` file; or a
            file of ``torch.save``, which at a URL ends with ``.pt`` or ``.pth``.
            ``torch.load(..., weights_only=True)`` reads the latter, without checksums. Of a local
            one, no other reading option has an effect; one at a URL is read whole first, and needs
            memory twice.
        keys: names to read, which may be patterns such as ``"model.layers.0.*"``; or a function
            that returns whether a name is to be read. By default everything is read.
        device: where the tensors are created.
        dtype: for floating-point tensors; by default that of the checkpoint.
        nested: rebuild the dicts and lists that were saved, instead of one flat dict. DCP saves the
            keys of dicts as text, and no empty dicts.
        options: a :class:`~paraload.ReadOptions`, instead of keywords.
        storage_options: options of the storage of a URL; see :func:`paraload.load`.
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
    require_path(path)
    if not isinstance(dtype, torch.dtype | None):
        raise InvalidOptionError(f"dtype={dtype!r}: expected a dtype such as torch.bfloat16")
    path = local_path(path)
    if not is_url(path) and os.path.isfile(path) and split_file(path)[1] is None:  # noqa: PTH113
        ReadOptions.resolve(options, keywords)
        refuse_storage_options(path, storage_options)
        return _of_torch_save(os.fspath(path), os.fspath(path), keys, device, dtype, nested=nested)
    folder, name = split_file(path, _TORCH_SAVE)
    if is_url(path) and name is not None:
        single = ParallelHuggingFaceReader(
            folder, options=options, storage_options=storage_options, **keywords
        )
        with closing(source_of(single)):  # also if no data are read
            data = _fetched(single, name)
        place = without_credentials(os.fspath(path))
        return _of_torch_save(data, place, keys, device, dtype, nested=nested)
    reader = reader_for(path, options=options, storage_options=storage_options, **keywords)
    with closing(source_of(reader)):  # also if no data are read
        metadata = reader.read_metadata()
        entries = metadata.state_dict_metadata
        names = _selected(entries, keys)
        state = {name: _empty(entries[name], device, dtype) for name in names}
        load_alone(state, reader, SafeLoadPlanner(), metadata=metadata)
    return _nested(state, metadata.planner_data or {}) if nested else state


def _of_torch_save(
    file: str | io.BytesIO,
    path: str,
    keys: Keys | None,
    device: torch.device | str | int,
    dtype: torch.dtype | None,
    *,
    nested: bool,
) -> dict[str, Any]:
    state = _torch_saved(file, path)
    try:
        values, _ = flatten_state_dict(state)
    except ValueError as error:  # two entries would have one name
        raise _not_of_tensors(path, str(error)) from None
    copied = {name: _copy(values[name], device, dtype) for name in _selected(values, keys)}
    if not nested:
        return copied
    rebuilt = _rebuilt(state, "", copied, with_empty=keys is None)
    return {} if rebuilt is _NOTHING else rebuilt


def _fetched(reader: ParallelHuggingFaceReader, name: str) -> io.BytesIO:
    """A file in the folder of ``reader``, read in parallel as one tensor of bytes."""
    nbytes = file_stat(reader, name).size
    if not nbytes:
        return io.BytesIO()
    layout = TensorRecord(
        dtype="uint8",
        itemsize=1,
        shape=(nbytes,),
        strides=(1,),
        storage_offset=0,
        start=0,
        end=nbytes,
    )
    header = Header((StoredTensor(name, 0, nbytes, layout),), {})
    target = torch.empty(nbytes, dtype=torch.uint8)
    metadata = metadata_of([SafetensorsFile(name, header)], {})
    load_alone({name: target}, reader, QuickLoadPlanner(), metadata=metadata)
    return io.BytesIO(target.numpy().data)


def _torch_saved(file: str | io.BytesIO, path: str) -> dict[str, Any]:
    """The dict that a file of ``torch.save`` holds, with mapped tensors."""
    try:
        # Files from before torch 1.6 are not archives and cannot be mapped.
        is_mapped = isinstance(file, str) and zipfile.is_zipfile(file)
        state = torch.load(file, weights_only=True, mmap=is_mapped, map_location="cpu")
    except OSError as error:
        raise storage_error(error, start=None, end=None, tries=1) from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UnsafeObjectError(
                "torch.load(weights_only=True) refuses this file, because it needs code",
                path=path,
                got=_reason(error),
                hint="If you trust the file, read it with torch.load",
            ) from None
        raise _not_of_tensors(path, _reason(error)) from None
    except Exception as error:
        raise _not_of_tensors(path, _reason(error)) from error
    if not isinstance(state, Mapping):
        raise _not_of_tensors(path, f"a {type(state).__name__}")
    return dict(state)


def _reason(error: Exception) -> str:
    # torch's advice about weights_only stands around the reason.
    _, _, reason = str(error).rpartition("WeightsUnpickler error: ")
    return f"{type(error).__name__}: {reason.strip()}".partition("\n")[0]


def _not_of_tensors(path: str, got: str) -> FormatError:
    expected = "a dict of tensors, saved with torch.save"
    hint = "paraload does not read GGUF" if path.lower().endswith(".gguf") else ""
    return FormatError("this file cannot be read", path=path, expected=expected, got=got, hint=hint)


def _copy(value: Any, device: torch.device | str | int, dtype: torch.dtype | None) -> Any:
    """``value`` apart from the mapped file, which may change or be deleted."""
    if isinstance(value, torch.Tensor):
        wanted = _dtype(value.dtype, dtype)
        return value.detach().to(device=device, dtype=wanted, copy=True)
    # Lists and tuples that flattening leaves whole, which may hold tensors.
    if type(value) in {list, tuple}:
        return type(value)(_copy(each, device, dtype) for each in value)
    if type(value) is dict:
        return {key: _copy(each, device, dtype) for key, each in value.items()}
    return value


def _rebuilt(value: Any, prefix: str, copied: Mapping[str, Any], *, with_empty: bool) -> Any:
    """``value``, with the entries that are in ``copied`` under their flat names, and no others.

    DCP's own way back knows only names: keys that were numbers would be text, and empty dicts
    missing, so that an optimizer would not find its state.
    """

    def of(key: Any, each: Any) -> Any:
        name = f"{prefix}{key}"
        if name in copied:
            return copied[name]
        return _rebuilt(each, f"{name}.", copied, with_empty=with_empty)

    if isinstance(value, Mapping):
        found = ((key, of(key, each)) for key, each in value.items())
        entries = {key: each for key, each in found if each is not _NOTHING}
        return entries if entries or (with_empty and not value) else _NOTHING
    if isinstance(value, list):
        items = [of(number, each) for number, each in enumerate(value)]
        if any(each is not _NOTHING for each in items):
            return [None if each is _NOTHING else each for each in items]
    return _NOTHING


def _selected(names: Iterable[str], keys: Keys | None) -> list[str]:
    names = list(names)
    if keys is None:
        return names
    if callable(keys):
        return [name for name in names if keys(name)]
    patterns: Any = [keys] if isinstance(keys, str) else keys
    if isinstance(patterns, bytes) or not isinstance(patterns, Iterable):
        raise InvalidOptionError(f"keys={keys!r}: expected names, patterns or a function")
    known = set(names)
    chosen: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidOptionError(f"keys: expected names or patterns, got {pattern!r}")
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
    wanted = _dtype(entry.properties.dtype, dtype)
    return torch.empty(entry.size, dtype=wanted, device=device)


def _dtype(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and stored.is_floating_point else stored


def _nested(state: dict[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = unflatten_state_dict(
        state, {name: paths.get(name, (name,)) for name in state}
    )
    return nested
