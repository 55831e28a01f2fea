"""The restricted unpickler: reads a ``.metadata`` file without running what is in it.

A pickle is a program. It can name anything importable and have it called or changed:

    file --find_class--> (module, name) --table--> a stand-in --opcodes--> plain data
                              |
                              `-- not in the table: refused, nothing imported, nothing called

**Threat model.** The attacker wrote the file and wants something imported, called or changed.

- A name is looked up in a table and nowhere else. A path of attributes ("Metadata.__init__.
  __globals__") is a single name, which the table does not have; nothing is imported to find out.
- The stack of the unpickler never holds a class, function or enum member of torch: the opcodes
  BUILD, APPEND and REDUCE would set its attributes, for the whole process. It holds stand-ins:
  immutable classes that make one empty instance, or the look-up of a dict. What they return is
  new or immutable.
- The only code that runs is torch's ``TensorProperties.__setstate__``, which assigns attributes,
  and the hashing and comparing of keys.

``core.pickle_scan`` bounds the memory that the pickle asks for. Out of scope: limits on time and
stack depth, and the meaning of the values, which the code that uses ranges and paths checks. Names
in ``allow_globals`` are passed unchanged; the user vouches for them.
"""

import dataclasses
import io
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final

import torch
from torch.distributed.checkpoint import metadata, planner

from paraload.core import compat
from paraload.core.pickle_names import is_class_of_package
from paraload.core.pickle_scan import require_bounded_memory

_OF_TORCH: Final = frozenset(vars(torch))


class GlobalRefusedError(pickle.UnpicklingError):
    """The pickle names something that is not allowed.

    Attributes:
        name: the full name.
        is_class: it looks like a class of a package outside the standard library.
        is_new: it may be a dtype, or the like, of a newer torch.
    """

    def __init__(self, module: str, qualified: str) -> None:
        self.name = f"{module}.{qualified}"
        self.is_class = is_class_of_package(module, qualified)
        self.is_new = module == "torch" and qualified.isidentifier() and qualified not in _OF_TORCH
        super().__init__(self.name)


def unpickle(data: bytes, allow_globals: Iterable[Any] = ()) -> Any:
    """The object in ``data``.

    Args:
        data: the pickle.
        allow_globals: names ("module.name") or the objects themselves that it may use besides.

    Raises:
        GlobalRefusedError: it names something else; nothing was imported or called.
        ExcessError: it asks for more memory than its length explains.
        Exception: of any type, if the bytes are damaged.
    """
    require_bounded_memory(data)
    return _Unpickler(io.BytesIO(data), allow_globals).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, allow_globals: Iterable[Any]) -> None:
        super().__init__(stream)
        self._allowed = {it if isinstance(it, str) else _full_name(it): it for it in allow_globals}
        self._size = _Sizes().__getitem__

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The allowed object or the stand-in for a name."""
        full = f"{module_name}.{global_name}"
        if full in self._allowed:
            allowed = self._allowed[full]
            by_name = isinstance(allowed, str)
            return super().find_class(module_name, global_name) if by_name else allowed
        if full == "torch.Size":
            return self._size
        for name in (full, f"*.{global_name}"):
            if name in _STAND_INS:
                return _STAND_INS[name]
        if (stand_in := _of_loaded(full)) is None:
            raise GlobalRefusedError(module_name, global_name)
        return stand_in


def _full_name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


# ----------------------------------------------------------------------------------- stand-ins


class _Sizes(dict[tuple[int, ...], torch.Size]):
    """Cache of sizes: a checkpoint has few different ones and repeats them."""

    def __missing__(self, numbers: tuple[int, ...]) -> torch.Size:
        size = self[numbers] = torch.Size(numbers)
        return size


class _Inert(type):
    """Metaclass of stand-ins: a pickle can call them, but not change them."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"sets {name!r} of {cls.__name__}")

    def __delattr__(cls, name: str) -> None:
        raise pickle.UnpicklingError(f"deletes {name!r} of {cls.__name__}")


def _stand_in(name: str, make: Callable[..., Any]) -> _Inert:
    return _Inert(name, (), {"__slots__": (), "__new__": make})


def _empty(kind: type) -> _Inert:
    """Makes an empty instance; the opcode BUILD then sets its attributes."""
    new = object.__new__
    return _stand_in(kind.__name__, lambda _: new(kind))


def _called(make: Callable[..., Any], *kinds: type) -> _Inert:
    """Calls ``make`` with arguments of exactly these types."""

    def call(_: type, *arguments: Any) -> Any:
        if not all(type(argument) in kinds for argument in arguments):
            raise pickle.UnpicklingError(f"passes an odd argument to {make}")
        return make(*arguments)

    return _stand_in(make.__name__, call)


class _Member(tuple[Any]):
    """Wraps an enum member, since BUILD could overwrite the member's own attributes."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self[0] is other  # TensorProperties.__setstate__ only compares

    __hash__ = None  # type: ignore[assignment]


def _members(kind: type[Enum]) -> Callable[[Any], _Member]:
    """Looks up a wrapped member by its value: enums are pickled as calls with a value."""
    return {member.value: _Member((member,)) for member in kind}.__getitem__


class _LateWriteItem(planner.WriteItem):
    """Becomes torch's ``WriteItem`` when its attributes are set, with enum members unwrapped."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "__class__", planner.WriteItem)
        for name, value in state.items():
            vars(self)[name] = value[0] if type(value) is _Member else value


