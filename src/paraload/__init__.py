"""paraload: a parallel drop-in reader for PyTorch Distributed Checkpoint.

    import torch.distributed.checkpoint as dcp
    from paraload import ParallelFileSystemReader

    dcp.load(state_dict, storage_reader=ParallelFileSystemReader("ckpt/step-1000"))

Names are imported on first use, so that ``import paraload`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paraload import errors as errors
    from paraload import formats as formats
    from paraload import hooks as hooks
    from paraload import manifest as manifest
    from paraload import sources as sources
    from paraload import testing as testing
    from paraload.adapters.dcp.fsspec_reader import ParallelFsspecReader
    from paraload.adapters.dcp.hf_reader import ParallelHuggingFaceReader
    from paraload.adapters.dcp.install import Installation, install, installed, uninstall
    from paraload.adapters.dcp.load import load
    from paraload.adapters.dcp.object_store import ParallelObjectStoreReader
    from paraload.adapters.dcp.read import read
    from paraload.adapters.dcp.readers import ParallelFileReader, ParallelFileSystemReader
    from paraload.adapters.dcp.safe_planner import SafeLoadPlanner
    from paraload.errors import CheckpointReadError
    from paraload.options import ReadOptions
    from paraload.progress import ReadProgress
    from paraload.report import ReadReport
    from paraload.verification.report import VerifyReport
    from paraload.verification.verify import verify

__all__ = [
    "CheckpointReadError",
    "Installation",
    "ParallelFileReader",
    "ParallelFileSystemReader",
    "ParallelFsspecReader",
    "ParallelHuggingFaceReader",
    "ParallelObjectStoreReader",
    "ReadOptions",
    "ReadProgress",
    "ReadReport",
    "SafeLoadPlanner",
    "VerifyReport",
    "install",
    "installed",
    "load",
    "read",
    "uninstall",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "CheckpointReadError": "paraload.errors",
    "Installation": "paraload.adapters.dcp.install",
    "ParallelFileReader": "paraload.adapters.dcp.readers",
    "ParallelFileSystemReader": "paraload.adapters.dcp.readers",
    "ParallelFsspecReader": "paraload.adapters.dcp.fsspec_reader",
    "ParallelHuggingFaceReader": "paraload.adapters.dcp.hf_reader",
    "ParallelObjectStoreReader": "paraload.adapters.dcp.object_store",
    "ReadOptions": "paraload.options",
    "ReadProgress": "paraload.progress",
    "ReadReport": "paraload.report",
    "SafeLoadPlanner": "paraload.adapters.dcp.safe_planner",
    "VerifyReport": "paraload.verification.report",
    "install": "paraload.adapters.dcp.install",
    "installed": "paraload.adapters.dcp.install",
    "load": "paraload.adapters.dcp.load",
    "read": "paraload.adapters.dcp.read",
    "uninstall": "paraload.adapters.dcp.install",
    "verify": "paraload.verification.verify",
}
#: Not in ``__all__``: ``from paraload import *`` must not import pytest.
_MODULES = {"errors", "formats", "hooks", "manifest", "sources", "testing"}


if not TYPE_CHECKING:  # otherwise a type checker accepts every name

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"paraload.{name}")  # which sets the attribute
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'paraload' has no attribute {name!r}")
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
