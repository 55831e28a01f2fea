"""Checkpoints for tests."""

import os
from typing import Any

from paraload.core import compat


def make_checkpoint(
    folder: str | os.PathLike[str],
    state_dict: dict[str, Any],
    *,
    files: int = 2,
    single_file_per_rank: bool = True,
    zstd: bool = False,
) -> dict[str, Any]:
    """Save ``state_dict`` with torch's own writer and return it.

    Args:
        folder: where to write it.
        state_dict: tensors and objects by name.
        files: number of files.
        single_file_per_rank: ``False`` writes a file for each tensor.
        zstd: compress with torch's ``ZStandard`` extension, which needs torch 2.7.
    """
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415 - the other helpers need no torch

    keywords: dict[str, Any] = {"_extensions": [compat.ZStandard()]} if zstd else {}
    writer = dcp.FileSystemWriter(
        folder, thread_count=files, single_file_per_rank=single_file_per_rank, **keywords
    )
    dcp.save(state_dict, storage_writer=writer, **compat.save_alone())
    return state_dict
