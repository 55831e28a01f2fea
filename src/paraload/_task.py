"""The data that travel between planner, engine, executors and workers. No behaviour, no torch.

ReadTask      what a worker shall do: one file, a half-open range, item numbers, a cost in bytes
  LocateTask    read the headers of big records and say where their payloads lie
  RecordsTask   read whole small (or transformed) records into memory and cut items out of them
  RunsTask      read byte runs of one located record straight into the memory of its item
  SharedTask    the same for several items that want columns of one record
TaskResult    what the worker answers: one outcome for each item, and the tally of its reads
  Located, Landed, Staged, Raw, Failed
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from paraload._geometry import Run, Shape
    from paraload.errors import ItemReadError
    from paraload.formats._base import TensorRecord

ItemKind = Literal["tensor", "bytes"]


class ItemIndex(NamedTuple):
    """A torch-free ``MetadataIndex``."""

    fqn: str
    offset: Shape | None = None
    index: int | None = None  # type: ignore[assignment]  # MetadataIndex has this name


class ReadItemInfo(NamedTuple):
    """A torch-free ``ReadItem``, as hooks receive it; ``type`` is ``"TENSOR"`` or ``"BYTE_IO"``."""

    type: str
    dest_index: ItemIndex
    dest_offsets: Shape
    storage_index: ItemIndex
    storage_offsets: Shape
    lengths: Shape


class StorageItem(NamedTuple):
    """A torch-free ``_StorageInfo``: bytes ``[offset, offset + length)`` of ``relative_path``."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: tuple[str, ...] = ()


class Stored(NamedTuple):
    """What the metadata says of a stored tensor."""

    dtype: str
    shape: Shape


class Wanted(NamedTuple):
    """What is wanted of a record. Items that want the same of theirs share one of these.

    ``offsets`` and ``lengths`` are those of the slice inside of the stored tensor; ``stored`` is
    what that tensor has to be, where it is known.
    """

    kind: ItemKind
    offsets: Shape
    lengths: Shape
    descriptors: tuple[str, ...] = ()
    stored: Stored | None = None


class Told(NamedTuple):
    """What the hooks of a load are told of an item."""

    read_item: ReadItemInfo
    storage: StorageItem


class RecordSpec(NamedTuple):
    """One item of the plan and the record that holds it: bytes ``[start, end)`` of ``path``.

    ``fqn`` is the name that the checkpoint knows the item by. ``told`` is there if hooks are: a
    load has one spec for each item, so that it pays to make no more of it than is asked for.
    """

    item: int
    path: str
    start: int
    end: int
    fqn: str
    wanted: Wanted
    told: Told | None = None

    @property
    def kind(self) -> ItemKind:
        """Tensor or bytes."""
        return self.wanted.kind

    @property
    def for_hooks(self) -> Told:
        """What hooks are told."""
        if self.told is None:
            raise TypeError(f"{self.fqn!r} was planned for a load without hooks")
        return self.told

    @property
    def length(self) -> int:
        """Bytes of the record."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTask:
    """Work on one file: bytes ``[start, end)`` for ``items``, with ``cost_bytes`` of memory."""

    path: str
    start: int
    end: int
    items: tuple[int, ...]
    cost_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocateTask(ReadTask):
    """Read the headers of ``specs``."""

    specs: tuple[RecordSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsTask(ReadTask):
    """Read ``specs`` whole.

    ``as_stream`` opens a stream for hooks instead of reading the range. ``in_sequence``: the next
    task of the same file must not begin before this one is done.
    """

    specs: tuple[RecordSpec, ...]
    as_stream: bool = False
    in_sequence: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsTask(ReadTask):
    """Read ``runs`` (relative to ``base``) into the memory called ``target``.

    ``trailer`` is the range of the data descriptor that ends a whole payload, for the last task of
    a record; ``checksum`` asks for the CRC-32 of what was read.
    """

    base: int
    target: int
    runs: tuple[Run, ...]
    max_gap_bytes: int
    checksum: bool
    trailer: tuple[int, int] | None = None

    @property
    def needed_bytes(self) -> int:
        """Payload bytes that the task delivers."""
        return sum(run.total_bytes for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTask(ReadTask):
    """Read through the rows of one located record once, for several items that want parts of them.

    Each of ``parts`` is one series of rows: as many as the others, and as far apart.
    """

    parts: tuple[RunsTask, ...]


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

    It carries its own ``crc`` and, if it has read the trailer, the ``expected_crc`` of the whole.
    """

    nbytes: int
    src: int = 0
    crc: int | None = None
    expected_crc: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LandedItems:
    """Many whole items of one task are in their targets, ``verified_bytes`` of them proved right.

    ``unverified`` counts the items with bytes of which none could be checked.
    """

    items: tuple[int, ...]
    nbytes: int
    verified_bytes: int
    unverified: int


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``[start, start + nbytes)`` of the slot that a process worker was given."""

    start: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content(Outcome):
    """Bytes that the caller's thread has to move on.

    ``data`` is valid until the next result is asked for.
    """

    data: memoryview | Span
    verified_bytes: int = 0

    @property
    def needed_bytes(self) -> int:
        """Bytes that the item takes of ``data``."""
        return self.data.nbytes

    @property
    def memory(self) -> memoryview:
        """``data``, which every executor has made readable in the caller's process."""
        if isinstance(self.data, Span):
            raise TypeError("the executor has left this outcome in its slot")
        return self.data


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
        """Bytes that the item takes of ``data``."""
        nbytes = self.data.nbytes
        if self.cut is None or not nbytes:
            return nbytes
        return nbytes // prod(self.lengths) * prod(self.cut.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw(_Content):
    """The whole decoded record: a bytes item, or a tensor that only torch can read (``reason``)."""

    reason: str = ""


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
    """The worker's answer to ``task``. Times are ``time.monotonic`` seconds.

    ``overflowed``: the answer did not fit into the slot of shared memory, and there is none.
    """

    task: ReadTask
    outcomes: tuple[Outcome | LandedItems, ...]
    tally: ReadTally
    started_s: float
    ended_s: float
    worker: str
    overflowed: bool = False
