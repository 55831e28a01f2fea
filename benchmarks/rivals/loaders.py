"""Libraries that load weights, but do not read DCP: they load, the caller copies.

Each loader yields names and tensors of a folder as soon as the library has them, in the way that
its own documentation shows. What is copied may be dropped, so that nobody is charged for memory
that need not be held.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch

from benchmarks.arms import Arm, Prepared
from benchmarks.page_cache import files_below
from benchmarks.rivals.formats import checkpoint_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from benchmarks.cases import Case

    #: From a folder to its tensors.
    Loader = Callable[[Path], Iterator[tuple[str, torch.Tensor]]]

__all__ = [
    "checkpoint_manager_arm",
    "copying",
    "fastsafetensors",
    "flashpack",
    "run_ai",
    "safetensors",
    "torch_load",
]

_NOTHING: Final[Mapping[str, str]] = {}


def copying(name: str, load: Loader, environment: Mapping[str, str] = _NOTHING) -> Arm:
    """Load, and copy into the targets.

    Args:
        name: for the tables.
        load: gives the tensors of a folder.
        environment: settings that the library takes from there only.
    """

    def run(case: Case) -> None:
        with _environment(environment):
            for key, tensor in load(case.folder):
                case.targets[key].copy_(tensor)

    return Arm(name=name, prepare=lambda case: Prepared(run=partial(run, case)))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _named(folder: Path, suffix: str) -> list[str]:
    return [str(file) for file in files_below(folder) if file.suffix == suffix]


def safetensors(backend: str) -> Loader:
    """``load_file`` of each file, by ``mmap`` or by its threads that ``pread``."""

    def load(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        load_file = import_module("safetensors.torch").load_file
        for file in _named(folder, ".safetensors"):
            yield from load_file(file, backend=backend).items()

    return load


def torch_load(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """``torch.load(mmap=True)`` of each file."""
    for file in _named(folder, ".pt"):
        yield from torch.load(file, mmap=True, weights_only=True).items()


def flashpack(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The flat tensors of each file, by views."""
    library = import_module("flashpack.deserialization")
    for file in _named(folder, ".flashpack"):
        storage, metadata = library.read_flashpack_file(file, device="cpu")
        yield from library.iterate_from_flash_tensor(storage, metadata)


def fastsafetensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All files at once, without GPUDirect."""
    fastsafe_open = import_module("fastsafetensors").fastsafe_open
    with fastsafe_open(_named(folder, ".safetensors"), device="cpu", nogds=True) as opened:
        for key in opened.keys():  # noqa: SIM118 - it is not a mapping
            yield key, opened.get_tensor(key)


def run_ai(address: Callable[[str], str] = str) -> Loader:
    """All files at once; its buffers are used again, since every tensor is copied at once.

    Args:
        address: where a local file is read from.
    """

    def load(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        streamer = import_module("runai_model_streamer").SafetensorsStreamer
        files = [address(file) for file in _named(folder, ".safetensors")]
        with streamer() as stream:
            stream.stream_files(files, device="cpu", owned=False)
            yield from stream.get_tensors()

    return load


def checkpoint_manager_arm(name: str) -> Arm:
    """torch_checkpointing, which copies into given tensors itself."""

    def prepare(case: Case) -> Prepared:
        into = {
            # An item is what one file holds; torch names the tensors in it.
            file.stem.removesuffix("_0"): {
                key: case.targets[key] for key in torch.load(file, mmap=True)
            }
            for file in files_below(case.folder)
        }
        return Prepared(run=partial(_load_items, checkpoint_manager(), case.folder, into))

    return Arm(name=name, prepare=prepare)


def _load_items(manager: Any, folder: Path, into: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    manager.load(str(folder), into)
    manager.close()
