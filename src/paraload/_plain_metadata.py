"""What a ``.metadata`` of torch's own writer holds, read without making one of torch's objects.

    pickle --stand-ins--> lists that hold the state of one object each --columns_in--> Columns

The stand-in of every class is a list to which the opcode BUILD appends the object's state. So the
unpickler runs no Python, which makes it fast, and nothing of torch's is within reach of the pickle,
which makes it safe: ``_unpickler`` has the threat model. That module also reads whatever is not
plain: classes of other writers, attributes that torch's own does not set.
"""

from __future__ import annotations

import io
import marshal
import pickle
from array import array
from collections import defaultdict
from dataclasses import fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.distributed.checkpoint import filesystem, metadata

from paraload._columns import SEPARATOR, Columns
from paraload._opcodes import require_modest
from paraload._unpickler import CONSTANTS, Inert, Sizes, with_old_homes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paraload._columns import TensorKind

__all__ = ["NotPlainError", "columns_in"]


class NotPlainError(Exception):
    """There is more to this file, or less, than torch's own writer puts into one."""


def columns_in(data: bytes) -> Columns:
    """The columns of the metadata in a pickle.

    Raises:
        NotPlainError: it is not plain, or damaged.
    """
    try:
        require_modest(data)
        return _columns_of(_Unpickler(io.BytesIO(data)).load())
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise NotPlainError from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._size = Sizes().__getitem__

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The stand-in for a name."""
        full = f"{module_name}.{global_name}"
        return self._size if full == "torch.Size" else _STAND_INS[full]


# ------------------------------------------------------------------------------------ stand-ins


class _State(list[Any], metaclass=Inert):
    """An object of torch's: ``[]`` when it is made, ``[state]`` when it has its attributes."""

    __slots__ = ()
    __setstate__ = list.append


