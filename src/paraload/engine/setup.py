"""LoadSetup: all that is known of a load before the first byte is read."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from paraload.core.tasks import ReadTask, RecordSpec
from paraload.destinations.base import Destination
from paraload.destinations.targets import Targets
from paraload.options import ReadOptions
from paraload.workers.read_context import ReadContext


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSetup:
    """What is loaded, where it goes, and what workers need.

    Attributes:
        path: of the checkpoint, for error texts.
        options: of the load.
        specs: every item, in the order of the plan.
        make_tasks: :func:`~paraload.planning.read_tasks.first_tasks` with the rules of this load.
        work: what workers need.
        started_s: ``time.monotonic()`` when the load began.
        targets: by item, for those that were resolved ahead.
        destination: fills the targets that workers cannot write to directly.
        ordered: the items that are committed in the order of torch's reader.
        tasks: the first ones, if the reader makes its own; not used if items are ordered.
        not_in_processes: why worker processes cannot do the work; "" if they can.
        hand_over_landed: pass every item to the adapter, even if it is in its target already.
        watch_targets: items are ordered because their targets share memory.
    """

    path: str
    options: ReadOptions
    specs: Sequence[RecordSpec]
    make_tasks: Callable[..., list[ReadTask]]
    read_context: ReadContext
    started_s: float
    targets: Targets
    destination: Destination
    ordered: Collection[int] = ()
    tasks: Sequence[ReadTask] | None = None
    not_in_processes: str = ""
    hand_over_landed: bool = False
    watch_targets: bool = False
