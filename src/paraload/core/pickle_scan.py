"""Bounds the memory that unpickling takes: scans a pickle's opcodes before they run.

    bytes --_PLAIN skips harmless opcodes--> the others, one by one --> fits | ExcessError

Python's unpickler grows its memo to twice the index that the opcode LONG_BINPUT names, and fills
it: ten bytes are enough for 64 GiB. BYTEARRAY8 allocates the length that it names before it checks
that the file has as many bytes. Writers never name an index or a length beyond the length of the
file. They never use DUP either, with which sixty bytes make a key that takes 2^60 steps to hash.
(The memo can build the same in more bytes; this scan does not detect that.)

If a frame ends inside an opcode, Python's unpickler drops the beginning of that opcode and runs
other opcodes than this scan has seen. So frames must hold whole opcodes, as those of Python's
pickler do.
"""

import pickle
import re
from typing import Final


class ExcessError(pickle.UnpicklingError):
    """The pickle asks for more memory than its length explains."""


def require_bounded_memory(data: bytes) -> None:
    """Check that no opcode asks for more memory than the length of the pickle explains.

    Raises:
        ExcessError: one does.
    """
    at = frame_end = 0
    while at < len(data):
        end = frame_end or len(data)
        at = _PLAIN.match(data, at, end).end()  # type: ignore[union-attr]
        if at == end:
            frame_end = 0
            continue
        code = data[at]
        if code in _LINES:
            at = _behind_lines(data, at + 1, _LINES[code])
        elif code in _SIZED:
            at = _behind_sized(data, at, _SIZED[code])
        elif code == _FRAME and not frame_end:
            frame_end = _behind_frame(data, at)
            at += _FRAME_BYTES
        elif code == _DUP:
            raise ExcessError("doubles an entry of the stack, which no writer does")
        elif frame_end and code != _STOP:
            raise ExcessError("a frame ends inside of an opcode, or begins inside of another frame")
        else:
            return  # STOP, or no opcode: the unpickler ends here too
        if frame_end and at > frame_end:
            raise ExcessError("a frame ends inside of an opcode")


def _behind_frame(data: bytes, at: int) -> int:
    end = at + _FRAME_BYTES + int.from_bytes(data[at + 1 : at + _FRAME_BYTES], "little")
    if end > len(data):
        raise ExcessError(f"truncated: {len(data)} bytes of {end} or more")
    return end


def _behind_sized(data: bytes, at: int, size: int) -> int:
    number = int.from_bytes(data[at + 1 : at + 1 + size], "little")
    if number > len(data):
        raise ExcessError(f"asks for {number} bytes or entries in a file of {len(data)} bytes")
    return at + 1 + size + (0 if data[at] == _LONG_BINPUT else number)


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
_STOP: Final = ord(".")
_FRAME: Final = 0x95
_FRAME_BYTES: Final = 9
_LONG_BINPUT: Final = ord("r")
#: Opcodes whose arguments are lines of text, and how many.
_LINES: Final = dict.fromkeys(b"FILSVPgp", 1) | dict.fromkeys(b"ci", 2)
#: Opcodes whose argument begins with a number, and its bytes: LONG_BINPUT's index, or a length.
_SIZED: Final = (
    dict.fromkeys(b"UC\x8a", 1) | dict.fromkeys(b"rTXB\x8b", 4) | dict.fromkeys(b"\x8d\x8e\x96", 8)
)


def _short_texts(code: bytes, zeros: bytes) -> bytes:
    """Texts below 256 bytes: an alternative for each length."""
    lengths = (b"\\x%02x%b.{%d}" % (length, zeros, length) for length in range(256))
    return b"%b(?:%b)" % (code, b"|".join(lengths))


#: Opcodes without an argument.
_BARE: Final = rb"[(01NQR\])}abdelostu\x81\x85-\x89\x8f-\x94\x97\x98]*+"
#: These, and those with numbers, short texts, and entries of a memo of at most 16 MiB: nearly all
#: that a writer uses.
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
