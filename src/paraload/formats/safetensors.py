"""PURE: the header of a safetensors file. No I/O, no torch.

    [0, 8)        n, the length of the JSON, little-endian
    [8, 8 + n)    JSON; "__metadata__" maps strings to strings, every other name is a tensor:
                  {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    [8 + n, end)  the tensors, row-major and little-endian; data_offsets count from 8 + n

The data have no gaps, no overlaps and nothing after them, so a header that fits its file is almost
certainly the one that was written with it. The format has no checksum.

The rules are those of https://github.com/huggingface/safetensors. Here, as its documentation
demands and its own reader does not, a name may occur only once and the JSON begins with "{".
"""

import json
import reprlib
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from paraload._text import counted
from paraload.core.records import DTYPE_BYTES, TensorRecord
from paraload.errors import FormatError, ShortFileError
from paraload.formats import NeedBytes, Unsupported
from paraload.geometry.runs import Shape, contiguous_strides

#: The format's own limit.
MAX_HEADER_BYTES: Final = 100_000_000
LENGTH_BYTES: Final = 8

_DTYPES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
#: Dtypes of the format that torch does not have.
_NOT_IN_TORCH: Final = frozenset({"F6_E2M3", "F6_E3M2"})
#: Two elements of F4 are one element of torch's dtype, along the last dimension.
_PAIRED: Final = "F4"
_MOST_ELEMENTS: Final = 1 << 60

#: First bytes of other files that turn up instead, what they are, and what to do about it.
_OTHER_FILES: Final = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "Fetch the file: git lfs pull, or download it again",
    ),
    (b"PK\x03\x04", "a zip archive, probably of torch.save", None),
    (b"GGUF", "a GGUF file", None),
    (b"<", "an HTML or XML page, probably a server's error", "Download the file again"),
)
_DAMAGED: Final = "The file is damaged; download or save it again"
_CUT: Final = "The download was cut short or is still running; fetch the file again"


class StoredTensor(NamedTuple):
    """One tensor: bytes ``[start, end)`` of the file; its layout is relative to ``start``."""

    name: str
    start: int
    end: int
    layout: TensorRecord


