"""The checkpoints that are measured, written by torch itself and warmed into the page cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

__all__ = [
    "Checkpoints",
    "llama_shapes",
    "poison",
    "raw_bytes",
    "targets_of",
    "warm",
    "write",
]

#: The layers bring the model to 1.46 GiB.
_LAYERS: Final = 14
_WIDTH: Final = 2048
_HIDDEN: Final = 5632
_VOCABULARY: Final = 32_000

_SMALL_TENSORS: Final = 50_000
_MEDIUM_TENSORS: Final = 10_000
_SLICED_SHAPE: Final = (4096, 5632)
_SLICED_TENSORS: Final = 12
_COMPRESSED_TENSORS: Final = 64

#: No value of a fresh tensor, and no value that a checkpoint here is full of.
_POISON: Final = 0xA5
_READ_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """Checkpoints below ``folder``, each written when it is first asked for."""

    folder: Path

    def llama(self, *, files: int) -> Path:
        """1.46 GiB of bf16 in the shapes of a Llama, in exactly ``files`` files."""
        return _written(self.folder / f"llama-{files}", "llama", files)

    def small(self) -> Path:
        """50,000 tensors of 4 KiB in 8 files."""
        return _written(self.folder / "small", "small", 8)

    def table(self, *, files: int) -> Path:
        """114 MiB of tensors from 2 KiB to 16 MiB in ``files`` files."""
        return _written(self.folder / f"table-{files}", "table", files)

    def sliced(self) -> Path:
        """12 whole matrices in 8 files; one of eight ranks reads a slice of each."""
        return _written(self.folder / "sliced", "sliced", 8)

    def compressed(self) -> Path:
        """256 MiB of weights as torch's ZStandard extension writes them, in 8 files."""
        return _written(self.folder / "compressed", "weights", 8, zstd=True)

    def remote(self, *, files: int) -> Path:
        """258 MiB of bf16 in the shapes of a Llama, in ``files`` files."""
        return _written(self.folder / f"remote-{files}", "remote", files)

    def medium(self) -> Path:
        """10,000 tensors of 64 KiB in 8 files."""
        return _written(self.folder / "medium", "medium", 8)

    def tiny(self) -> Path:
        """16 MiB in 8 files: nothing to read, so that only the start-up counts."""
        return _written(self.folder / "tiny", "tiny", 8)


@cache
def _written(folder: Path, kind: str, files: int, *, zstd: bool = False) -> Path:
    write(folder, _SHAPES[kind](), files=files, zstd=zstd)
    return folder


def write(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], *, files: int, zstd: bool = False
) -> None:
    """Have torch write bf16 tensors of these shapes in exactly ``files`` files, and warm them."""
    make = _weights if zstd else _random  # random bits would not get shorter
    state = {name: make(shape) for name, shape in shapes.items()}
    # One file for each thread of the writer: torch fills that many buckets, the emptiest first.
    keywords: dict[str, Any] = {}
    if zstd:
        from torch.distributed.checkpoint import _extension  # noqa: PLC0415 - not in torch 2.6

        keywords["_extensions"] = [_extension.ZStandard()]
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=files, **keywords)
    dcp.save(state, storage_writer=writer, no_dist=True)
    del state
    # What is still to be written back would be written during the first rounds.
    os.sync()
    data = sorted(folder.glob("*.distcp"))
    if len(data) != files:
        raise RuntimeError(f"torch wrote {len(data)} files instead of {files}")
    warm(data)


def warm(files: Iterable[Path]) -> None:
    """Read every byte once, into the page cache."""
    buffer = bytearray(_READ_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def llama_shapes(
    layers: int, width: int, hidden: int, vocabulary: int
) -> dict[str, tuple[int, ...]]:
    """The weights of a Llama, by name."""
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (vocabulary, width)}
    for layer in range(layers):
        for part in ("q", "k", "v", "o"):
            shapes[f"layers.{layer}.attention.{part}.weight"] = (width, width)
        for part in ("gate", "up", "down"):
            shapes[f"layers.{layer}.mlp.{part}.weight"] = (hidden, width)
        for part in ("attention_norm", "mlp_norm"):
            shapes[f"layers.{layer}.{part}.weight"] = (width,)
    return shapes | {"norm.weight": (width,)}


_SHAPES: Final[dict[str, Callable[[], dict[str, tuple[int, ...]]]]] = {
    "llama": lambda: llama_shapes(_LAYERS, _WIDTH, _HIDDEN, _VOCABULARY),
    "table": lambda: llama_shapes(4, 1024, 2816, 8192),
    "remote": lambda: llama_shapes(2, _WIDTH, _HIDDEN, _VOCABULARY // 2),
    "small": lambda: {f"small.{n:05}": (2048,) for n in range(_SMALL_TENSORS)},
    "medium": lambda: {f"medium.{n:04}": (32_768,) for n in range(_MEDIUM_TENSORS)},
    "sliced": lambda: {f"matrix.{n:02}": _SLICED_SHAPE for n in range(_SLICED_TENSORS)},
    "weights": lambda: {f"weights.{n:02}": (2048, 1024) for n in range(_COMPRESSED_TENSORS)},
    "tiny": lambda: {f"tiny.{n}": (1024, 1024) for n in range(8)},
}


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    # Random bits, not random numbers: a wrong byte anywhere then shows.
    return torch.empty(shape, dtype=torch.int16).random_().view(torch.bfloat16)


def _weights(shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.randn(shape) * 0.02).to(torch.bfloat16)


def targets_of(folder: Path) -> dict[str, torch.Tensor]:
    """A tensor for each one of the checkpoint, its memory faulted in."""
    metadata = FileSystemReader(folder).read_metadata()
    targets = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    poison(targets)
    return targets


def poison(targets: Mapping[str, torch.Tensor]) -> None:
    """Fill every byte with what no checkpoint holds, so that what stays unread shows."""
    for tensor in targets.values():
        raw_bytes(tensor).fill_(_POISON)


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, as a flat one that shares its memory."""
    return tensor.view(-1).view(torch.uint8)
