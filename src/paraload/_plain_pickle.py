"""A pickle of plain data, read opcode by opcode; and what it says again and again, at a glance.

    opcodes --obeyed--> stack and memo --> texts, numbers, tuples, lists, dicts, ``Made`` objects
                |
                `--behind the "(" of a Table--> Table.take: the pairs that are like earlier ones

It obeys what the pickler of Python 3.8 and newer writes for such data (protocols 4 and 5). Nothing
is imported; nothing is called but a :class:`Call` of the caller's, with texts and numbers; keys are
texts and numbers; nothing is allocated that the bytes do not hold. So all that a pickle can do here
is to take the time that reading it takes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "Call",
    "Made",
    "NotPlainError",
    "PlainPickle",
    "Table",
    "index_at",
    "number_at",
    "require",
]


class NotPlainError(Exception):
    """There is more to this file, or less, than torch's own writer puts into one."""


def require(holds: bool) -> None:  # noqa: FBT001 - reads like an assertion
    """Insist.

    Raises:
        NotPlainError: it does not hold.
    """
    if not holds:
        raise NotPlainError


class Call:
    """What a pickle may call.

    Args:
        make: takes texts, whole numbers, and tuples of those.
    """

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class Made:
    """An object of a class that the pickle names.

    Args:
        kind: the class.

    Attributes:
        state: usually its attributes; ``None`` if it has none.
    """

    __slots__ = ("kind", "state")

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.state: Any = None


class Table:
    """A dict with many pairs that are alike."""

    def put(self, key: Any, value: Any) -> None:
        """Take a pair."""
        raise NotImplementedError

    def take(self, pickle: PlainPickle) -> None:
        """Take the pairs that begin where the pickle is, and leave it behind them."""
        raise NotImplementedError


class PlainPickle:
    """The pickle, and how far it is read.

    Args:
        data: its bytes.
        names: by full name, what the pickle gets: a class, a :class:`Call`, or a constant.
        tables: by key, the tables that are the values.

    Attributes:
        at: where the next opcode is.
        stack: the things behind the last mark.
        below: the stacks before each of the marks.
        memo: what is numbered and may be referred to.
        memo_length: the next number.
    """

    def __init__(self, data: bytes, names: Mapping[str, Any], tables: Mapping[str, Table]) -> None:
        self.data = data
        self.names = names
        self.tables = dict(tables)
        self.at = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.memo_length = 0

    def load(self) -> Any:
        """The object.

        Raises:
            NotPlainError: something in it is not plain.
            Exception: whatever damaged bytes make of it.
        """
        while self.data[self.at] != _STOP:
            self._obey()
        require(not self.below)
        [found] = self.stack
        return found

    def pair(self, is_whole: Callable[[Any, int], bool]) -> tuple[Any, Any, set[int]]:
        """Read a key and its value on a stack of their own.

        Args:
            is_whole: whether the second thing on that stack, before this opcode, is the value.

        Returns:
            The two, and where their opcodes began, with that of the next.
        """
        begins = {self.at}
        self.mark()
        own = self.stack
        while len(own) != 2 or not is_whole(own[1], self.data[self.at]):  # noqa: PLR2004 - a pair
            self._obey()
            begins.add(self.at)
            require(self.below != [])
        require(self.stack is own)
        key, value = self.pop_mark()
        return key, value, begins

    def mark(self) -> None:
        """Begin a stack on top of the others."""
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """What is on it, and go back to the one before."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    def argument(self, length: int) -> bytes:
        """So many bytes."""
        argument = self.data[self.at : self.at + length]
        require(len(argument) == length)
        self.at += length
        return argument

    def number(self, length: int) -> int:
        """A number of so many bytes."""
        return int.from_bytes(self.argument(length), "little")

    def _obey(self) -> None:
        code = self.data[self.at]
        self.at += 1
        _OPCODES[code](self)


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


# ------------------------------------------------------------------------------------- opcodes


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
_STOP: Final = ord(".")
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
_OPCODES: Final[dict[int, Callable[[PlainPickle], object]]] = {
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