def _late(kind: type) -> _Inert:
    """A stand-in for tensor properties that a newer torch may have written.

    Their state is a tuple without names, to which torch appends: up to torch 2.14 it has 5 values,
    2.15 adds ``strides``. torch's ``__setstate__`` reads the states of older
    versions but not of newer ones, so it gets as many values as this torch has fields. The rest is
    safe to drop: dtype and shape come first, and each record in the files describes itself.
    """
    known = len(dataclasses.fields(kind))

    def set_state(properties: Any, state: tuple[Any, ...]) -> None:
        properties.__class__ = kind
        properties.__setstate__(state[:known])

    return _empty(type(kind.__name__, (kind,), {"__setstate__": set_state}))


class OtherPath:
    """A path of another library, as the text that it was saved with."""

    _path = ""

    def __fspath__(self) -> str:
        return str(self._path)

    __str__ = __fspath__


def _of_loaded(full: str) -> _Inert | None:
    """A stand-in for a class in ``_OF_OTHERS``; nothing is imported because a file names it."""
    if full not in _OF_OTHERS:
        return None
    module_name, _, name = full.rpartition(".")
    kind: Any = vars(sys.modules.get(module_name, object)).get(name)
    # No code of the class may run. _empty calls none; BUILD would call __setstate__.
    return _empty(kind) if isinstance(kind, type) and not hasattr(kind, "__setstate__") else None


# ------------------------------------------------------------------------------------ the table

_DATA_CLASSES: Final[tuple[type, ...]] = (
    metadata.Metadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata.TensorStorageMetadata,
    metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata,
    # Megatron keeps its save plans in the metadata.
    planner.SavePlan,
    planner.TensorWriteData,
)
#: The same, of :mod:`paraload.core.compat`: not every torch has them.
_OTHER_DATA_CLASSES: Final = ("StorageInfo", "HFStorageInfo", "StoragePrefix", "BytesIOWriteData")
_ENUMS: Final = ("MemoryFormatEncoding", "OldMemoryFormatEncoding")
#: Classes of other writers, and what stands for them, so that reading needs no package of theirs.
_INSTEAD: Final[dict[str, type]] = {
    "multistorageclient.pathlib.MultiStoragePath": OtherPath,
    # The same attributes as torch's.
    "olmo_core.distributed.checkpoint.filesystem._StorageInfo": compat.StorageInfo,
}
#: Classes of other writers that only hold attributes.
_OF_OTHERS: Final = {
    "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata",
    "megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlan",
}


def _stand_ins() -> dict[str, Any]:
    """Full name -> stand-in; "*" stands for any module."""
    table: dict[str, Any] = {_full_name(kind): _empty(kind) for kind in _DATA_CLASSES}
    table |= {
        compat.torch_name(name): _empty(getattr(compat, name)) for name in _OTHER_DATA_CLASSES
    }
    table |= {name: _empty(kind) for name, kind in _INSTEAD.items()}
    table[_full_name(metadata.TensorProperties)] = _late(metadata.TensorProperties)
    table[compat.torch_name("OldTensorProperties")] = _late(compat.OldTensorProperties)
    table |= {compat.torch_name(name): _members(getattr(compat, name)) for name in _ENUMS}
    table[_full_name(planner.WriteItemType)] = _members(planner.WriteItemType)
    table[_full_name(planner.WriteItem)] = _empty(_LateWriteItem)
    # Files of old torch versions name the package's first home. Importing that alias would make a
    # second set of classes; the file means the first.
    table |= {
        name.replace(".checkpoint.", "._shard.checkpoint.", 1): stand_in
        for name, stand_in in table.items()
        if name.startswith("torch.distributed.checkpoint.")
    }
    # dtypes, layouts and memory formats are immutable.
    layouts: dict[str, torch.layout] = {}
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            table[f"torch.{name}"] = value
        if isinstance(value, torch.layout):
            layouts[str(value)] = value
        if isinstance(value, torch.memory_format):
            # They have no module, so pickle names the first loaded module that imports torch.
            table[f"*.torch.{name}"] = value
    is_posix = os.name == "posix"
    for home in ("pathlib", "pathlib._local"):  # the latter is Python 3.13's
        table |= {
            f"{home}.PosixPath": _called(PosixPath if is_posix else PurePosixPath, str),
            f"{home}.WindowsPath": _called(PureWindowsPath if is_posix else WindowsPath, str),
            f"{home}.PurePosixPath": _called(PurePosixPath, str),
            f"{home}.PureWindowsPath": _called(PureWindowsPath, str),
        }
    return table | {
        "torch.serialization._get_layout": layouts.__getitem__,
        "torch.device": _called(torch.device, str, int),
        "collections.OrderedDict": _called(OrderedDict),
    }


_STAND_INS: Final = _stand_ins()