class Header(NamedTuple):
    """What a header says; ``tensors`` are in the order of their data."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]


class SafetensorsFormat:
    """:class:`~paraload.formats.ItemFormat` of tensors whose layout came with the metadata."""

    first_bytes = LENGTH_BYTES
    has_checksum = False

    def locate(self, head: bytes, record_bytes: int) -> TensorRecord | NeedBytes | Unsupported:  # noqa: ARG002
        return Unsupported("the layout of a safetensors tensor is in the header of its file")

    def read_trailer(self, trailer: bytes | memoryview, payload_bytes: int) -> int | None:  # noqa: ARG002
        return 0


def header_end(head: bytes, file_bytes: int, *, path: str) -> int:
    """Where the header ends and the data begin.

    Args:
        head: the first bytes of the file: at least 8, or all of them.
        file_bytes: length of the file.
        path: for errors.

    Raises:
        ShortFileError: the file ends before its header does.
        FormatError: it is not a safetensors file.
    """
    if file_bytes < LENGTH_BYTES:
        raise ShortFileError(
            "the file is empty" if not file_bytes else "the file ends too early",
            path=path,
            expected="a safetensors file",
            got=counted(file_bytes, "byte"),
            hint=_CUT,
        )
    (nbytes,) = struct.unpack_from("<Q", head)
    begins_right = head[LENGTH_BYTES : LENGTH_BYTES + 1] in {b"{", b""}
    if nbytes > MAX_HEADER_BYTES or not begins_right or nbytes < len("{}"):
        raise _not_safetensors(head, nbytes, path)
    end = LENGTH_BYTES + int(nbytes)
    if end > file_bytes:
        raise ShortFileError(
            "the file ends inside its header",
            path=path,
            expected=f"at least {end} bytes",
            got=counted(file_bytes, "byte"),
            hint=_CUT,
        )
    return end


def other_file(head: bytes, path: str) -> FormatError | None:
    """The error if ``head`` is how another well-known kind of file begins."""
    for magic, what, hint in _OTHER_FILES:
        if head.startswith(magic):
            return FormatError(f"this is {what}", path=path, expected="safetensors", hint=hint)
    return None


def _not_safetensors(head: bytes, nbytes: int, path: str) -> FormatError:
    return other_file(head, path) or FormatError(
        "this is not a safetensors file",
        path=path,
        expected=f"a JSON header of at most {MAX_HEADER_BYTES} bytes",
        got=f"one of {nbytes} bytes that begins with {head[LENGTH_BYTES:][:8]!r}",
        hint=_DAMAGED,
    )


def parse_header(head: bytes, file_bytes: int, *, path: str) -> Header:
    """All tensors of a file, after checking that they account for each of its bytes.

    Args:
        head: the first bytes of the file, up to :func:`header_end` or further.
        file_bytes: length of the file.
        path: for errors.

    Raises:
        ShortFileError: the file ends before its data do.
        FormatError: the header violates the format, or needs a dtype that torch does not have.
    """
    data_start = header_end(head, file_bytes, path=path)
    try:
        entries = strict_json(head[LENGTH_BYTES:data_start])
        metadata = _metadata(entries.pop("__metadata__", None))
    except ValueError as error:
        what = f"the header is not valid: {error}"
        raise FormatError(what, path=path, start=0, end=data_start, hint=_DAMAGED) from None
    tensors = []
    for name, entry in entries.items():
        try:
            tensors.append(_tensor(name, entry, data_start))
        except _FaultError as fault:
            raise fault.of(name, path) from None
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _require_seamless(tensors, data_start, file_bytes, path=path)
    return Header(tuple(tensors), metadata)


def strict_json(data: bytes) -> dict[str, Any]:
    """The object in ``data``.

    Raises:
        ValueError: it is not an object, has a name twice, or is not strict JSON.
    """
    try:
        text = data.decode()
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if "\\u" in text:  # only an escape can be an unpaired surrogate
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("a string has half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it is a {type(found).__name__}, not an object")  # noqa: TRY004
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{reprlib.repr(twice)} occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _metadata(found: Any) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("__metadata__ must map strings to strings")
    return found


class _FaultError(Exception):
    """What is wrong with a tensor, what was expected, what is there, and the next step."""

    def __init__(self, problem: str, expected: str, got: str, hint: str = _DAMAGED) -> None:
        super().__init__(problem, expected, got, hint)

    def of(self, name: str, path: str) -> FormatError:
        problem, expected, got, hint = self.args
        return FormatError(problem, fqn=name, path=path, expected=expected, got=got, hint=hint)


def _tensor(name: str, entry: Any, data_start: int) -> StoredTensor:
    start, end = _offsets(entry)
    dtype, shape = _dtype_and_shape(entry)
    layout = _layout(dtype, shape)
    if end - start != layout.end:
        raise _FaultError(
            "the length of its data does not match its dtype and shape",
            f"{counted(layout.end, 'byte')} for {dtype} of shape {reprlib.repr(list(shape))}",
            f"data_offsets {[start, end]}",
        )
    return StoredTensor(name, data_start + start, data_start + end, layout)


def _offsets(entry: Any) -> tuple[int, int]:
    found = entry.get("data_offsets") if isinstance(entry, dict) else None
    match found:
        case [int(start), int(end)] if type(start) is type(end) is int and 0 <= start <= end:
            return start, end
    expected = "data_offsets [start, end]"
    raise _FaultError("the header does not say where it is", expected, reprlib.repr(found))


def _dtype_and_shape(entry: dict[str, Any]) -> tuple[str, Shape]:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        known = isinstance(dtype, str) and dtype in _NOT_IN_TORCH
        problem = "torch has no such dtype" if known else "unknown dtype"
        hint = "Convert the file" if known else "The file is damaged, or newer than this reader"
        raise _FaultError(problem, f"one of {', '.join(_DTYPES)}", reprlib.repr(dtype), hint)
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise _FaultError("the header has no valid shape", "a list of sizes", reprlib.repr(shape))
    return dtype, tuple(shape)


@lru_cache(maxsize=4096)
def _layout(dtype: str, shape: Shape) -> TensorRecord:
    """Equal tensors share one layout, and so do the plans of their items."""
    if dtype == _PAIRED:
        if not shape or shape[-1] % 2:
            raise _FaultError(
                "a row must be whole bytes", "an even last size", reprlib.repr(list(shape))
            )
        shape = (*shape[:-1], shape[-1] // 2)
    elements = 1
    for size in shape:  # one by one: a product of a million sizes takes forever
        elements *= max(size, 1)
        if elements > _MOST_ELEMENTS:
            raise _FaultError("the shape is impossible", "a tensor", reprlib.repr(list(shape)))
    itemsize = DTYPE_BYTES[_DTYPES[dtype]]
    return TensorRecord(
        dtype=_DTYPES[dtype],
        itemsize=itemsize,
        shape=shape,
        strides=contiguous_strides(shape),
        storage_offset=0,
        start=0,
        end=0 if 0 in shape else elements * itemsize,
    )


def _require_seamless(
    tensors: list[StoredTensor], data_start: int, file_bytes: int, *, path: str
) -> None:
    end, last = data_start, None
    for tensor in tensors:
        if tensor.start != end:
            what = "leave a gap after" if tensor.start > end else "overlap"
            before = "the header" if last is None else f"those of {last!r}"
            raise FormatError(
                f"its data {what} {before}",
                fqn=tensor.name,
                path=path,
                expected=f"data from byte {end} of the file on",
                got=f"bytes [{tensor.start}, {tensor.end})",
                hint=_DAMAGED,
            )
        end, last = tensor.end, tensor.name
    if end > file_bytes:
        raise ShortFileError(
            "the file ends before its data do",
            path=path,
            expected=f"{end} bytes",
            got=f"{file_bytes} bytes, {end - file_bytes} too few",
            hint=_CUT,
        )
    if end < file_bytes:
        raise FormatError(
            f"{counted(file_bytes - end, 'byte')} after the data of the last tensor",
            path=path,
            expected=f"{end} bytes",
            got=f"{file_bytes} bytes",
            hint="Something was appended to the file; safetensors itself refuses it too",
        )
