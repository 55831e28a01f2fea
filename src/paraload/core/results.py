"""The results of tasks: an :class:`Outcome` for each item, and what reading took. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from paraload.core.records import TensorRecord
from paraload.core.tasks import ReadTask
from paraload.errors import ItemReadError
from paraload.geometry.runs import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a task for one of its items."""

    item: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Located(Outcome):
    """Where the payload lies, or the ``reason`` to read the whole record and give it to torch."""

    record: TensorRecord | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed(Outcome):
    """A part of a record, from byte ``src`` of the payload on, is in the item's memory.

    ``crc`` is that of the part; ``expected_crc``, which the trailer gives, that of the payload.
    """

    nbytes: int
    src: int = 0
    crc: int | None = None
    expected_crc: int | None = None


class LandedItems(NamedTuple):
    """Whole items are in their targets, or their records have passed an audit.

    ``verified_bytes`` have matched a CRC-32. ``unverified`` counts items with bytes without any
    that could be checked, for ``reason`` if that is not the same for the whole load.
    """

    items: tuple[int, ...]
    nbytes: int
    verified_bytes: int
    unverified: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged(Outcome):
    """Elements that the caller's thread has to move on.

    ``data`` is valid until the executor is asked for more. It is packed densely, with the
    dimensions of ``lengths`` in ``order``. ``cut`` has offsets and lengths of the needed slice, if
    that is not all of it.
    """

    data: memoryview
    verified_bytes: int = 0
    dtype: str
    lengths: Shape
    order: Shape
    cut: tuple[Shape, Shape] | None

    @property
    def needed_bytes(self) -> int:
        nbytes = self.data.nbytes
        if self.cut is None or not nbytes:
            return nbytes
        return nbytes // prod(self.lengths) * prod(self.cut[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw(Outcome):
    """A whole decoded record: of a bytes item, or of a tensor that only torch can read.

    ``data`` is valid until the executor is asked for more; ``reason`` says why torch is needed.
    """

    data: memoryview
    verified_bytes: int = 0
    reason: str = ""

    @property
    def needed_bytes(self) -> int:
        return self.data.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited(Outcome):
    """A record has passed an audit, but for its ``payload`` if that is still to be summed.

    Attributes:
        verified_bytes: have matched a CRC-32.
        unverifiable_bytes: have none.
        is_compared: dtype and shape agree with the metadata, or there are none.
        payload: where it lies, and the ``crc`` that it must have.
    """

    verified_bytes: int
    unverifiable_bytes: int
    is_compared: bool = True
    payload: TensorRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Outcome):
    error: ItemReadError


@dataclass(slots=True, kw_only=True)
class ReadTally:
    """What reading took; ``fallback`` says why it was slower than was asked for, if it was.

    ``bytes_direct``, a part of ``bytes_read``, did not go through the page cache.
    """

    reads: int = 0
    bytes_read: int = 0
    bytes_direct: int = 0
    retries: int = 0
    fallback: str = ""

    def add(self, other: ReadTally) -> None:
        self.reads += other.reads
        self.bytes_read += other.bytes_read
        self.bytes_direct += other.bytes_direct
        self.retries += other.retries
        self.fallback = self.fallback or other.fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The answer to ``task``. Times are ``time.monotonic`` seconds."""

    task: ReadTask
    outcomes: tuple[Outcome | LandedItems, ...]
    tally: ReadTally
    started_s: float
    ended_s: float
    worker: str
