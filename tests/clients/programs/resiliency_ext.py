"""nvidia-resiliency-ext: its reader, which caches the metadata, for two loads."""

from __future__ import annotations

import torch.distributed.checkpoint as dcp
from nvidia_resiliency_ext.checkpointing.async_ckpt.cached_metadata_filesystem_reader import (
    CachedMetadataFileSystemReader,
)

from tests.clients.programs._common import made

PACKAGE, RANKS = "nvidia-resiliency-ext", 2


def save(folder):
    dcp.save(made(0).state_dict(), checkpoint_id=folder)


def load(folder):
    reader = CachedMetadataFileSystemReader(folder)
    loaded = []
    for seed in (1, 2):
        loaded.append(made(seed).state_dict())
        dcp.load(loaded[-1], storage_reader=reader)
    return loaded
