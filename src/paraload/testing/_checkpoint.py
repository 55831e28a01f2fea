"""Checkpoints of torch's own writer, to test with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

__all__ = ["make_checkpoint"]


def make_checkpoint(
    folder: str | os.PathLike[str],
    state_dict: dict[str, Any],
    *,
    files: int = 2,
    single_file_per_rank: bool = True,
    zstd: bool = False,
) -> dict[str, Any]:
    """Save ``state_dict`` with torch's own writer, into ``files`` files; returns it."""
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415 - torch only for those who need it
    from torch.distributed.checkpoint._extension import ZStandard  # noqa: PLC0415 - likewise

    writer = dcp.FileSystemWriter(
        folder,
        thread_count=files,
        single_file_per_rank=single_file_per_rank,
        _extensions=[ZStandard()] if zstd else None,
    )
    dcp.save(state_dict, storage_writer=writer, no_dist=True)
    return state_dict
