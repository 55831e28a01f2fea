"""``.metadata``: what it takes to know what is in a checkpoint of 50,000 tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch.distributed.checkpoint import FileSystemReader

from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import time_rounds
from paraload import ParallelFileSystemReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.checkpoint.metadata import Metadata

    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_ROUNDS: Final = 7
_STOCK: Final = "torch FileSystemReader"
_PARALOAD: Final = "paraload"


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Read the metadata of 50,000 small tensors."""
    folder = checkpoints.small()

    # What was read is dropped outside of the time: a load needs it to its end.
    held: list[Metadata] = []

    def preparation(kind: type[FileSystemReader]) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            held.clear()
            reader = kind(folder)
            return lambda: held.append(reader.read_metadata())

        return prepare

    timings = time_rounds(
        {
            _STOCK: preparation(FileSystemReader),
            _PARALOAD: preparation(ParallelFileSystemReader),
        },
        rounds=rounds or _ROUNDS,
    )
    stock_s = timings[_STOCK].median_s
    table = Table(
        title="Metadata: read_metadata of 50,000 entries",
        columns=("what", "median ms", "x torch", "min..max s"),
        rows=tuple(
            (
                name,
                f"{timing.median_s * 1e3:.2f}",
                f"{stock_s / timing.median_s:.1f}",
                timing.spread,
            )
            for name, timing in timings.items()
        ),
    )
    bar = Bar(
        name="paraload, read_metadata",
        value=stock_s / timings[_PARALOAD].median_s,
        limit=4.0,
        unit="x torch",
    )
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=(table,), bars=(bar,), figures=figures)
