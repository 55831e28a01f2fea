"""Remote loads stay within the memory budget, however many connections there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration import support
from tests.servers import faulty_server

MIB = 1 << 20
BUDGET = 32 * MIB
#: Above the budget, for threads and what libraries keep.
ALLOWANCE = 64 * MIB
CONNECTIONS = (1, 8, 96)

#: A process of its own, whose memory has nothing of the server.
CHILD = """
import json, sys
import fsspec.registry, torch
from fsspec.implementations.http import HTTPFileSystem
from benchmarks.peak_memory import PeakMemory
from paraload import ParallelFsspecReader, ParallelObjectStoreReader
from tests.integration import support

class Plain(HTTPFileSystem):
    async def _cat_file(self, *args, **options):  # of its own: bodies are complete in memory
        return await super()._cat_file(*args, **options)

url, sizes, budget = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
fs = {"obstore": None, "fsspec HTTP": None, "fsspec cat_file": Plain()}[sys.argv[4]]
kind = ParallelObjectStoreReader if sys.argv[4] == "obstore" else ParallelFsspecReader
options = {} if fs is None else {"fs": fs}
targets = {name: torch.ones(size, dtype=torch.uint8) for name, size in sizes.items()}
peaks = {}
for connections in json.loads(sys.argv[5]):
    reader = kind(url, max_workers=connections, memory_budget_bytes=budget, **options)
    with PeakMemory() as memory:
        support.load(reader, targets)
    peaks[connections] = memory.peak_bytes
print(json.dumps(peaks))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """160 MiB, of which 32 are in small tensors."""
    folder = tmp_path_factory.mktemp("ckpt")
    big = {f"big.{n}": torch.ones(8 * MIB, dtype=torch.uint8) for n in range(16)}
    small = {f"small.{n}": torch.ones(MIB // 8, dtype=torch.uint8) for n in range(256)}
    support.save(folder, big | small, files=4)
    return {f.name: f.read_bytes() for f in folder.iterdir()}, {
        name: len(value) for name, value in (big | small).items()
    }


@pytest.mark.parametrize("client", ["obstore", "fsspec HTTP", "fsspec cat_file"])
def test_peak_memory_at_every_number_of_connections(checkpoint, client):
    files, sizes = checkpoint
    with faulty_server(files) as server:
        arguments = [server.url, json.dumps(sizes), str(BUDGET), client, json.dumps(CONNECTIONS)]
        child = subprocess.run(
            [sys.executable, "-c", CHILD, *arguments],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    assert child.returncode == 0, child.stderr
    peaks = json.loads(child.stdout.splitlines()[-1])
    assert list(map(int, peaks)) == list(CONNECTIONS)
    assert max(peaks.values()) < BUDGET + ALLOWANCE, peaks
