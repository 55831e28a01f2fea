"""What workers do, as data: no behaviour, no torch.

ReadTask      work on one file: a half-open range, item numbers, a cost in bytes
  LocateTask    read the headers of big records and say where their payloads lie, or read these too
  RecordsTask   read whole small (or transformed) records and cut items out of them
  RunsTask      read byte runs of one located record straight into the memory of its item
  SharedTask    several of these at once
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from paraload.core.records import TensorRecord
from paraload.geometry.runs import Run, Shape
from paraload.hooks import ReadItemInfo, StorageItem

ItemKind = Literal["tensor", "bytes"]

#: The ``target`` of a :class:`RunsTask` whose bytes are only summed.
DISCARDED: Final = -1


class Stored(NamedTuple):
    """A stored tensor according to the metadata."""

    dtype: str
    shape: Shape


class Wanted(NamedTuple):
    """What is wanted of a record; items for which it is equal share one of these.

    ``offsets`` and ``lengths`` are the slice of the stored tensor. ``layout`` is set where the
    place of the payload is known before reading; otherwise the record's header tells.
    """

    kind: ItemKind
    offsets: Shape
    lengths: Shape
    descriptors: tuple[str, ...] = ()
    stored: Stored | None = None
    layout: TensorRecord | None = None


class HookInfo(NamedTuple):
    """The description of an item that hooks receive."""

    read_item: ReadItemInfo
    storage: StorageItem


class RecordSpec(NamedTuple):
    """One item of the plan and the record that holds it: bytes ``[start, end)`` of ``path``.

    ``fqn`` is the item's name in the checkpoint. ``hook_info`` is set only for loads with hooks:
    there is a spec for each item, so each field costs a load of many items time and memory.
    """

    item: int
    path: str
    start: int
    end: int
    fqn: str
    wanted: Wanted
    hook_info: HookInfo | None = None

    @property
    def kind(self) -> ItemKind:
        return self.wanted.kind

    @property
    def layout(self) -> TensorRecord | None:
        return self.wanted.layout

    @property
    def for_hooks(self) -> HookInfo:
        if self.hook_info is None:
            raise TypeError(f"{self.fqn!r} was planned for a load without hooks")
        return self.hook_info

    @property
    def length(self) -> int:
        """Bytes of the record."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTask:
    """Work on bytes ``[start, end)`` of a file for ``items``; needs ``cost_bytes`` of memory."""

    path: str
    start: int
    end: int
    items: tuple[int, ...]
    cost_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocateTask(ReadTask):
    """``at_once_bytes``: a slice that spans at most this much is read too, if its target allows."""

    specs: tuple[RecordSpec, ...]
    at_once_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsTask(ReadTask):
    """``as_stream`` opens a stream for hooks instead of reading the range.

    ``in_sequence``: the next task of the same file must not begin before this one is done.
    """

    specs: tuple[RecordSpec, ...]
    as_stream: bool = False
    in_sequence: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsTask(ReadTask):
    """Read ``runs``, which are relative to byte ``base``, into the memory called ``target``.

    ``checksum`` asks for the CRC-32 of the bytes. The last task of a whole payload has the range of
    the data descriptor behind it as its ``trailer``.
    """

    base: int
    target: int
    runs: tuple[Run, ...]
    max_gap_bytes: int
    checksum: bool
    trailer: tuple[int, int] | None = None

    @property
    def needed_bytes(self) -> int:
        """Bytes of the runs, without the gaps between them."""
        return sum(run.total_bytes for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTask(ReadTask):
    """Several tasks of one file as one.

    ``same_rows``: read the same rows once for all of them. Each part is one run, with equal steps.
    """

    parts: tuple[RunsTask, ...]
    same_rows: bool
