"""What workers are asked to do, and what they are told of items. No behaviour, no torch.

ReadTask      what a worker shall do: one file, a half-open range, item numbers, a cost in bytes
  LocateTask    read the headers of big records and say where their payloads lie
  RecordsTask   read whole small (or transformed) records into memory and cut items out of them
  RunsTask      read byte runs of one located record straight into the memory of its item
  SharedTask    the same for several items that want columns of one record

What they answer is in ``_result.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from paraload.core.records import TensorRecord
from paraload.geometry.runs import Run, Shape
from paraload.hooks import ItemIndex, ReadItemInfo, StorageItem  # noqa: F401

ItemKind = Literal["tensor", "bytes"]

#: The ``target`` of a :class:`RunsTask` whose bytes are summed and forgotten.
DISCARDED: Final = -1


class Stored(NamedTuple):
    """What the metadata says of a stored tensor."""

    dtype: str
    shape: Shape


class Wanted(NamedTuple):
    """What is wanted of a record; equal for many items, which share one of these.

    ``offsets`` and ``lengths`` are those of the slice in the stored tensor, and ``stored`` is what
    the metadata says of that tensor. ``layout`` is where the payload lies, if that is known before
    anything is read, as it is for safetensors; otherwise the record's header tells.
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
    every item has a spec, so each field costs a load of many items time and memory.
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
        """Tensor or bytes."""
        return self.wanted.kind

    @property
    def layout(self) -> TensorRecord | None:
        """Where the payload lies, if that is known before reading."""
        return self.wanted.layout

    @property
    def for_hooks(self) -> HookInfo:
        """The description for hooks."""
        if self.hook_info is None:
            raise TypeError(f"{self.fqn!r} was planned for a load without hooks")
        return self.hook_info

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
