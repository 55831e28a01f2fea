"""One worker reads each file from front to back, as a spinning disk needs."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
import torch

from paraload import ParallelFileSystemReader
from paraload.sources.local import LocalSource
from tests.integration import support


class NotingSource(LocalSource):
    """Notes where reads begin."""

    def __init__(self, root, reads):
        super().__init__(root)
        self.reads = reads

    def read(self, path, reads):
        self.reads += [(path, start) for start, _ in reads]
        return super().read(path, reads)


class NotingReader(ParallelFileSystemReader):
    def __init__(self, path, **options):
        super().__init__(path, **options)
        self.reads = []

    def _make_source(self):
        return NotingSource(self.path, self.reads)


@pytest.fixture
def saved(tmp_path):
    """Records that are located, split, read in blocks and staged, in files with many of each."""
    state = support.example_state(big=20, small=30)
    state |= {f"half.{n}": torch.randn(400, 900) for n in range(6)}
    state |= {f"large.{n}": torch.randn(1300, 1024) for n in range(3)}
    return support.save(tmp_path / "ckpt", state)


def targets(saved):
    """Some of another dtype, so that their bytes are staged."""
    empty = support.empty_like(saved)
    return empty | {k: v.double() for k, v in empty.items() if k.startswith("half")}


def starts_by_file(reads):
    return [[at for path, at in reads if path == name] for name in {path for path, _ in reads}]


@pytest.mark.parametrize(
    "options", [{"max_workers": 1}, {"executor": "sequential"}, {"enable_parallel": False}]
)
def test_one_reader_never_goes_back(tmp_path, saved, options):
    reader = NotingReader(tmp_path / "ckpt", **options)
    loaded = support.load(reader, targets(saved))
    support.assert_same(
        {k: v for k, v in loaded.items() if not k.startswith("half")},
        {k: v for k, v in saved.items() if not k.startswith("half")},
    )
    assert all(torch.equal(loaded[f"half.{n}"].float(), saved[f"half.{n}"]) for n in range(6))
    changes = [path for path, _ in groupby(path for path, _ in reader.reads)]
    assert len(changes) == 3, "one file after the other"
    starts = starts_by_file(reader.reads)
    assert len(starts) == 3
    assert all(len(of_file) > 20 for of_file in starts)
    assert all(a < b for of_file in starts for a, b in pairwise(of_file))


def test_many_readers_do(tmp_path, saved):
    """Or else the test above would show nothing."""
    reader = NotingReader(tmp_path / "ckpt", max_workers=4)
    support.load(reader, targets(saved))
    assert any(a > b for of_file in starts_by_file(reader.reads) for a, b in pairwise(of_file))
