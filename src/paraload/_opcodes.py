"""What a pickle asks of memory, told from its opcodes alone, before anything obeys them.

    bytes --_PLAIN skips what asks for nothing--> the others, one by one --> fits | ExcessError

Python's unpickler grows its memo to twice the index that the opcode LONG_BINPUT names, and fills
it: ten bytes are enough for 64 GiB. BYTEARRAY8 allocates the length that it names before it looks
whether the file has as much. No writer names an index or a length beyond the length of its file.
Nor does any use DUP, with which sixty bytes make a key that takes 2^60 steps to hash. (The same can
be built with the memo, in more bytes; that is not told from here.)
"""

from __future__ import annotations

import pickle
import re
from typing import Final

__all__ = ["ExcessError", "require_modest"]


class ExcessError(pickle.UnpicklingError):
    """The pickle asks for more memory than its length explains."""


def require_modest(data: bytes) -> None:
    """No opcode of the pickle asks for memory that its length does not explain.

    Raises:
        ExcessError: one does.
    """
    at = frame_end = 0
    while (at := _PLAIN.match(data, at).end()) < len(data):  # type: ignore[union-attr]
        code = data[at]
        if code in _LINES:
            at = _behind_lines(data, at + 1, _LINES[code])
            continue
        if code == _DUP:
            raise ExcessError("doubles an entry of the stack, which no writer does")
        size = _SIZED.get(code)
        if size is None:
            return  # STOP, or no opcode: the unpickler ends here too
        number = int.from_bytes(data[at + 1 : at + 1 + size], "little")
        if code == _FRAME:
            if at < frame_end:
                raise ExcessError("begins a frame inside of another one, which no writer does")
            frame_end = at + 1 + size + number
            if frame_end > len(data):
                raise ExcessError(f"truncated: {len(data)} bytes of {frame_end} or more")
        elif number > len(data):
            raise ExcessError(f"asks for {number} bytes or entries in a file of {len(data)} bytes")
        at += 1 + size + (0 if code in {_FRAME, _LONG_BINPUT} else number)


def _behind_lines(data: bytes, at: int, lines: int) -> int:
    is_put = data[at - 1] == _PUT
    for _ in range(lines):
        end = data.find(b"\n", at)
        if end < 0:
            return len(data)
        # As many digits as the length has are enough for every index that a writer can use.
        if is_put and end - at > len(str(len(data))):
            raise ExcessError("names an entry of the memo that the file has no room for")
        at = end + 1
    return at


_DUP: Final = ord("2")
_PUT: Final = ord("p")
_FRAME: Final = 0x95
_LONG_BINPUT: Final = ord("r")
#: Opcodes whose arguments are lines of text, and how many.
_LINES: Final = dict.fromkeys(b"FILSVPgp", 1) | dict.fromkeys(b"ci", 2)
#: Opcodes with a number of so many bytes: the index of LONG_BINPUT, for the others a length.
_SIZED: Final = (
    dict.fromkeys(b"UC\x8a", 1)
    | dict.fromkeys(b"rTXB\x8b", 4)
    | dict.fromkeys(b"\x8d\x8e\x95\x96", 8)
)


def _short_texts(code: bytes, zeros: bytes) -> bytes:
    """Texts below 256 bytes; sixteen by sixteen, since alternatives are tried in turn."""
    groups = []
    for first in range(0, 256, 16):
        lengths = range(first, first + 16)
        texts = b"|".join(b"\\x%02x%b.{%d}" % (n, zeros, n) for n in lengths)
        groups.append(b"(?=[\\x%02x-\\x%02x])(?:%b)" % (first, first + 15, texts))
    return b"%b(?:%b)" % (code, b"|".join(groups))


#: Opcodes without an argument.
_BARE: Final = rb"[(01NQR\])}abdelostu\x81\x85-\x89\x8f-\x94\x97\x98]*+"
#: And those with numbers, short texts, and entries of a memo of at most 16 MiB: nearly all that a
#: writer uses.
_PLAIN: Final = re.compile(
    _BARE
    + rb"(?:(?:[hKq\x80\x82].|[jJ\x84]....|"
    + _short_texts(rb"\x8c", b"")
    + rb"|[M\x83]..|r..[\x00-\x0f]\x00|G........|"
    + _short_texts(b"X", rb"\x00\x00\x00")
    + rb")"
    + _BARE
    + rb")*+",
    re.DOTALL,
)
