"""One side of :mod:`benchmarks.against`: times the loads that standard input asks for.

    python -m benchmarks.against_side SOURCE

    {"action": "load", "folder": ...}  -->  {"seconds": {"whole": [...]}, "checksum": ...}

One JSON object a line. This file also runs with old revisions of paraload. Rules of this file:
only public names of paraload that those revisions have too, and no module of ``benchmarks`` that
imports paraload.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch.distributed.checkpoint import FileSystemReader

import paraload
from benchmarks.cases import sliced_case
from benchmarks.checkpoints import poison, raw_bytes, targets_of
from benchmarks.command import quiet_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    Seconds = dict[str, float]
    Targets = Mapping[str, torch.Tensor]
    Prepared = tuple[Callable[[], Seconds], Targets]

__all__ = ["main"]

#: In each turn, after one that is not counted.
_LEAST_LOADS: Final = 3


def main(source: str) -> None:
    """Answer each line of standard input with a line of standard output, until the end."""
    # Standard output is for answers alone; all other printing goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    imported = Path(str(paraload.__file__))
    if not imported.is_relative_to(source):
        raise RuntimeError(f"paraload comes from {imported} instead of {source}")
    quiet_torch()
    prepared_for: dict[str, Any] = {}
    load: Callable[[], Seconds] | None = None
    targets: Targets = {}
    for line in sys.stdin:
        asked = json.loads(line)
        turn_s, with_checksum = asked.pop("turn_s"), asked.pop("checksum")
        if load is None or asked != prepared_for:
            load, targets = None, {}  # frees the memory of the case before
            load, targets = _ACTIONS[asked["action"]](Path(asked["folder"]), asked["options"])
            prepared_for = asked
        seconds = _turn(load, turn_s)
        checksum = _checksum(targets) if with_checksum else None
        answers.write(json.dumps({"seconds": seconds, "checksum": checksum}) + "\n")
        answers.flush()


def _turn(load: Callable[[], Seconds], turn_s: float) -> dict[str, list[float]]:
    load()  # warms up what the other side's turn has displaced
    ends = time.monotonic() + turn_s
    taken: list[Seconds] = []
    while len(taken) < _LEAST_LOADS or time.monotonic() < ends:
        taken.append(load())
    return {part: [once[part] for once in taken] for part in taken[0]}


def _checksum(targets: Targets) -> int:
    checksum = 0
    for tensor in targets.values():
        checksum = zlib.crc32(raw_bytes(tensor).numpy().data, checksum)
    return checksum


def _timed(run: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - started
    del result  # outside of the time, since a load needs it to its end
    return seconds


def _whole(folder: Path, options: dict[str, Any]) -> Prepared:
    targets = targets_of(folder)

    def load() -> Seconds:
        poison(targets)
        state = dict(targets)
        gc.collect()
        started = time.perf_counter()
        report = paraload.load(state, folder, no_dist=True, **options)
        return {"whole": time.perf_counter() - started, "read_data": report.seconds}

    return load, targets


def _slices(folder: Path, options: dict[str, Any], *, dim: int) -> Prepared:
    case = sliced_case(folder, dim=dim)

    def load() -> Seconds:
        poison(case.targets)
        reader = paraload.ParallelFileSystemReader(folder, **options)
        plan, planner = case.plan(reader)
        return {"whole": _timed(lambda: reader.read_data(plan, planner).wait())}

    return load, case.targets


def _verification(folder: Path, options: dict[str, Any]) -> Prepared:
    def load() -> Seconds:
        gc.collect()
        started = time.perf_counter()
        report = paraload.verify(folder, **options)
        seconds = time.perf_counter() - started
        if not report.ok:
            raise RuntimeError(f"paraload.verify rejects what torch wrote: {report}")
        return {"whole": seconds}

    return load, {}


def _metadata(folder: Path, options: dict[str, Any]) -> Prepared:
    data = (folder / ".metadata").read_bytes()

    def read(kind: type[FileSystemReader], **keywords: Any) -> float:
        # Old revisions do not read an unchanged file again, so every read has a path of its own.
        with tempfile.TemporaryDirectory(prefix="metadata-", dir=folder.parent) as fresh:
            Path(fresh, ".metadata").write_bytes(data)
            reader = kind(fresh, **keywords)
            return _timed(lambda: _looked_through(reader))

    def load() -> Seconds:
        return {
            "torch": read(FileSystemReader),
            "whole": read(paraload.ParallelFileSystemReader, **options),
        }

    return load, {}


def _looked_through(reader: FileSystemReader) -> object:
    metadata = reader.read_metadata()
    # Old revisions make the objects when they are first looked at.
    return metadata, [*metadata.state_dict_metadata.values()], [*metadata.storage_data.values()]


_ACTIONS: Final[dict[str, Callable[[Path, dict[str, Any]], Prepared]]] = {
    "load": _whole,
    "rows": partial(_slices, dim=0),
    "columns": partial(_slices, dim=1),
    "metadata": _metadata,
    "verify": _verification,
}


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
