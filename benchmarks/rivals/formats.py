"""The tensors of a checkpoint, written again in the formats that the rivals read.

Each has the same tensors in as many files as the checkpoint has, and the same tensors in each of
them. The writer is torch's or the rival's own.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import defaultdict
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from benchmarks.page_cache import files_below

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.cases import Case

    #: Names and tensors of each file.
    Parts = Sequence[Mapping[str, torch.Tensor]]

__all__ = ["DCP", "FLASHPACK", "SAFETENSORS", "TORCH_CHECKPOINTING", "TORCH_SAVE", "in_format"]

DCP: Final = "DCP"
SAFETENSORS: Final = "safetensors"
FLASHPACK: Final = "flashpack"
TORCH_SAVE: Final = "torch.save"
TORCH_CHECKPOINTING: Final = "torch_checkpointing"


@cache
def in_format(case: Case, name: str) -> Case:
    """The same load from another format, which is written if it is not there."""
    if name == DCP:
        return case
    folder = case.folder.with_name(f"{case.folder.name}-{name}")
    if folder.exists():  # another process wrote it
        return dataclasses.replace(case, folder=folder)
    folder.mkdir()
    try:
        _WRITERS[name](folder, _parts(case))
    except BaseException:
        # The next contestant of this format fails for the same reason.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for file in files_below(folder):
        # What is still to be written back would be written during the first rounds.
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return dataclasses.replace(case, folder=folder)


def _parts(case: Case) -> list[dict[str, torch.Tensor]]:
    """The loaded tensors, by the file that they were in."""
    reader = FileSystemReader(case.folder)
    plan, planner = case.plan(reader)
    reader.read_data(plan, planner).wait()
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for index, info in reader.storage_data.items():
        parts[info.relative_path][index.fqn] = case.targets[index.fqn]
    return [parts[path] for path in sorted(parts)]


def _write_safetensors(folder: Path, parts: Parts) -> None:
    import_module("safetensors")  # the writer would only say so in the middle of a long traceback
    files = {name: number for number, part in enumerate(parts, start=1) for name in part}
    state = {name: tensor for part in parts for name, tensor in part.items()}
    writer = dcp.HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files)
    dcp.save(state, storage_writer=writer, no_dist=True)


def _write_flashpack(folder: Path, parts: Parts) -> None:
    pack_to_file = import_module("flashpack").pack_to_file
    for number, part in enumerate(parts):
        pack_to_file(dict(part), str(folder / f"{number}.flashpack"), target_dtype=None)


def _write_torch_save(folder: Path, parts: Parts) -> None:
    for number, part in enumerate(parts):
        torch.save(dict(part), folder / f"{number}.pt")


def _write_torch_checkpointing(folder: Path, parts: Parts) -> None:
    # One file for each top-level item, which is how this library spreads tensors over files.
    folder.rmdir()  # it refuses a folder that is there
    manager = checkpoint_manager()
    manager.save(str(folder), {f"part_{n}": dict(part) for n, part in enumerate(parts)})
    manager.close()


def checkpoint_manager() -> Any:
    """The front of torch_checkpointing."""
    package = import_module("torch_checkpointing")
    storage = import_module("torch_checkpointing.storage.filesystem")
    return package.CheckpointManager.Config(
        save=package.SyncCheckpointSaverConfig(),
        # By default it writes unaligned pieces with O_DIRECT, which ext4 refuses (EINVAL). It reads
        # whole files through the page cache in both cases.
        storage_config=storage.LocalFileSystemStorageConfig(use_direct_io=False),
    ).build()


_WRITERS: Final[dict[str, Callable[[Path, Parts], None]]] = {
    SAFETENSORS: _write_safetensors,
    FLASHPACK: _write_flashpack,
    TORCH_SAVE: _write_torch_save,
    TORCH_CHECKPOINTING: _write_torch_checkpointing,
}
