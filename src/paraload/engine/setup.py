"""What shall be loaded: all that is known before the first byte is read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paraload.core.tasks import ReadTask, RecordSpec
from paraload.destinations.base import Destination
from paraload.workers.read_context import Work

if TYPE_CHECKING:
    from paraload.destinations.host import Destinations


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What shall be loaded.

    Attributes:
        path: of the checkpoint, for texts.
        specs: every item, in the order of the plan.
        first: the tasks that begin the load.
        destinations: by item, for those that were resolved ahead.
        destination: takes what workers cannot write into a target directly.
        ordered: the items that are committed in the order of torch's reader.
        work: what workers need.
        split_bytes: asked with a located record, says how many bytes of it a task reads.
        task_limit_bytes: bytes that one task may deliver.
        max_gap_bytes: a gap up to this long is read rather than skipped.
        hand_over_landed: somebody wants to know of items that are in their targets already.
        slow_reasons: why nothing of it can go the fast way.
        watch_targets: ordered items are so because their targets share memory.
        strict: targets that share memory must have been saved with equal values.
        started_s: when it was asked for, as ``time.monotonic`` tells it.
    """

    path: str
    specs: Sequence[RecordSpec]
    first: Sequence[ReadTask]
    destinations: Destinations
    destination: Destination
    ordered: Collection[int]
    work: Work
    split_bytes: Callable[[RecordSpec], int]
    max_gap_bytes: int
    started_s: float
    task_limit_bytes: int = sys.maxsize
    hand_over_landed: bool = False
    slow_reasons: Sequence[str] = ()
    watch_targets: bool = False
    strict: bool = False