class _Index(_State):
    """A key, so it needs a hash; that no two are equal here does no harm."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


def _of(kind: type) -> Inert:
    base = _Index if kind is metadata.MetadataIndex else _State
    return Inert(kind.__name__, (base,), {"__slots__": ()})


_KINDS: Final[dict[type, Any]] = {
    kind: _of(kind)
    for kind in (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        filesystem._StorageInfo,  # noqa: SLF001 - the name that is in every file
    )
}
_Metadata: Final = _KINDS[metadata.Metadata]
_Meta: Final = _KINDS[metadata.StorageMeta]
_Tensor: Final = _KINDS[metadata.TensorStorageMetadata]
_Object: Final = _KINDS[metadata.BytesStorageMetadata]

_ENCODING: Final = metadata._MEM_FORMAT_ENCODING  # noqa: SLF001 - likewise
_FORMATS: Final = {
    encoding.value: getattr(torch, encoding.name.removeprefix("TORCH_").lower())
    for encoding in _ENCODING
}
_STAND_INS: Final = CONSTANTS | with_old_homes(
    {f"{kind.__module__}.{kind.__name__}": stand_in for kind, stand_in in _KINDS.items()}
    | {f"{_ENCODING.__module__}.{_ENCODING.__name__}": _FORMATS.__getitem__}
)

# ------------------------------------------------------------------------------ states to columns

_NAMES_OF: Final = {
    kind: frozenset(field.name for field in fields(kind))
    for kind in (metadata.Metadata, metadata.StorageMeta)
}


def _require(holds: bool) -> None:  # noqa: FBT001 - reads like an assertion
    if not holds:
        raise NotPlainError


def _columns_of(found: Any) -> Columns:
    _require(type(found) is _Metadata)
    [state] = found
    _require(_NAMES_OF[metadata.Metadata].issuperset(state))
    entries, storage = state["state_dict_metadata"], state["storage_data"]
    _require(type(entries) is type(storage) is dict and set(map(type, entries)) <= {str})
    names = SEPARATOR.join(entries)
    _require(names.count(SEPARATOR) == max(len(entries) - 1, 0))
    kinds, kind_of = _kinds(entries.values())
    _require(all(kind is None or _is_sound(*kind) for kind in kinds))
    version = state.get("version")
    _require(type(version) in {str, type(None)})
    return Columns(
        names=names,
        kinds=kinds,
        kind_of=kind_of,
        # Takes plain values only, and will make them anew.
        planner_data=marshal.dumps(state.get("planner_data")),
        storage_meta=_storage_meta(state.get("storage_meta")),
        version=version,
        **_places(storage, entries),
    )


def _numbers() -> defaultdict[Any, int]:
    """Gives every new key the next number."""
    numbers: defaultdict[Any, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    return numbers


def _kinds(entries: Iterable[Any]) -> tuple[tuple[TensorKind | None, ...], array[int]]:
    numbers, kind_of = _numbers(), array("I")
    for entry in entries:
        if type(entry) is _Object and not entry:  # no attributes
            kind_of.append(numbers[None])
            continue
        [state] = entry
        [properties] = state["properties"]
        spans = []
        for [chunk] in state["chunks"]:
            spans.append((chunk["offsets"], chunk["sizes"]))
            if len(chunk) != 2:  # noqa: PLR2004 - these two
                raise NotPlainError
        kind_of.append(numbers[properties, state["size"], tuple(spans)])
        if type(entry) is not _Tensor or len(state) != 3:  # noqa: PLR2004 - the three above
            raise NotPlainError
    return tuple(numbers), kind_of


def _is_sound(properties: tuple[Any, ...], size: Any, spans: tuple[tuple[Any, Any], ...]) -> bool:
    dtype, layout, requires_grad, memory_format, pin_memory = properties
    return (
        isinstance(dtype, torch.dtype)
        and isinstance(layout, torch.layout)
        and isinstance(memory_format, torch.memory_format)
        and type(requires_grad) is type(pin_memory) is bool
        and isinstance(size, torch.Size)
        and all(isinstance(span, torch.Size) for spans_ in spans for span in spans_)
    )


def _places(storage: dict[Any, Any], entries: dict[str, Any]) -> dict[str, Any]:
    number_of = {name: number for number, name in enumerate(entries)}
    name_of, offsets, lengths = array("I"), array("q"), array("q")
    numbers, kind_of = _numbers(), array("I")
    for [index], [info] in storage.items():
        descriptors = None
        if len(info) != 3:  # noqa: PLR2004 - path, offset, length
            descriptors = _descriptors(info)
        if len(index) == 3:  # noqa: PLR2004 - these
            offset, hint = index["offset"], index["index"]
        else:
            offset, hint = _offset_and_hint(index)
        name_of.append(number_of[index["fqn"]])
        offsets.append(info["offset"])
        lengths.append(info["length"])
        kind_of.append(numbers[offset, hint, info["relative_path"], descriptors])
    _require(all(_is_sound_place(*kind) for kind in numbers))
    return {
        "name_of": name_of,
        "offsets": offsets,
        "lengths": lengths,
        "place_kinds": tuple(numbers),
        "place_kind_of": kind_of,
    }


def _descriptors(info: dict[str, Any]) -> tuple[str, ...] | None:
    found = info["transform_descriptors"]
    _require(len(info) == 4)  # noqa: PLR2004 - and path, offset, length
    return None if found is None else tuple(found)


def _offset_and_hint(index: dict[str, Any]) -> tuple[Any, Any]:
    _require(len(index) == 1 + ("offset" in index) + ("index" in index))
    return index.get("offset"), index.get("index")


def _is_sound_place(offset: Any, hint: Any, path: Any, descriptors: Any) -> bool:
    return (
        isinstance(offset, torch.Size | None)
        and type(hint) in {int, type(None)}
        and type(path) is str
        and (descriptors is None or set(map(type, descriptors)) <= {str})
    )


def _storage_meta(found: Any) -> tuple[Any, ...] | None:
    if found is None:
        return None
    _require(type(found) is _Meta)
    [state] = found
    _require(_NAMES_OF[metadata.StorageMeta].issuperset(state))
    checkpoint_id, modules = state.get("checkpoint_id"), tuple(state.get("modules", ()))
    texts = [state.get("save_id"), state.get("load_id")]
    _require(isinstance(checkpoint_id, str | PurePath | None))
    _require(all(type(text) in {str, type(None)} for text in texts))
    _require(set(map(type, modules)) <= {str})
    return checkpoint_id, *texts, modules
