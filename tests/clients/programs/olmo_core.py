"""OLMo-core: its own writer; ``install()`` cannot replace its reader, which does not inherit from
torch's, so ``ParallelFileSystemReader`` takes its place.
"""

from __future__ import annotations

import torch.distributed.checkpoint as dcp
from olmo_core.distributed.checkpoint import RemoteFileSystemReader, RemoteFileSystemWriter

from paraload import ParallelFileSystemReader
from tests.clients.programs._common import digests, made

PACKAGE, RANKS = "ai2-olmo-core", 2


def save(folder):
    dcp.save(made(0).state_dict(), storage_writer=RemoteFileSystemWriter(folder))


def loads_of(program, folder):
    loaded, readers = [], (RemoteFileSystemReader(folder), ParallelFileSystemReader(folder))
    for reader in readers:
        loaded.append(made(1).state_dict())
        dcp.load(loaded[-1], storage_reader=reader)
    return *map(digests, loaded), [readers[1].last_report]
