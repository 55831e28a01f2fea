"""``paraload.load``: a whole ``dcp.load`` with a parallel reader, in one call."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from paraload.errors import InvalidOptionError
from paraload.readers import ParallelFileSystemReader

if TYPE_CHECKING:
    import os

    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint.planner import LoadPlanner

    from paraload.options import ReadOptions
    from paraload.report import ReadReport

__all__ = ["load"]


def load(
    state_dict: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    planner: LoadPlanner | None = None,
    process_group: ProcessGroup | None = None,
    no_dist: bool = False,
    options: ReadOptions | None = None,
    **keywords: Any,
) -> ReadReport:
    """Load a checkpoint into ``state_dict``, in place, as ``dcp.load`` does.

    Args:
        state_dict: tensors of the right shapes, on the devices where they shall be.
        path: folder of the checkpoint.
        planner: instead of torch's ``DefaultLoadPlanner``.
        process_group: the ranks that load together; the default group when not given.
        no_dist: load in this process alone, whatever groups there are.
        options: a whole :class:`~paraload.ReadOptions` instead of single keywords.
        **keywords: the fields of :class:`~paraload.ReadOptions`.

    Returns:
        What was read, and how.

    Raises:
        CheckpointReadError: something could not be read.
        torch.distributed.checkpoint.api.CheckpointException: under a process group, with the
            errors of all ranks, those of this class among them.

    >>> import tempfile, torch, paraload, torch.distributed.checkpoint as dcp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save({"w": torch.arange(4.0)}, checkpoint_id=folder, no_dist=True)
    ...     state = {"w": torch.zeros(4)}
    ...     report = paraload.load(state, folder, no_dist=True)
    >>> state["w"], report.items
    (tensor([0., 1., 2., 3.]), 1)
    """
    if "://" in str(path):
        raise InvalidOptionError(
            f"{str(path)!r} is a URL; this version reads folders of a mounted file system"
        )
    reader = ParallelFileSystemReader(Path(path), options=options, **keywords)
    with warnings.catch_warnings():
        # Who calls this without a process group knows that there is none.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            dcp.load(
                state_dict,
                storage_reader=reader,
                planner=planner,
                process_group=process_group,
                no_dist=no_dist,
            )
        except CheckpointException as error:
            if no_dist or not torch.distributed.is_initialized():
                # torch wraps every error, Ctrl-C too, for ranks that are not there.
                raise error.failures[0][0] from None
            raise
    if reader.last_report is None:
        raise RuntimeError("dcp.load returned without reading")  # a planner that reads nothing
    return reader.last_report
