"""A pickle of plain data, read opcode by opcode; and what it says again and again, at a glance.

    opcodes --obeyed--> stack and memo --> texts, numbers, tuples, lists, dicts, ``Made`` objects
                |
                `--behind the "(" of a Table--> Table.take: the pairs that are like earlier ones

All that a pickle can do here is to take the time that reading it takes: see ``_plain_opcodes``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paraload._plain_opcodes import OPCODES, STOP
from paraload._plain_values import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from paraload._plain_values import Table

__all__ = ["PlainPickle"]


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
        while self.data[self.at] != STOP:
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
        OPCODES[code](self)
