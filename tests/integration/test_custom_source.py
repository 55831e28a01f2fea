"""A reader may bring its own source, for a storage that paraload does not know."""

from __future__ import annotations

import pytest

from benchmarks.rated import RatedReader
from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.sources.local import LocalSource
from tests.integration import support


class OtherFileSystem:
    """What would be read by streams, if there were no source."""


class BrokenSource(LocalSource):
    def __reduce__(self):
        return BrokenSource, (self.root,)

    def read(self, path, reads):
        raise OSError(5, "made to fail")


class ReaderOfNothing(ParallelFileSystemReader):
    def _make_source(self):
        return BrokenSource(self.path)


class ReaderElsewhere(ParallelFileSystemReader):
    def _make_source(self):
        return LocalSource(self.elsewhere)


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_every_executor_reads_through_it(folder, saved, executor):
    reader = ReaderOfNothing(folder, executor=executor, max_workers=2)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(
        CheckpointReadError, match=rf"(?s){len(saved)} of {len(saved)} .*made to fail"
    ):
        reader.read_data(plan, planner)


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_it_takes_the_place_of_a_foreign_fs(monkeypatch, tmp_path, executor):
    from paraload.executors import choice as _execution

    monkeypatch.setattr(_execution, "_SHARE_FROM_BYTES", 0)
    saved = support.save(tmp_path / "ckpt", support.example_state())
    reader = ReaderElsewhere(tmp_path / "ckpt", executor=executor, max_workers=2)
    targets = support.empty_like(saved)
    plan, planner = support.plan_for(reader, targets)
    reader.fs, reader.path, reader.elsewhere = OtherFileSystem(), "nowhere", tmp_path / "ckpt"
    reader.read_data(plan, planner)
    assert reader.last_report.executor == executor
    assert reader.last_report.fallbacks == {}
    tensors = {n: v for n, v in saved.items() if hasattr(v, "shape")}
    support.assert_same({name: targets[name] for name in tensors}, tensors)


def test_slow_storage_gets_more_readers_than_cores_and_the_report_says_so(tmp_path, monkeypatch):
    import torch

    from paraload.runtime import resources as _resources

    monkeypatch.setattr(_resources, "usable_cores", lambda: 2)
    saved = support.save(tmp_path, {f"w{n}": torch.randn(1024, 256) for n in range(60)})
    reader = RatedReader(tmp_path, limits={"bytes_per_second_per_stream": 50e6})
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert 4 <= reader.last_report.workers <= 32
    assert reader.last_report.executor == "threads"
