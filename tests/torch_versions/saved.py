"""Small checkpoints that each torch wrote, in ``tests/torch_versions/saved``; see the README there.

python -m tests.torch_versions.saved      write those of the torch that runs this
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from paraload.core.compat import release
from tests.old_torch import EXTENSIONS

__all__ = ["FOLDER", "state"]

FOLDER = Path(__file__).parent / "saved"


def state():
    """What is in each of them: layouts, dtypes and objects whose records differ."""
    return {
        "model": {
            "weight": torch.arange(24.0).reshape(4, 6),
            "transposed": torch.arange(24.0).reshape(4, 6).T,
            "half": torch.arange(8).to(torch.bfloat16),
            "flag": torch.tensor(True),
            "none": torch.zeros(0, 3),
        },
        "step": 1234,
        "lrs": [0.5, 0.25],
    }


def save(folder: str, **keywords: object) -> None:
    # A relative path, because `.metadata` has it.
    writer = dcp.FileSystemWriter(folder, **keywords)
    dcp.save(state(), storage_writer=writer, no_dist=True)


def main() -> None:
    version = torch.__version__.partition("+")[0]
    (FOLDER / version).mkdir(parents=True, exist_ok=True)
    os.chdir(FOLDER / version)
    save("plain")
    if EXTENSIONS.is_here:
        from torch.distributed.checkpoint._extension import ZStandard

        save("zstd", _extensions=[ZStandard()])
    if release() >= (2, 9):
        dcp.save(state(), checkpoint_id="ranks", use_collectives=False, no_dist=True)


if __name__ == "__main__":
    main()
