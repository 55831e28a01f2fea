"""The last step of an item: its content goes to the planner.

None     it is in its target already
Staged   elements in memory: a tensor over them, to be copied into the target
Raw      a whole record: an object for load_bytes, or a tensor that only torch can read
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from paraload.core.records import dtype_name
from paraload.core.results import Raw, Staged
from paraload.destinations.aliases import Aliases
from paraload.destinations.tensor_memory import as_tensor
from paraload.engine.items import CompletedItem, Item
from paraload.engine.setup import LoadSetup
from paraload.errors import ItemReadError
from paraload.formats import torch_load
from paraload.formats.record_checks import check_stored
from paraload.runtime.daemon_threads import no_answer
from paraload.workers.read_context import item_error

#: Copies that stalled, with the memory that they may still read. It is never freed.
stuck_copies: Final[list[Any]] = []


class Commits:
    """Hands items to ``process`` on the caller's thread.

    ``fall_back`` is called with the reason why an item takes a slow path.
    """

    def __init__(
        self,
        setup: LoadSetup,
        process: Callable[[list[CompletedItem]], None],
        fall_back: Callable[[str], None],
    ) -> None:
        self._setup = setup
        self._process = process
        self._fall_back = fall_back
        self.aliases = Aliases()

    def landed_together(self, numbers: Iterable[int]) -> None:
        """Hand over items that are in their targets already, if the load asks for them."""
        if self._setup.hand_over_landed:
            known = self._setup.targets
            self._process([CompletedItem(n, known.get(n), landed=True) for n in numbers])

    def commit(self, item: Item, content: Staged | Raw | None) -> None:
        """Hand one item over. What ``load_bytes`` raises for correct bytes passes through."""
        if content is None:
            self._hand_over(item, landed=True)
        elif isinstance(content, Staged):
            self._hand_over(item, tensor=as_tensor(content))
        elif item.spec.kind == "bytes":
            self._load_bytes(item, content)
        else:
            self._fall_back(content.reason)
            try:
                tensor = torch_load.load_tensor(content.data)
                check_stored(item.spec, dtype_name(tensor.dtype), tuple(tensor.shape))
                wanted = item.spec.wanted
                tensor = torch_load.narrow_tensor(tensor, wanted.offsets, wanted.lengths)
            except Exception as error:  # torch raises anything for damaged bytes
                raise item_error(error) from error
            self._hand_over(item, tensor=tensor)

    def _load_bytes(self, item: Item, content: Raw) -> None:
        try:
            self._hand_over(item, data=content.data)
        except ItemReadError:
            raise
        except Exception as error:
            # If the bytes are right, the planner raised it for a reason of its own. Otherwise the
            # file may be the reason, and the error of load_bytes does not name it.
            if content.verified_bytes and torch_load.can_open(content.data):
                raise
            raise item_error(error) from error

    def _hand_over(self, item: Item, **content: Any) -> None:
        number, target = item.spec.item, item.destination
        self._process([CompletedItem(number, target, copy=self._copy, **content)])
        if item.ordered and self._setup.watch_targets and target is not None:
            self.aliases.loaded(item.spec, target.tensor)

    def _copy(self, target: Any, source: Any, *, item: int) -> None:
        """Copy and wait: an item is committed right after this."""
        if (copy := self._setup.destination.copy_into(target, source, item=item)) is None:
            return
        timeout_s = self._setup.read_context.stall_timeout_s
        try:
            is_done = copy.wait(timeout_s)
        except Exception as error:
            raise item_error(error) from error
        if not is_done:
            stuck_copies.append((copy, source))
            raise no_answer(timeout_s or 0.0, f"item {item} was being copied into its target")
