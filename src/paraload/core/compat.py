"""What differs between versions of torch: the one module that knows versions and private names.

    from paraload.core.compat import StorageInfo

``_NAMES`` lists every name of torch that a torch from 2.6 on may lack, because it came later or
because it is private and can go. A name is looked up when it is first imported from here:

    torch has it             it is used
    it has a replacement     that is used; a TorchVersionWarning says what is lost with it, if this
                             torch is new enough to have the name
    it has none              IncompatibleTorchError, which names it and the version of torch

So a torch that was never tested works as far as it can. Importing this module imports no torch.
"""

import importlib
import re
import warnings
from importlib.util import find_spec
from typing import IO, Any, Final, NamedTuple

from paraload.errors import IncompatibleTorchError, InvalidOptionError, TorchVersionWarning

_DCP: Final = "torch.distributed.checkpoint"
_OLD_PROPERTIES: Final = "torch.distributed._shard.sharded_tensor.metadata"
_NOTHING: Final = object()


def release() -> tuple[int, int]:
    """Major and minor version of the installed torch."""
    numbers = re.match(r"(\d+)\.(\d+)", str(_find("torch", "__version__")))
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


# ------------------------------------------------------------------------------- replacements


class Attributes:
    """Any data class that this torch lacks; the restricted unpickler sets its attributes."""


class _NoTransforms:
    """No reader has transforms of this class."""


class _ZStandard:
    """Stands for torch's extension of the same name, which only names a decoder here."""


class _Registry:
    """What torch's ``ExtensionRegistry`` finds, unless the user registers more."""

    def from_descriptor_list(self, descriptors: list[str]) -> list[_ZStandard]:
        for descriptor in descriptors:
            name, _, version = descriptor.partition("/")
            is_known = name == "stream.zstd" and version.partition(".")[0] == "1"
            if not is_known or find_spec("zstandard") is None:
                raise ValueError(f"unknown extension {descriptor!r}")
        return [_ZStandard() for _ in descriptors]


# ------------------------------------------------------------------------------------- names


class _Name(NamedTuple):
    """A name of torch.

    Attributes:
        since: the first torch that has it.
        instead: what takes its place; a tuple is another name of torch, by module and path.
        lost: what does not work with that; "" if nothing is lost.
    """

    module: str
    path: str
    since: tuple[int, int] = (2, 6)
    instead: Any = _NOTHING
    lost: str = ""


_EXTENSIONS: Final = "extensions of torch other than stream.zstd"

