"""What a ``.metadata`` of torch's own writer holds, as columns, without one of torch's objects.

    .metadata --PlainPickle--> three tables, and a few Made objects --> Columns

Nothing of torch's is within reach of the pickle. Whatever is not plain, classes of other writers or
attributes that torch's own does not set, is left to the restricted unpickler in ``_unpickler``.
"""

from __future__ import annotations

import marshal
from array import array
from dataclasses import fields
from pathlib import PurePath
from typing import Any, Final

import torch
from torch.distributed.checkpoint import metadata

from paraload._columns import SEPARATOR, Columns
from paraload._metadata_kinds import StorageInfo, attributes_of
from paraload._metadata_tables import Entries, Paths, Places
from paraload._plain_pickle import PlainPickle
from paraload._plain_values import Call, NotPlainError, require
from paraload._unpickler import CONSTANTS, with_old_homes

__all__ = ["NotPlainError", "columns_in"]


def columns_in(data: bytes) -> Columns:
    """The columns of the metadata in a pickle.

    Raises:
        NotPlainError: it is not plain, or damaged.
    """
    entries, paths, places = Entries(), Paths(), Places()
    tables = {"state_dict_metadata": entries, "planner_data": paths, "storage_data": places}
    try:
        found = PlainPickle(data, _NAMES, tables).load()
        return _columns_of(found, entries, paths, places)
    except NotPlainError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise NotPlainError from error


# -------------------------------------------------------------------------------------- names

_Encoding: Final = metadata._MEM_FORMAT_ENCODING  # noqa: SLF001 - torch has no other

_FORMATS: Final = {
    encoding.value: getattr(torch, encoding.name.removeprefix("TORCH_").lower())
    for encoding in _Encoding
}


def _size(numbers: tuple[int, ...] = ()) -> torch.Size:
    require(all(number.bit_length() < 64 for number in numbers))  # noqa: PLR2004 - as in torch
    return torch.Size(numbers)


def _names() -> dict[str, Any]:
    kinds = (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        StorageInfo,
    )
    constants = {name: Call(it) if callable(it) else it for name, it in CONSTANTS.items()}
    of_torch: dict[str, Any] = {f"{kind.__module__}.{kind.__name__}": kind for kind in kinds}
    of_torch[f"{_Encoding.__module__}.{_Encoding.__name__}"] = Call(_FORMATS.__getitem__)
    return constants | {"torch.Size": Call(_size)} | with_old_homes(of_torch)


_NAMES: Final = _names()

# ----------------------------------------------------------------------------------- columns

_MAY_HAVE: Final = {
    kind: frozenset(field.name for field in fields(kind))
    for kind in (metadata.Metadata, metadata.StorageMeta)
}


def _columns_of(found: Any, entries: Entries, paths: Paths, places: Places) -> Columns:
    state = attributes_of(found, metadata.Metadata)
    require(_MAY_HAVE[metadata.Metadata].issuperset(state))
    require(state["state_dict_metadata"] is entries and state["storage_data"] is places)
    planner_data = state.get("planner_data")
    number_of = {name: number for number, name in enumerate(entries.names)}
    names = SEPARATOR.join(entries.names)
    require(len(number_of) == len(entries.names))
    require(names.count(SEPARATOR) == max(len(entries.names) - 1, 0))
    version = state.get("version")
    require(type(version) in {str, type(None)})
    return Columns(
        names=names,
        kinds=tuple(entries.kinds),
        kind_of=entries.kind_of,
        name_of=array("I", map(number_of.__getitem__, places.names)),
        place_kinds=tuple(places.kinds),
        place_kind_of=places.kind_of,
        offsets=places.offsets,
        lengths=places.lengths,
        # Takes plain values only, and will make them anew.
        planner_data=marshal.dumps(paths.paths if planner_data is paths else planner_data),
        storage_meta=_storage_meta(state.get("storage_meta")),
        version=version,
    )


def _storage_meta(found: Any) -> tuple[Any, ...] | None:
    if found is None:
        return None
    state = attributes_of(found, metadata.StorageMeta)
    require(_MAY_HAVE[metadata.StorageMeta].issuperset(state))
    checkpoint_id, modules = state.get("checkpoint_id"), tuple(state.get("modules", ()))
    texts = [state.get("save_id"), state.get("load_id")]
    require(isinstance(checkpoint_id, str | PurePath | None))
    require(all(type(text) in {str, type(None)} for text in texts))
    require(set(map(type, modules)) <= {str})
    return checkpoint_id, *texts, modules
