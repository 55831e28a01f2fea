"""The items of a load on their way from plan to planner."""

import itertools
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from paraload.core.tasks import RecordSpec
from paraload.destinations.targets import Target, Targets
from paraload.errors import ItemReadError

_ITEM: Final = operator.attrgetter("item")


class CompletedItem(NamedTuple):
    """An item that is read and checked, for the planner.

    Exactly one of ``landed``, ``tensor`` and ``data`` says where its content is.

    Attributes:
        item: its number in the plan.
        destination: what the planner resolved it to; ``None`` if it has not been asked yet.
        landed: the content is in the destination's tensor already.
        tensor: the content, to be copied into the target; valid only during the call.
        data: the content of a bytes item; valid only during the call.
        copy: copies the tensor into a target, and waits until it is there.
    """

    item: int
    destination: Target | None = None
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

    ``ordered`` items are committed in the order of torch's reader; ``commit`` is set while such an
    item waits for its turn. ``planned_bytes`` is the expected size, for progress.
    """

    spec: RecordSpec
    ordered: bool
    destination: Target | None
    planned_bytes: int
    commit: Callable[[], None] | None = None
    is_failed: bool = False


class Items:
    """All items of a load. An :class:`Item` is made on demand: most small items never need one."""

    def __init__(
        self, specs: Sequence[RecordSpec], targets: Targets, ordered: Collection[int]
    ) -> None:
        self._targets = targets
        self._ordered = ordered
        self._known: dict[int, Item] = {}
        # Nearly always, each spec is at its own number. A dict would add a third to the memory that
        # the plan of a million items takes.
        self._by_number: Sequence[RecordSpec] | dict[int, RecordSpec] = specs
        if not all(map(operator.eq, map(_ITEM, specs), itertools.count())):
            self._by_number = {spec.item: spec for spec in specs}

    def __getitem__(self, number: int) -> Item:
        item = self._known.get(number)
        if item is None:
            spec = self.spec(number)
            item = self._known[number] = Item(
                spec=spec,
                ordered=number in self._ordered,
                destination=self._targets.get(number),
                planned_bytes=self.planned_bytes(spec),
            )
        return item

    def spec(self, number: int) -> RecordSpec:
        return self._by_number[number]

    def planned_bytes(self, spec: RecordSpec) -> int:
        """The item's expected size, for progress."""
        nbytes = self._targets.needed_bytes(spec.item)
        return max(spec.length, 0) if nbytes is None else nbytes


def error_of(spec: RecordSpec, error: ItemReadError) -> ItemReadError:
    """Add the item's name, file and range to its error."""
    error.locate(fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end)
    return error