_NAMES: Final = {
    # Nothing can take the place of these.
    "StorageInfo": _Name(f"{_DCP}.filesystem", "_StorageInfo"),
    "MemoryFormatEncoding": _Name(f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    "load_state_dict": _Name(f"{_DCP}.state_dict_loader", "_load_state_dict"),
    "flatten_state_dict": _Name(f"{_DCP}._nested_dict", "flatten_state_dict"),
    "unflatten_state_dict": _Name(f"{_DCP}._nested_dict", "unflatten_state_dict"),
    "set_element": _Name(f"{_DCP}._nested_dict", "set_element"),
    "is_fake": _Name("torch._subclasses.fake_tensor", "is_fake"),
    "is_zero_tensor": _Name("torch", "Tensor._is_zerotensor"),
    "count_dispatch_modes": _Name("torch._C", "_len_torch_dispatch_stack"),
    "disable_dispatch_modes": _Name("torch.utils._python_dispatch", "_disable_current_modes"),
    "ArchiveReader": _Name("torch._C", "PyTorchFileReader"),
    # Classes that `.metadata` files of some writers name.
    "StoragePrefix": _Name(f"{_DCP}.filesystem", "_StoragePrefix", instead=Attributes),
    "HFStorageInfo": _Name(f"{_DCP}._hf_utils", "_HFStorageInfo", (2, 8), Attributes),
    "BytesIOWriteData": _Name(f"{_DCP}.planner", "BytesIOWriteData", (2, 8), Attributes),
    "OldTensorProperties": _Name(
        _OLD_PROPERTIES, "TensorProperties", instead=(f"{_DCP}.metadata", "TensorProperties")
    ),
    "OldMemoryFormatEncoding": _Name(
        _OLD_PROPERTIES, "MEM_FORMAT_ENCODING", instead=(f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING")
    ),
    # Stream transforms.
    "ReaderTransforms": _Name(
        f"{_DCP}.filesystem",
        "_StorageReaderTransforms",
        (2, 7),
        _NoTransforms,
        "extensions that are registered with a reader",
    ),
    "ExtensionRegistry": _Name(
        f"{_DCP}._extension", "ExtensionRegistry", (2, 7), _Registry, _EXTENSIONS
    ),
    "StreamTransformExtension": _Name(
        f"{_DCP}._extension", "StreamTransformExtension", (2, 7), _NoTransforms, _EXTENSIONS
    ),
    "ZStandard": _Name(f"{_DCP}._extension", "ZStandard", (2, 7), _ZStandard),
    "FsspecReader": _Name(
        f"{_DCP}.fsspec_filesystem",
        "FsspecReader",
        (2, 15),
        (f"{_DCP}._fsspec_filesystem", "FsspecReader"),
    ),
    # Base classes of readers, and their steps that subclasses override.
    "HuggingFaceStorageReader": _Name(
        _DCP,
        "HuggingFaceStorageReader",
        (2, 8),
        (_DCP, "FileSystemReader"),
        "isinstance(reader, HuggingFaceStorageReader)",
    ),
    "stock_slice_file": _Name(
        _DCP, "FileSystemReader._slice_file", instead=None, lost="overriding _slice_file"
    ),
    "stock_process_read_request": _Name(
        _DCP,
        "HuggingFaceStorageReader._process_read_request",
        (2, 9),
        None,
        "overriding _process_read_request",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = _value_of(_NAMES[name])
    return value


def torch_name(name: str) -> str:
    """The full name that files have for a name of this module."""
    return f"{_NAMES[name].module}.{_NAMES[name].path}"


def _value_of(name: _Name) -> Any:
    try:
        return _find(name.module, name.path)
    except (ImportError, AttributeError) as error:
        version = _find("torch", "__version__")
        gone = f"torch {version} has no {name.module}.{name.path}"
        if name.instead is _NOTHING:
            raise IncompatibleTorchError(
                f"{gone}, which paraload needs. Install a version of torch that"
                " docs/torch-versions.md lists, or a newer paraload"
            ) from error
        if name.lost and release() >= name.since:
            warnings.warn(
                f"{gone}. What no longer works: {name.lost}. paraload was not tested with this"
                " version of torch; docs/torch-versions.md lists those that it was tested with",
                TorchVersionWarning,
                stacklevel=3,  # the module that imports the name
            )
    return _find(*name.instead) if isinstance(name.instead, tuple) else name.instead


def _find(module: str, path: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


# --------------------------------------------------------------------------------- behaviour


def init_file_system_reader(reader: Any, path: Any, registry: Any) -> None:
    """``FileSystemReader.__init__``, which takes no registry before torch 2.7."""
    if registry is not None and release() < (2, 7):
        raise InvalidOptionError("_extension_registry= needs torch 2.7 or newer")
    init = _find(_DCP, "FileSystemReader").__init__
    init(reader, path, *(() if registry is None else (registry,)))


def metadata_path(reader: Any, rank: int | None) -> Any:
    """Where a ``FileSystemReader`` finds its metadata; torch has a method for it from 2.9 on."""
    own = getattr(reader, "_get_metadata_path", None)
    if own is not None:
        return own(rank)
    return reader.fs.concat_path(reader.path, ".metadata" if rank is None else f"__{rank}.metadata")


def sliceable(stream: IO[bytes], end: int) -> Any:
    """A stream from which torch's ``_slice_file`` can cut an item that ends at ``end``.

    Before torch 2.7, reading what that returns goes on to the end of the file.
    """
    return stream if release() >= (2, 7) else _Ending(stream, end)


class _Ending:
    """A stream of which a read without a size stops at ``end``."""

    def __init__(self, stream: IO[bytes], end: int) -> None:
        self._stream = stream
        self._end = end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = max(0, self._end - self._stream.tell())
        return self._stream.read(size)


def save_alone() -> dict[str, bool]:
    """Keywords for ``dcp.save`` and ``dcp.load`` in one process; torch 2.6 has none."""
    return {"no_dist": True} if release() >= (2, 7) else {}
