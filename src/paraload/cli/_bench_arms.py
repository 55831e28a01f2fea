"""The contestants of ``paraload bench``: torch's reader, paraload's settings, the raw limit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Final

from torch.distributed.checkpoint import FileSystemReader

from paraload.cli._raw import RawReader, pieces_of
from paraload.formats._base import NeedBytes, TensorRecord
from paraload.formats._torch_zip import FIRST_HEAD_BYTES, TorchZipFormat
from paraload.options import ReadOptions
from paraload.readers import ParallelFileSystemReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import IO

    from paraload.cli._bench_case import Case, Record
    from paraload.cli._raw import Piece

__all__ = ["AUTO", "RAW", "TORCH", "Arm", "make_arms"]

TORCH: Final = "torch's reader"
RAW: Final = "raw limit"
#: The value of ``executor`` that leaves everything to paraload.
AUTO: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arm:
    """One contestant.

    Attributes:
        reader: who reads, for the tables.
        executor: of paraload; ``None`` for others.
        workers: readers at once; ``None`` if paraload finds out how many.
        direct_io: it reads past the page cache.
        prepare: gets ready, untimed, and returns the run, which is timed; that of paraload returns
            its report.
    """

    reader: str
    executor: str | None
    workers: int | None
    direct_io: bool = False
    prepare: Callable[[], Callable[[], object]]

    @property
    def name(self) -> str:
        """Of the arm alone."""
        if self.workers is None:
            return self.reader
        return f"{self.reader}, {self.workers} worker{'s' * (self.workers != 1)}"


def make_arms(
    case: Case, *, executors: Sequence[str], workers: Sequence[int], with_cold: bool
) -> list[Arm]:
    """The arms, in the order of the tables.

    Torch, paraload with nothing set, and past the page cache if that will be cold, every executor
    with every number of workers, the raw limit.
    """
    settings: list[tuple[str, int]] = []
    for executor in executors:
        for count in [1] if executor == "sequential" else workers:
            # One worker is the caller's own thread, whatever the executor.
            setting = (executor, count) if count > 1 else ("sequential", 1)
            if setting not in settings:
                settings.append(setting)
    paraload = [_paraload(case, *setting) for setting in settings]
    pieces = cache(lambda: list(_pieces(case)))
    raw = [_raw(pieces, count) for count in workers]
    by_itself = [_paraload(case, AUTO, None)]
    if with_cold:
        by_itself.append(_paraload(case, AUTO, None, direct_io=True))
    return [_torch(case), *by_itself, *paraload, *raw]


def _torch(case: Case) -> Arm:
    return Arm(
        reader=TORCH,
        executor=None,
        workers=1,
        prepare=lambda: case.prepare(FileSystemReader(case.folder)),
    )


def _paraload(case: Case, executor: str, workers: int | None, *, direct_io: bool = False) -> Arm:
    label = ("by itself" if executor == AUTO else executor) + ", direct_io" * direct_io
    chosen = {
        "executor": executor,
        "max_workers": workers,
        "direct_io": direct_io,
        "progress": False,
    }

    def prepare() -> Callable[[], object]:
        options = ReadOptions.resolve(overrides=chosen)  # the environment has its say in the others
        reader = ParallelFileSystemReader(case.folder, options=options)
        run = case.prepare(reader)

        def read() -> object:
            run()
            return reader.last_report

        return read

    return Arm(
        reader=f"paraload {label}",
        executor=executor,
        workers=workers,
        direct_io=direct_io,
        prepare=prepare,
    )


def _raw(pieces: Callable[[], list[Piece]], workers: int) -> Arm:
    return Arm(
        reader=RAW,
        executor=None,
        workers=workers,
        prepare=lambda: RawReader(pieces(), workers=workers).run,
    )


def _pieces(case: Case) -> Iterator[Piece]:
    """The bytes of every record: a plain tensor's to its target, all others to nowhere."""
    item_format = TorchZipFormat()
    numbered = sorted(enumerate(case.records), key=lambda entry: (entry[1].path, entry[1].start))
    for path, records in groupby(numbered, key=lambda entry: entry[1].path):
        file_path = str(case.folder / path)
        with open(file_path, "rb", buffering=0) as file:
            for number, record in records:
                memory = case.memory(number)
                payload = None
                if memory is not None:
                    payload = _payload(file, record, len(memory), item_format)
                start, end = payload or (record.start, record.end)
                yield from pieces_of(file_path, start, end - start, memory if payload else None)


def _payload(
    file: IO[bytes], record: Record, nbytes: int, item_format: TorchZipFormat
) -> tuple[int, int] | None:
    """Where the bytes of a tensor lie, if so many are stored as they are."""
    length = record.end - record.start
    want = FIRST_HEAD_BYTES
    while True:
        file.seek(record.start)
        head = file.read(min(want, length))
        match item_format.locate(head, length):
            case NeedBytes(nbytes=more) if more > len(head) >= min(want, length):
                want = more
            case TensorRecord(start=start, end=end) if end - start == nbytes:
                return record.start + start, record.start + end
            case _:
                return None
