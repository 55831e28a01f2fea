"""What the opcodes of plain data do to a :class:`~paraload._plain_pickle.PlainPickle`.

They are those that the pickler of Python 3.8 and newer writes for such data (protocols 4 and 5).
Nothing is imported; nothing is called but a ``Call`` of the caller's, with texts and numbers; keys
are texts and numbers; nothing is allocated that the bytes do not hold.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from paraload._plain_values import Call, Made, Table, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from paraload._plain_pickle import PlainPickle

__all__ = ["OPCODES", "STOP", "index_at", "number_at"]


def number_at(data: bytes, at: int) -> tuple[int, int]:
    """The number that the opcode here puts on the stack, and where the next opcode is.

    Raises:
        KeyError: it puts no whole number there.
        Exception: the bytes end before.
    """
    code = data[at]
    if code == _LONG1:
        end = at + 2 + data[at + 1]
        return int.from_bytes(data[at + 2 : end], "little", signed=True), end
    unpack, length = _NUMBERS[code]
    return unpack(data, at + 1)[0], at + length


def index_at(data: bytes, at: int) -> tuple[int, int]:
    """The place in the memo that the opcode here gets, and where the next opcode is.

    Raises:
        KeyError: it gets nothing from there.
        Exception: the bytes end before.
    """
    unpack, length = _INDICES[data[at]]
    return unpack(data, at + 1)[0], at + length


# ------------------------------------------------------------------------------ what they do


def _mark(it: PlainPickle) -> None:
    into = it.stack[-1] if it.stack else None
    it.mark()
    if isinstance(into, Table):
        into.take(it)


def _empty_dict(it: PlainPickle) -> None:
    key = it.stack[-1] if it.stack else None
    it.stack.append(it.tables.pop(key, {}) if type(key) is str else {})


def _setitem(it: PlainPickle) -> None:
    value, key = it.stack.pop(), it.stack.pop()
    _set(it.stack[-1], key, value)


def _setitems(it: PlainPickle) -> None:
    items = it.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
        _set(it.stack[-1], key, value)


def _set(into: Any, key: Any, value: Any) -> None:
    if isinstance(into, Table):
        into.put(key, value)
        return
    require(type(into) is dict and type(key) in _FLAT)
    into[key] = value


def _append(it: PlainPickle) -> None:
    value = it.stack.pop()
    require(type(it.stack[-1]) is list)
    it.stack[-1].append(value)


def _appends(it: PlainPickle) -> None:
    items = it.pop_mark()
    require(type(it.stack[-1]) is list)
    it.stack[-1].extend(items)


def _tuple(it: PlainPickle) -> None:
    items = it.pop_mark()
    it.stack.append(tuple(items))


def _tuple_of(it: PlainPickle, length: int) -> None:
    items = it.stack[-length:]
    require(len(items) == length)
    it.stack[-length:] = [tuple(items)]


def _text(it: PlainPickle, length_bytes: int) -> None:
    text = it.argument(it.number(length_bytes))
    it.stack.append(text.decode("utf-8", "surrogatepass"))


def _number(it: PlainPickle) -> None:
    number, it.at = number_at(it.data, it.at - 1)
    it.stack.append(number)


def _get(it: PlainPickle) -> None:
    index, it.at = index_at(it.data, it.at - 1)
    got = it.memo[index]
    # What a table was given stays as it was then.
    require(not isinstance(got, list | dict | Table))
    require(type(got) is not Made or got.state is not None)
    it.stack.append(got)


def _memoize(it: PlainPickle) -> None:
    it.memo[it.memo_length] = it.stack[-1]
    it.memo_length += 1


def _stack_global(it: PlainPickle) -> None:
    name, module = it.stack.pop(), it.stack.pop()
    require(type(name) is type(module) is str)
    it.stack.append(it.names[f"{module}.{name}"])


def _newobj(it: PlainPickle) -> None:
    arguments, kind = it.stack.pop(), it.stack.pop()
    require(type(kind) is type and type(arguments) is tuple and not arguments)
    it.stack.append(Made(kind))


def _reduce(it: PlainPickle) -> None:
    arguments, call = it.stack.pop(), it.stack.pop()
    require(type(call) is Call and type(arguments) is tuple)
    for argument in arguments:
        items = argument if type(argument) is tuple else (argument,)
        require(_FLAT.issuperset(map(type, items)))
    it.stack.append(call.make(*arguments))


def _build(it: PlainPickle) -> None:
    state = it.stack.pop()
    made = it.stack[-1]
    require(type(made) is Made and made.state is None)
    made.state = state


_PROTOCOLS: Final = (4, 5)
_FLAT: Final = frozenset({str, int})
#: Ends the pickle, and is obeyed by nobody.
STOP: Final = ord(".")
_LONG1: Final = 0x8A
#: Opcodes with a number of fixed length: how to read it, and how long both are.
_NUMBERS: Final[dict[int, tuple[Callable[[bytes, int], tuple[int]], int]]] = {
    ord("K"): (struct.Struct("<B").unpack_from, 2),
    ord("M"): (struct.Struct("<H").unpack_from, 3),
    ord("J"): (struct.Struct("<i").unpack_from, 5),
}
#: Likewise of those that get something from the memo.
_INDICES: Final[dict[int, tuple[Callable[[bytes, int], tuple[int]], int]]] = {
    ord("h"): (struct.Struct("<B").unpack_from, 2),
    ord("j"): (struct.Struct("<I").unpack_from, 5),
}
#: By opcode, what is done when the pickle stands behind it.
OPCODES: Final[dict[int, Callable[[PlainPickle], object]]] = {
    0x80: lambda it: require(it.number(1) in _PROTOCOLS),
    0x95: lambda it: it.argument(8),  # FRAME, which says how much to read ahead
    ord("N"): lambda it: it.stack.append(None),
    0x88: lambda it: it.stack.append(True),
    0x89: lambda it: it.stack.append(False),
    ord("K"): _number,
    ord("M"): _number,
    ord("J"): _number,
    _LONG1: _number,
    0x8C: lambda it: _text(it, 1),
    ord("X"): lambda it: _text(it, 4),
    ord(")"): lambda it: it.stack.append(()),
    ord("]"): lambda it: it.stack.append([]),
    ord("}"): _empty_dict,
    ord("("): _mark,
    ord("t"): _tuple,
    0x85: lambda it: _tuple_of(it, 1),
    0x86: lambda it: _tuple_of(it, 2),
    0x87: lambda it: _tuple_of(it, 3),
    ord("a"): _append,
    ord("e"): _appends,
    ord("s"): _setitem,
    ord("u"): _setitems,
    0x94: _memoize,
    ord("h"): _get,
    ord("j"): _get,
    0x93: _stack_global,
    0x81: _newobj,
    ord("R"): _reduce,
    ord("b"): _build,
}
