"""The items of a load on their way from plan to planner."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from paraload.core.tasks import RecordSpec

if TYPE_CHECKING:
    from paraload.destinations.host import Destination, Destinations

_ITEM: Final = operator.attrgetter("item")


class CompletedItem(NamedTuple):
    """An item that is read and checked, and now the planner's.

    Exactly one of the last three says where its content is.

    Attributes:
        item: its number in the plan.
        destination: what the planner resolved it to; ``None`` if it has not been asked yet.
        landed: the content is in the destination's tensor already.
        tensor: the content, to be copied into the target; valid only now.
        data: the content of a bytes item; valid only now.
        copy: copies the tensor into a target, and waits until it is there.
    """

    item: int
    destination: Destination | None = None
    landed: bool = False
    tensor: Any = None
    data: memoryview | None = None
    copy: Callable[..., None] | None = None

    def copy_into(self, target: Any) -> None:
        """Copy the tensor into ``target``, unless it is there already."""
        if self.copy is not None and not self.landed:
            self.copy(target, self.tensor, item=self.item)


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
    assembly: Any = None  # an Assembly, whose module imports this one
    commit: Callable[[], None] | None = None
    is_failed: bool = False


class Items:
    """All items of a load; those that land at once, as most small ones do, are never made."""

    def __init__(
        self,
        specs: Sequence[RecordSpec],
        destinations: Destinations,
        ordered: Collection[int],
    ) -> None:
        self.specs = specs
        self._numbers = _numbers_of(specs)
        self._destinations = destinations
        self._ordered = ordered
        self._known: dict[int, Item] = {}
        self._done: set[int] = set()

    def __getitem__(self, number: int) -> Item:
        """The item, which is made when it is first asked for."""
        item = self._known.get(number)
        if item is None:
            spec = self.spec(number)
            item = self._known[number] = Item(
                spec=spec,
                ordered=number in self._ordered,
                destination=self._destinations.get(number),
                planned_bytes=self.planned_bytes(spec),
            )
        return item

    def spec(self, number: int) -> RecordSpec:
        """What and where the item is."""
        return self.specs[number if self._numbers is None else self._numbers[number]]

    def planned_bytes(self, spec: RecordSpec) -> int:
        """What the item is expected to bring; for progress."""
        nbytes = self._destinations.needed_bytes(spec.item)
        return max(spec.length, 0) if nbytes is None else nbytes

    def are_done(self, numbers: Iterable[int]) -> None:
        """These have been committed."""
        self._done.update(numbers)

    def left(self) -> Iterator[RecordSpec]:
        """Those that have not been."""
        return (spec for spec in self.specs if spec.item not in self._done)


def _numbers_of(specs: Sequence[RecordSpec]) -> dict[int, int] | None:
    """Where each item is among ``specs``; ``None`` if each is at its own number, as most are.

    A dict of a million numbers is a third of what planning them takes of memory.
    """
    if all(map(operator.eq, map(_ITEM, specs), itertools.count())):
        return None
    return {spec.item: at for at, spec in enumerate(specs)}
