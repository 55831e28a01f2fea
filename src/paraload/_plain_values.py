"""What a plain pickle may name, what it is made of, and how it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from paraload._plain_pickle import PlainPickle

__all__ = ["Call", "Made", "NotPlainError", "Table", "require"]


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
