"""The contestants of ``paraload bench``: torch's reader, paraload's settings, the raw limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final

from torch.distributed.checkpoint import FileSystemReader

from paraload.cli._bench_advice import Setting
from paraload.cli._raw import pieces_of, read_raw
from paraload.cli._rounds import Timing
from paraload.options import ReadOptions
from paraload.readers import ParallelFileSystemReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paraload.cli._bench_case import Case
    from paraload.cli._raw import Piece
    from paraload.report import ReadReport

__all__ = ["AUTO", "RAW", "TORCH", "Arm", "make_arms"]

TORCH: Final = "torch's reader"
RAW: Final = "raw limit"
#: The value of ``executor`` that leaves everything to paraload.
AUTO: Final = "auto"


@dataclass(slots=True, kw_only=True, eq=False)
class Arm:
    """One contestant, and what is known about it.

    Attributes:
        reader: its name in tables.
        asked_workers: readers at once; ``None`` if paraload chooses.
        prepare: gets ready, untimed, and returns the timed run; paraload's returns its report.
        executor: of paraload; ``None`` for others.
        error: why it takes no further part.
        is_damaged: the error says that the checkpoint is.
        peak_bytes: memory above the targets.
        bytes_read: in one run.
        seconds: of all runs, by state of the page cache.
        reports: of the fastest run, by state; only paraload writes them.
    """

    reader: str
    asked_workers: int | None
    prepare: Callable[[], Callable[[], object]]
    executor: str | None = None
    direct_io: bool = False
    error: str | None = None
    is_damaged: bool = False
    peak_bytes: int | None = None
    bytes_read: int | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    reports: dict[str, ReadReport] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Tells this arm from all others."""
        if self.asked_workers is None:
            return self.reader
        return f"{self.reader}, {self.asked_workers} worker{'s' * (self.asked_workers != 1)}"

    def workers(self, state: str | None = None) -> int | None:
        """Readers at once, at most; where paraload chose, in this state or in any."""
        if self.asked_workers is not None:
            return self.asked_workers
        found = [self.reports[it].workers for it in self.reports if state in {None, it}]
        return max(found, default=None)

    @property
    def setting(self) -> Setting | None:
        """What to recommend; ``None`` for other readers, and where direct_io changed nothing."""
        workers = self.workers()
        if self.executor is None or workers is None:
            return None
        if self.direct_io and not any(report.bytes_direct for report in self.reports.values()):
            return None
        return Setting(self.executor, workers, self.direct_io)

    @property
    def timings(self) -> dict[str, Timing]:
        """By state; empty if the arm failed."""
        if self.error is not None:
            return {}
        return {state: Timing(seconds=tuple(all_s)) for state, all_s in self.seconds.items()}


def make_arms(
    case: Case, *, executors: Sequence[str], workers: Sequence[int], with_cold: bool
) -> list[Arm]:
    """The arms in the order of the tables.

    Torch, paraload with nothing set, the same past the page cache if that will be cold, every
    executor with every number of workers, the raw limit.
    """
    # One worker is the caller's own thread with every executor.
    settings = dict.fromkeys(
        (executor, count) if count > 1 else ("sequential", 1)
        for executor in executors
        for count in ([1] if executor == "sequential" else workers)
    )
    pieces = cache(lambda: _pieces(case))

    def prepare_torch() -> Callable[[], object]:
        return case.prepare(FileSystemReader(case.folder))

    return [
        Arm(reader=TORCH, asked_workers=1, prepare=prepare_torch),
        _paraload(case, AUTO, None),
        *([_paraload(case, AUTO, None, direct_io=True)] if with_cold else []),
        *(_paraload(case, *setting) for setting in settings),
        *(_raw(pieces, count) for count in workers),
    ]


def _paraload(case: Case, executor: str, workers: int | None, *, direct_io: bool = False) -> Arm:
    def prepare() -> Callable[[], object]:
        # The environment decides about everything else.
        chosen = {"executor": executor, "max_workers": workers, "direct_io": direct_io}
        options = ReadOptions.resolve(overrides=chosen | {"progress": False})
        reader = ParallelFileSystemReader(case.folder, options=options)
        run = case.prepare(reader)

        def read() -> object:
            run()
            return reader.last_report

        return read

    label = ("by itself" if executor == AUTO else executor) + ", direct_io" * direct_io
    return Arm(
        reader=f"paraload {label}",
        asked_workers=workers,
        prepare=prepare,
        executor=executor,
        direct_io=direct_io,
    )


def _raw(pieces: Callable[[], list[Piece]], workers: int) -> Arm:
    def prepare() -> Callable[[], object]:
        ready = pieces()
        return lambda: read_raw(ready, workers=workers)

    return Arm(reader=RAW, asked_workers=workers, prepare=prepare)


def _pieces(case: Case) -> list[Piece]:
    """As many bytes of every record as a job gets from it, from where the record begins.

    These are not exactly the bytes of the tensor, which follow a header. Finding the header's end
    is part of what the raw limit leaves out.
    """
    pieces: list[Piece] = []
    for number, record in enumerate(case.records):
        length = record.end - record.start
        memory = case.memory(number)
        memory = memoryview(bytearray(length)) if memory is None else memory[:length]
        pieces += pieces_of(str(case.folder / record.path), record.start, memory)
    return sorted(pieces, key=lambda piece: (piece.path, piece.start))
