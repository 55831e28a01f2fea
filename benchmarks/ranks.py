"""Ranks of one host: FSDP2 state dicts that 2 and 8 gloo ranks load at once."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.results import Bar, Section, Table

if TYPE_CHECKING:
    from benchmarks.checkpoints import Checkpoints

__all__ = ["measure"]

_REPOSITORY: Final = Path(__file__).resolve().parents[1]
_ROUNDS: Final = 7
_MIB: Final = 1024
_STOCK: Final = "dcp.load"
_OURS: Final = "paraload.load"

#: Ranks -> how many times as fast ``paraload.load`` and its ``read_data`` must be.
_LIMITS: Final = {2: (2.0, 2.5), 8: (1.0, 1.0)}


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Save 1 GiB of model and AdamW, warm, and load it with either reader in turn."""
    tables, bars, figures = [], [], {}
    for world, limits in _LIMITS.items():
        with tempfile.TemporaryDirectory(dir=checkpoints.folder) as folder:
            found = _run(folder, world=world, rounds=rounds or _ROUNDS)
        medians = {
            name: [statistics.median(column) for column in zip(*taken, strict=True)]
            for name, taken in found["seconds"].items()
        }
        gib = found["bytes"] / (1 << 30)
        tables.append(
            Table(
                title=f"{world} FSDP2 ranks: {gib:.2f} GiB, warm, OMP_NUM_THREADS=1",
                columns=("arm", "load s", "read_data s", "GiB/s", "load, times dcp.load"),
                rows=tuple(
                    (
                        name,
                        f"{load_s:.3f}",
                        f"{read_s:.3f}",
                        f"{gib / load_s:.2f}",
                        f"{medians[_STOCK][0] / load_s:.2f}",
                    )
                    for name, (load_s, read_s) in medians.items()
                ),
            )
        )
        for what, limit, stock_s, ours_s in zip(
            (_OURS, "read_data"), limits, medians[_STOCK], medians[_OURS], strict=True
        ):
            name = f"{what}, {world} ranks, speed relative to torch's"
            bars.append(Bar(name=name, value=stock_s / ours_s, limit=limit, unit="x"))
        figures[str(world)] = found
    return Section(tables=tuple(tables), bars=tuple(bars), figures=figures)


def _run(folder: str, *, world: int, rounds: int) -> dict[str, Any]:
    """Run the ranks as ``torchrun`` does; what rank 0 printed."""
    command = [sys.executable, "-m", "benchmarks.ranks_child", folder, str(_MIB), str(rounds)]
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    children = []
    for rank in range(world):
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        children.append(
            subprocess.Popen(
                command, cwd=_REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
            )
        )
    printed = [child.communicate()[0] for child in children]
    if failed := [rank for rank, child in enumerate(children) if child.returncode]:
        raise RuntimeError(f"the ranks {failed} failed; see their errors above")
    found: dict[str, Any] = json.loads(printed[0])
    return found
