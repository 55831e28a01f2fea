"""multi-storage-client: its writer and reader, with threads that prefetch."""

from __future__ import annotations

import torch.distributed.checkpoint as dcp
from multistorageclient.contrib.torch import (
    MultiStorageFileSystemReader,
    MultiStorageFileSystemWriter,
)

from tests.clients.programs._common import made

PACKAGE, RANKS = "multi-storage-client", 2


def save(folder):
    dcp.save(made(0).state_dict(), storage_writer=MultiStorageFileSystemWriter(folder))


def load(folder):
    state = made(1).state_dict()
    dcp.load(state, storage_reader=MultiStorageFileSystemReader(folder, thread_count=2))
    return state
