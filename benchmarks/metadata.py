"""``.metadata``: what it takes to know what is in a checkpoint of 50,000 tensors.

paraload makes the objects when somebody looks at them, so that a call alone would be no fair
comparison: the rows that count make all of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from torch.distributed.checkpoint import FileSystemReader

from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import time_rounds
from paraload import ParallelFileSystemReader
from paraload.metadata import forget

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.checkpoint.metadata import Metadata

    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_ROUNDS: Final = 7
_SETTLED_AFTER_S: Final = 3
_STOCK: Final = "torch FileSystemReader"
_FIRST: Final = "paraload, first call"
_SECOND: Final = "paraload, unchanged second call"
_LOOKED_AT: Final = ", all objects made"


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Read the metadata of 50,000 small tensors, the first time and again."""
    folder = checkpoints.small()
    # A file that has just been written is not kept: it could change within a tick of the clock.
    time.sleep(_SETTLED_AFTER_S)

    # What was read is dropped outside of the time: a load needs it to its end.
    held: list[Metadata] = []

    def preparation(
        kind: type[FileSystemReader], *, again: bool = False, looked_at: bool = False
    ) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            held.clear()
            forget()
            reader = kind(folder)
            if again:
                reader.read_metadata()
            return lambda: run(reader)

        def run(reader: FileSystemReader) -> None:
            held.append(reader.read_metadata())
            if looked_at:
                _ = held[0].state_dict_metadata

        return prepare

    ours = ParallelFileSystemReader
    timings = time_rounds(
        {
            _STOCK: preparation(FileSystemReader),
            _FIRST: preparation(ours),
            _FIRST + _LOOKED_AT: preparation(ours, looked_at=True),
            _SECOND: preparation(ours, again=True),
            _SECOND + _LOOKED_AT: preparation(ours, again=True, looked_at=True),
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
    bars = tuple(
        Bar(name=name, value=stock_s / timings[name].median_s, limit=limit, unit="x torch")
        for name, limit in ((_FIRST + _LOOKED_AT, 4.0), (_SECOND, 50.0))
    )
    figures = {name: timing.to_dict() for name, timing in timings.items()}
    return Section(tables=(table,), bars=bars, figures=figures)
