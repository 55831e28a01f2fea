"""The last step of an item: its content goes to the planner.

    landed   is in its target already
    staged   elements in memory: a tensor over them, to be copied into the target
    raw      a whole record: an object for load_bytes, or a tensor that only torch can read

When it is an item's turn is the engine's to say. What is lost on the way is looked after here:
dtypes that are converted, and targets that another one of the load overwrites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from paraload.core.results import Staged
from paraload.destinations import host as destination
from paraload.destinations.aliases import Aliases
from paraload.engine.items import CompletedItem, Item
from paraload.engine.setup import LoadSetup
from paraload.errors import ItemReadError
from paraload.runtime.daemon_threads import no_answer
from paraload.workers.read_context import item_error

#: Copies that stalled, with what they may still read: this memory is never freed.
stuck_copies: Final[list[Any]] = []


class Commits:
    """Hands items over, one after the other, on the caller's thread.

    Args:
        job: of the load.
        process: takes completed items.
        fall_back: told why an item goes a slower way.

    Attributes:
        aliases: what was loaded into memory that targets share.
    """

    def __init__(
        self,
        job: LoadSetup,
        process: Callable[[list[CompletedItem]], None],
        fall_back: Callable[[str], None],
    ) -> None:
        self._job = job
        self._process = process
        self._fall_back = fall_back
        self.aliases = Aliases()

    def landed_together(self, numbers: Iterable[int]) -> None:
        """Items that are in their targets, all at once, if anybody wants to know of them."""
        if self._job.hand_over_landed:
            known = self._job.targets
            self._process([CompletedItem(n, known.get(n), landed=True) for n in numbers])

    def landed(self, item: Item) -> None:
        """The item is in its target."""
        self._hand_over(item, landed=True)

    def tensor(self, item: Item, tensor: Any) -> None:
        """The item's content is ``tensor``, which is valid only now."""
        self._hand_over(item, tensor=tensor)

    def staged(self, item: Item, data: memoryview, staged: Staged) -> None:
        """The item's elements are in ``data``, as ``staged`` says."""
        tensor = destination.as_tensor(data, staged.dtype, staged.lengths, staged.order)
        if staged.cut is not None:
            tensor = destination.cut(tensor, *staged.cut)
        self._hand_over(item, tensor=tensor)

    def raw(self, item: Item, data: memoryview, reason: str, *, is_proved: bool) -> None:
        """``data`` is the item's whole record; ``is_proved``: checksums say that it is right.

        Raises:
            ItemReadError: nobody can read it.
            Exception: what ``load_bytes`` raises for bytes that are right.
        """
        if item.spec.kind == "bytes":
            self._object(item, data, is_proved=is_proved)
            return
        self._fall_back(reason)
        try:
            tensor = destination.load_fallback(data, item.spec)
        except Exception as error:  # torch raises anything for damaged bytes
            raise item_error(error) from error
        self._hand_over(item, tensor=tensor)

    def _object(self, item: Item, data: memoryview, *, is_proved: bool) -> None:
        try:
            self._hand_over(item, data=data)
        except ItemReadError:
            raise
        except Exception as error:
            # Of bytes that are right it is the planner's own problem. Of others it may be the
            # file's, and what load_bytes raises names none.
            if is_proved and destination.is_sound(data):
                raise
            raise item_error(error) from error

    def _hand_over(
        self,
        item: Item,
        *,
        landed: bool = False,
        tensor: Any = None,
        data: memoryview | None = None,
    ) -> None:
        completed = CompletedItem(
            item=item.spec.item,
            destination=item.destination,
            landed=landed,
            tensor=tensor,
            data=data,
            copy=self._copy,
        )
        self._process([completed])
        if item.ordered and self._job.watch_targets and item.destination is not None:
            self.aliases.loaded(item.spec, item.destination.tensor)

    def _copy(self, target: Any, source: Any, *, item: int) -> None:
        """Copy and wait: an item is committed right after this."""
        if (copy := self._job.destination.copy_into(target, source, item=item)) is None:
            return
        timeout_s = self._job.work.stall_timeout_s
        try:
            is_done = copy.wait(timeout_s)
        except Exception as error:
            raise item_error(error) from error
        if not is_done:
            stuck_copies.append((copy, source))
            raise no_answer(timeout_s or 0.0, f"item {item} was being copied into its target")
