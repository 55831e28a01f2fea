"""Records that only torch can read, and errors for what torch refuses to read."""

import io
import re
import sys
from collections.abc import Callable
from typing import Any, Final
from zipfile import ZipFile, is_zipfile

import torch

from paraload._text import printable
from paraload.core.compat import ArchiveReader
from paraload.core.pickle_names import is_class_of_package, is_of_data, is_of_standard_library
from paraload.core.records import TensorRecord, dtype_name
from paraload.errors import DAMAGED_HINT, FormatError, UnsafeObjectError
from paraload.geometry.runs import Shape

_SHOWN_OF_REASON: Final = 200
_SHOWN_OF_NAME: Final = 500
#: torch's messages about classes and functions that it refuses, and modules that it needs.
_REFUSED: Final = re.compile(
    r"Unsupported global: GLOBAL (.+?) was not an allowed global"
    r"|unsupported GLOBAL (.+?) whose module .+ is blocked",
    re.DOTALL,
)
_NOT_IMPORTED: Final = re.compile(r"[`\w. ]+ must be imported to load [\w ]+")


def load_tensor(data: memoryview) -> torch.Tensor:
    """``torch.load`` of a whole record, on the CPU, with ``weights_only=True``."""
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises anything for damaged bytes
        # Without torch's own text, which advises to run the code in the file.
        raise refusal(error, "tensor") or FormatError(
            "neither paraload nor torch can read the record",
            got=reason_of(error),
            hint=DAMAGED_HINT,
        ) from None
    if not isinstance(loaded, torch.Tensor):
        raise FormatError(
            "the metadata says that this is a tensor, but the file has another object",
            got=f"an object of type {type(loaded).__name__}",
            hint="File and metadata are of different checkpoints",
        )
    if _is_longer_than(data, loaded):
        raise FormatError(
            "the record claims more elements than it has bytes for",
            expected=f"{loaded.untyped_storage().nbytes()} bytes of elements",
            got=f"a record of {len(data)} bytes",
            hint=DAMAGED_HINT,
        )
    return loaded


