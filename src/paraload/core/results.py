"""What workers answer to a task: an outcome for each item, and what it took. No torch.

TaskResult    the answer
  Outcome       Located, Landed, Staged, Raw, Audited or Failed; LandedItems for many of one kind
  ReadTally     requests, bytes, retries
"""

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
    """What became of one item in one task."""

    item: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Located(Outcome):
    """Where the payload lies, or why the record must be read whole and given to torch."""

    record: TensorRecord | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed(Outcome):
    """A part of a split record, ``nbytes`` from ``src`` of the payload on, is in the item's memory.

    In an audit it has been summed and forgotten. It carries its own ``crc`` and, if it has read the
    trailer, the ``expected_crc`` of the whole.
    """

    nbytes: int
    src: int = 0
    crc: int | None = None
    expected_crc: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LandedItems:
    """Many whole items of one task are in their targets, ``verified_bytes`` of them proved right.

    In an audit their whole records are right. ``unverified`` counts the items with bytes of which
    none could be checked.
    """

    items: tuple[int, ...]
    nbytes: int
    verified_bytes: int
    unverified: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content(Outcome):
    """Bytes that the caller's thread has to move on.

    ``data`` is valid until the executor is asked for more.
    """

    data: memoryview
    verified_bytes: int = 0

    @property
    def needed_bytes(self) -> int:
        """Bytes that the item takes of ``data``."""
        return self.data.nbytes


class Cut(NamedTuple):
    """A block inside of another."""

    offsets: Shape
    lengths: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged(_Content):
    """Elements of dtype ``dtype``, packed densely with the dimensions of ``lengths`` in ``order``.

    ``cut`` is the needed slice inside of them; ``None`` says that they are the slice.
    """

    dtype: str
    lengths: Shape
    order: Shape
    cut: Cut | None

    @property
    def needed_bytes(self) -> int:
        nbytes = self.data.nbytes
        if self.cut is None or not nbytes:
            return nbytes
        return nbytes // prod(self.lengths) * prod(self.cut.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw(_Content):
    """The whole decoded record: a bytes item, or a tensor that only torch can read (``reason``)."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited(Outcome):
    """A record of an audit is right, but for its ``payload`` if that is still to be summed.

    Attributes:
        verified_bytes: compared with a CRC-32.
        unverifiable_bytes: that have none.
        is_compared: dtype and shape were compared with the metadata, or there are none.
        payload: where it lies, and the ``crc`` that it should have.
    """

    verified_bytes: int
    unverifiable_bytes: int
    is_compared: bool = True
    payload: TensorRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Outcome):
    """The item could not be read."""

    error: ItemReadError


@dataclass(slots=True, kw_only=True)
class ReadTally:
    """What reading took.

    Attributes:
        reads: requests to the storage.
        bytes_read: that came.
        bytes_direct: of these, those that did not go through the page cache.
        retries: requests that were made again.
        fallback: why bytes were read in a slower way than was asked for; "" if none were.
    """

    reads: int = 0
    bytes_read: int = 0
    bytes_direct: int = 0
    retries: int = 0
    fallback: str = ""

    def add(self, other: ReadTally) -> None:
        """Count what ``other`` has counted, too; the first ``fallback`` stays."""
        self.reads += other.reads
        self.bytes_read += other.bytes_read
        self.bytes_direct += other.bytes_direct
        self.retries += other.retries
        self.fallback = self.fallback or other.fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The worker's answer to ``task``. Times are ``time.monotonic`` seconds."""

    task: ReadTask
    outcomes: tuple[Outcome | LandedItems, ...]
    tally: ReadTally
    started_s: float
    ended_s: float
    worker: str
