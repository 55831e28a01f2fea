"""Who takes part: readers of paraload, what bounds them, and every rival that runs on a CPU.

A rival runs as its documentation says, with its own defaults for threads and direct I/O. A second
row shows a setting that its documentation offers and that could be faster here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, Final

import torch.distributed.checkpoint as dcp

from benchmarks import arms
from benchmarks.rivals import loaders
from benchmarks.rivals.formats import (
    DCP,
    FLASHPACK,
    SAFETENSORS,
    TORCH_CHECKPOINTING,
    TORCH_SAVE,
)

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.arms import Arm

__all__ = ["ALWAYS", "CONTESTANTS", "RAW", "Contestant", "Side"]


class Side(StrEnum):
    """Whose arm it is."""

    OURS = "paraload"
    LIMIT = "limit"
    RIVAL = "rival"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One row of the table.

    Attributes:
        arm: how it reads.
        group: the name that ``--only`` takes.
        package: what was installed for it; ``None`` for what is written here.
        file_format: which files it reads.
        side: whose it is.
    """

    arm: Arm
    group: str
    package: str | None = None
    file_format: str = DCP
    side: Side = Side.RIVAL

    @property
    def name(self) -> str:
        """Of the arm."""
        return self.arm.name

    @property
    def version(self) -> str:
        """Of the package."""
        if self.package is None:
            return "-"
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return "not installed"


def _hugging_face(threads: int) -> Contestant:
    arm = arms.reading(
        f"torch HF reader, {threads} thread{'s' * (threads > 1)}",
        lambda folder: dcp.HuggingFaceStorageReader(str(folder), thread_count=threads),
    )
    return Contestant(arm=arm, group="hf", package="torch", file_format=SAFETENSORS)


def _olmo(threads: int) -> Contestant:
    def make(folder: Path) -> Any:
        module = import_module("olmo_core.distributed.checkpoint.filesystem")
        return module.RemoteFileSystemReader(str(folder), thread_count=threads)

    arm = arms.reading(f"OLMo-core, {threads} threads", make)
    return Contestant(arm=arm, group="olmo", package="ai2-olmo-core")


def _multi_storage() -> Contestant:
    def make(folder: Path) -> Any:
        return import_module("multistorageclient.contrib.torch").MultiStorageFileSystemReader(
            str(folder)
        )

    arm = arms.reading("NVIDIA multi-storage-client", make)
    return Contestant(arm=arm, group="msc", package="multi-storage-client")


def _loading(group: str, package: str, file_format: str, *chosen: Arm) -> list[Contestant]:
    return [
        Contestant(arm=arm, group=group, package=package, file_format=file_format) for arm in chosen
    ]


def _ours(**options: Any) -> Contestant:
    arm = arms.parallel("threads", max_workers=None, **options)
    return Contestant(arm=arm, group="paraload", package="paraload", side=Side.OURS)


def _limit(arm: Arm) -> Contestant:
    return Contestant(arm=arm, group="raw", side=Side.LIMIT)


_RAW: Final = _limit(arms.raw())
_copying: Final = loaders.copying
_FLASHPACK_EAGER: Final = {"FLASHPACK_CPU_PARALLEL_READ": "1"}
_BUFFERED: Final = {"FASTSAFETENSORS_ODIRECT": "0"}
_SYNC_BUFFERED: Final = {"RUNAI_STREAMER_FS_STRATEGY": "sync_buffered"}

#: Torch's reader is the first: what it loads is what all others must load.
CONTESTANTS: Final[tuple[Contestant, ...]] = (
    Contestant(arm=arms.stock(), group="torch", package="torch"),
    _RAW,
    _limit(arms.raw_checksum()),
    _ours(),
    _ours(direct_io=True),
    _ours(verify=False),
    _hugging_face(1),
    _hugging_face(8),
    _olmo(2),
    _olmo(8),
    _multi_storage(),
    *_loading(
        "safetensors",
        "safetensors",
        SAFETENSORS,
        _copying("safetensors load_file, mmap", loaders.safetensors("mmap")),
        _copying("safetensors load_file, pread", loaders.safetensors("pread")),
    ),
    *_loading(
        "flashpack",
        "flashpack",
        FLASHPACK,
        _copying("flashpack, mmap", loaders.flashpack),
        _copying("flashpack, CPU_PARALLEL_READ=1", loaders.flashpack, _FLASHPACK_EAGER),
    ),
    *_loading(
        "fastsafetensors",
        "fastsafetensors",
        SAFETENSORS,
        _copying("fastsafetensors, O_DIRECT", loaders.fastsafetensors),
        _copying("fastsafetensors, ODIRECT=0", loaders.fastsafetensors, _BUFFERED),
    ),
    *_loading(
        "runai",
        "runai-model-streamer",
        SAFETENSORS,
        _copying("Run:ai model streamer", loaders.run_ai()),
        _copying("Run:ai, sync_buffered", loaders.run_ai(), _SYNC_BUFFERED),
    ),
    *_loading(
        "torch_checkpointing",
        "torch_checkpointing",
        TORCH_CHECKPOINTING,
        loaders.checkpoint_manager_arm("torch_checkpointing"),
    ),
    *_loading(
        "torch_load", "torch", TORCH_SAVE, _copying("torch.load(mmap=True)", loaders.torch_load)
    ),
    Contestant(arm=arms.literal(), group="literal"),
)

#: Every run has these: the reference, what bounds the others, and what all are compared with.
ALWAYS: Final = ("torch", "raw", "paraload")

#: What the others are held against.
RAW: Final = _RAW.name
