"""The items of a load on their way from plan to planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from paraload._assembly import Assembly
    from paraload._destination import Destination
    from paraload._task import RecordSpec

__all__ = ["CompletedItem", "Item"]


class CompletedItem(NamedTuple):
    """An item that is read and checked, and now the planner's.

    Exactly one of the last three says where its content is.

    Attributes:
        item: its number in the plan.
        destination: what the planner resolved it to; ``None`` if it has not been asked yet.
        landed: the content is in the destination's tensor already.
        tensor: the content, to be copied into the target; valid only now.
        data: the content of a bytes item; valid only now.
    """

    item: int
    destination: Destination | None = None
    landed: bool = False
    tensor: Any = None
    data: memoryview | None = None


@dataclass(slots=True, kw_only=True)
class Item:
    """An item that is being read.

    Attributes:
        spec: what and where it is.
        ordered: its commit has a place in the order of torch's reader.
        destination: what the planner resolved it to, if that was asked ahead.
        planned_bytes: what it is expected to bring; for progress.
        assembly: how its record is being read, once that has been located.
        commit: hands it to the planner; set while it waits for its turn.
        is_failed: it has failed, and the error has been kept.
    """

    spec: RecordSpec
    ordered: bool
    destination: Destination | None
    planned_bytes: int
    assembly: Assembly | None = None
    commit: Callable[[], None] | None = None
    is_failed: bool = False