def _is_longer_than(data: memoryview, tensor: torch.Tensor) -> bool:
    """Whether a plain ``tensor`` ends in memory that was never filled, as some versions allow."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return False
    if tensor.layout is not torch.strided or tensor.untyped_storage().nbytes() <= len(data):
        return False
    if not is_zipfile(io.BytesIO(data)):
        return True
    with ZipFile(io.BytesIO(data)) as archive:  # deflated, it may have more than it seems
        held = sum(info.file_size for info in archive.infolist())
    return tensor.untyped_storage().nbytes() > held


def can_open(data: memoryview) -> bool:
    """Whether torch recognises the bytes as one of its archives."""
    try:
        ArchiveReader(io.BytesIO(data))  # what torch.load itself opens
    except RuntimeError:
        return False
    return True


def refusal(error: Exception, what: str) -> UnsafeObjectError | None:
    """The error for an intact ``what`` that torch refuses to load; ``None`` for other errors."""
    text = str(error)
    if needed := _NOT_IMPORTED.search(text):
        problem = "needs modules that this program has not imported"
        hint = needed[0].strip()
    elif refused := _REFUSED.search(text):
        problem, hint = _explained(printable((refused[1] or refused[2])[:_SHOWN_OF_NAME]))
    else:
        return None
    return UnsafeObjectError(f"the {what} {problem}", hint=hint)


def _explained(name: str) -> tuple[str, str]:
    """What is wrong with a name that torch refuses, and the next step."""
    module, _, kind = name.rpartition(".")
    package = module.partition(".")[0]
    if is_of_data(module or "builtins", kind):  # torch leaves "builtins" out
        hint = (
            f"{_allowing(_data_recipe(name))} before loading, or use torch's DefaultLoadPlanner,"
            " which loads every object"
        )
        return f"is made with {name}, which torch does not allow by default", hint
    if is_class_of_package(module, kind):
        return _explained_class(module, kind)
    if module == "torch" and kind.isidentifier() and kind not in vars(torch):  # such as a new dtype
        hint = "A newer torch wrote the file, so load it with that; or the file is damaged"
        return f"needs {name}, which this version of torch does not have", hint
    hint = "Do not trust this file: it is damaged, or it was made to run code here"
    if package.isidentifier() and package != "torch" and not is_of_standard_library(module):
        hint = f"Do not trust this file, unless the documentation of {package} says how to load it"
    return f"names {name}, which torch refuses to load; nothing was executed", hint


def _explained_class(module: str, kind: str) -> tuple[str, str]:
    package = module.partition(".")[0]
    allowing = _allowing(f"{module}.{kind}")
    if module not in sys.modules:
        problem = "this program has not imported"
        hint = (
            f"`import {module if package in sys.modules else package}` before loading. If {package}"
            f" does not allow its classes itself: {allowing[0].lower()}{allowing[1:]} too"
        )
    elif hasattr(sys.modules[module], kind):
        problem = "this program has imported, but not allowed torch to load"
        hint = f"{allowing} before loading"
    else:
        problem = f"the imported module {module} does not have"
        hint = f"Install a version of {package} that has it"
        if module == "__main__":
            hint = "The script that saved the checkpoint defines it; define it in this script too"
    return f"needs the class {module}.{kind}, which {problem}", hint


def _allowing(names: str) -> str:
    return f"If you trust the file, call torch.serialization.add_safe_globals([{names}])"


def _data_recipe(name: str) -> str:
    if not name.startswith("numpy."):
        return name.removeprefix("builtins.")
    # An array needs all of these and the class of its dtype.
    core = name.removesuffix(".scalar").removesuffix("._reconstruct")
    core = core if core.endswith(".multiarray") else "numpy._core.multiarray"
    kinds = "numpy.ndarray, numpy.dtype, type(numpy.dtype('float64'))"
    return f"{kinds}, {core}._reconstruct, {core}.scalar"


def reason_of(error: Exception) -> str:
    """The reason in torch's message, without its advice to allow what is in the file."""
    text = str(error)
    _, is_unpickler, detail = text.partition("WeightsUnpickler error:")
    lines = (detail if is_unpickler else text).strip().splitlines()
    reason = f": {lines[0].strip()[:_SHOWN_OF_REASON]}" if lines else ""
    return printable(f"{type(error).__name__}{reason}")


def narrow_tensor(tensor: torch.Tensor, storage_offsets: Shape, lengths: Shape) -> torch.Tensor:
    """Cut a slice out of a tensor: the default of ``narrow_tensor=``."""
    for dim, (offset, length) in enumerate(zip(storage_offsets, lengths, strict=True)):
        if length < tensor.size(dim):  # as torch's own reader: a view only where one is needed
            tensor = tensor.narrow(dim, offset, length)
    return tensor


def narrow_with_hook(
    data: memoryview,
    layout: TensorRecord | None,
    hook: Callable[..., Any],
    storage_offsets: Shape,
    lengths: Shape,
) -> tuple[memoryview, str, Shape]:
    """Load a record and cut it with the hook; return the elements, their dtype and their shape."""
    try:
        loaded = load_tensor(data) if layout is None else _tensor_of(data, layout)
    except UnsafeObjectError as error:
        # Worker processes import neither __main__ nor what it imports.
        error.hint = f"{error.hint}. With process executors, do this in the module of the hook"
        raise
    tensor = hook(loaded, storage_offsets, lengths).detach().contiguous()
    nbytes = tensor.numel() * tensor.element_size()
    flat = tensor.reshape(-1).view(torch.uint8) if nbytes else torch.empty(0, dtype=torch.uint8)
    return memoryview(flat.numpy().data), dtype_name(tensor.dtype), tuple(tensor.shape)


def _tensor_of(data: memoryview, layout: TensorRecord) -> torch.Tensor:
    """The tensor in a record of a known layout."""
    dtype = getattr(torch, layout.dtype)
    if 0 in layout.shape:
        return torch.empty(layout.shape, dtype=dtype)
    elements = torch.frombuffer(bytearray(data[layout.start : layout.end]), dtype=dtype)
    return elements.as_strided(layout.shape, layout.strides, layout.storage_offset)
