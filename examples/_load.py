"""Load one checkpoint with torch's reader and with paraload's, in turn, and compare everything."""

from __future__ import annotations

import dataclasses
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh

from examples._model import ModelShape, Trainer
from examples._ranks import PeakMemory
from examples._state import (
    Checksums,
    add_up,
    checksums,
    differences,
    local_bytes,
    poison,
    snapshot,
)
from paraload import ParallelFileSystemReader

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
    from torch.futures import Future

    from examples._ranks import Rank

__all__ = ["compare"]

READERS = ("torch", "paraload")


class Clocked:
    """Adds to a reader a clock that runs while it reads data."""

    read_seconds = 0.0

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read, and take the time."""
        started_s = time.perf_counter()
        done: Future[None] = super().read_data(plan, planner)  # type: ignore[misc]
        self.read_seconds = time.perf_counter() - started_s
        return done


class TorchReader(Clocked, dcp.FileSystemReader):
    """The reader that comes with torch."""


class ParaloadReader(Clocked, ParallelFileSystemReader):
    """The same, of paraload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One load.

    Attributes:
        load_s: seconds of the whole ``dcp.load``, on the slowest rank.
        read_s: seconds of ``read_data`` in it, on the slowest rank.
        extra_bytes: most memory above that before the load, on the rank that took most.
        wrong: names of tensors and objects that are not what they have to be, on any rank.
    """

    load_s: float
    read_s: float
    extra_bytes: int
    wrong: list[str]

    @classmethod
    def worst(cls, parts: list[Measure]) -> Measure:
        """Of the ranks of one load."""
        return cls(
            load_s=max(part.load_s for part in parts),
            read_s=max(part.read_s for part in parts),
            extra_bytes=max(part.extra_bytes for part in parts),
            wrong=sorted({name for part in parts for name in part.wrong}),
        )


@dataclass(slots=True, kw_only=True)
class Loader:
    """Loads the checkpoint into one state dict, again and again.

    Attributes:
        rank: this process.
        folder: of the checkpoint.
        state: what is filled; full tensors in one process, shards on several ranks.
        reference: what torch's reader gave the first time.
    """

    rank: Rank
    folder: str
    state: dict[str, Any]
    reference: dict[str, Any] | None = None

    def load(self, name: str, *, progress: bool = False) -> Measure:
        """One load over poison with the reader of this name, measured and compared.

        Args:
            name: of the reader.
            progress: whether paraload shows its bar, and then its report.
        """
        reader: Any
        if name == "torch":
            reader = TorchReader(self.folder)
        else:
            reader = ParaloadReader(self.folder, progress=progress)
        poison(self.state)
        self.rank.barrier()
        with PeakMemory() as memory:
            started_s = time.perf_counter()
            dcp.load(self.state, storage_reader=reader)
            load_s = time.perf_counter() - started_s
        if progress and name == "paraload":
            self.rank.say(textwrap.indent(str(reader.last_report), "      "))
        if self.reference is None:
            self.reference = snapshot(self.state)
        mine = Measure(
            load_s=load_s,
            read_s=reader.read_seconds,
            extra_bytes=memory.extra_bytes,
            wrong=differences(self.state, self.reference),
        )
        return Measure.worst(self.rank.gather(mine))

    def unlike(self, saved: Checksums) -> list[str]:
        """Names whose checksum is not the one that the saving ranks took."""
        now = add_up(self.rank.gather(checksums(self.state, rank=self.rank.number)))
        return sorted(name for name in set(saved) | set(now) if saved.get(name) != now.get(name))


def compare(
    rank: Rank, folder: str, shape: ModelShape, rounds: int, saved: Checksums
) -> dict[str, Any]:
    """Load with both readers in turn.

    Returns:
        Bytes that all ranks loaded, the measures by reader, what was wrong, and, on several ranks,
        the losses of training that goes on.
    """
    mesh = init_device_mesh("cpu", (rank.world,)) if rank.world > 1 else None
    trainer = Trainer(shape, mesh, seed=2)
    loader = Loader(rank=rank, folder=folder, state=trainer.state())
    wrong: set[str] = set()
    for name in READERS:  # warm up; the first of torch is also the reference
        wrong.update(loader.load(name, progress=True).wrong)
    wrong.update(loader.unlike(saved))
    measures: dict[str, list[Measure]] = {name: [] for name in READERS}
    for number in range(1, rounds + 1):
        for name in READERS:
            measures[name].append(loader.load(name))
        rank.say(f"      round {number}: " + ", ".join(_told(n, measures[n]) for n in READERS))
    losses = {}
    if mesh is not None:
        for name in READERS:
            measure, losses[name] = _go_on(trainer, loader, name)
            wrong.update(measure.wrong)
    wrong.update(name for taken in measures.values() for measure in taken for name in measure.wrong)
    return {
        "bytes": sum(rank.gather(local_bytes(loader.state))),
        "measures": {n: [dataclasses.asdict(m) for m in taken] for n, taken in measures.items()},
        "wrong": sorted(wrong),
        "losses": losses,
    }


def _told(name: str, measures: list[Measure]) -> str:
    return f"{name} {measures[-1].load_s:.2f} s"


def _go_on(trainer: Trainer, loader: Loader, name: str) -> tuple[Measure, tuple[float, float]]:
    """Load once more and train on: the loss right after the load, and after one more step."""
    loader.state = trainer.state()  # a step or a restore may have replaced its tensors
    measure = loader.load(name)
    trainer.restore(loader.state)
    loaded = trainer.evaluate()
    trainer.step()
    return measure, (loaded, trainer.evaluate())
