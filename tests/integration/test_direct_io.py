"""Whole loads past the page cache: same bits, unchanged cache, same errors."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

import paraload
from benchmarks.page_cache import ensure_cold, resident_fraction
from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.cli import main
from paraload.errors import ChecksumMismatchError
from paraload.sources import direct_io as _direct
from tests.integration import support

REFUSED = "no O_DIRECT here (Invalid argument)"


@pytest.fixture
def saved(tmp_path):
    """Two tensors of 6 MiB, two of 2, two of 0.8; and small ones that are not worth it."""
    state = {f"huge.{n}": torch.randn(1024, 1536) for n in range(2)}
    state |= {f"middle.{n}": torch.randn(512, 1024).t().contiguous() for n in range(2)}
    return support.save(tmp_path / "ckpt", state | support.example_state(big=2))


@pytest.fixture
def cold(tmp_path, saved):
    ensure_cold(support.data_files(tmp_path / "ckpt"))
    return tmp_path / "ckpt"


@pytest.fixture
def no_direct(monkeypatch):
    """A file system without it."""

    def refused(self, fd, size, *, residency_known):
        raise _direct.DirectRefusedError("Invalid argument")

    monkeypatch.setattr(_direct.DirectFile, "__init__", refused)
    monkeypatch.setattr(_direct.DirectFile, "__del__", lambda self: None)


@pytest.mark.parametrize("executor", support.EXECUTORS)
@pytest.mark.parametrize("verify", [True, False])
def test_every_executor_reads_the_same(cold, saved, executor, verify):
    reader = ParallelFileSystemReader(
        cold, executor=executor, max_workers=2, direct_io=True, verify=verify
    )
    loaded = support.load(reader, support.empty_like(saved))
    support.assert_same(loaded, saved)
    report = reader.last_report
    assert report.bytes_direct >= 12 << 20
    assert not report.fallbacks
    assert "of it past the page cache" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["bytes_direct"] == report.bytes_direct
    # Headers and small records come through the cache, with the kernel's read-ahead.
    assert resident_fraction(support.data_files(cold)) < 0.9


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_what_is_cached_is_not_read_from_the_storage(tmp_path, saved, executor):
    for file in support.data_files(tmp_path / "ckpt"):
        file.read_bytes()
    reader = ParallelFileSystemReader(
        tmp_path / "ckpt", executor=executor, max_workers=2, direct_io=True
    )
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report.bytes_direct == 0
    assert "page cache" not in str(reader.last_report)


def test_a_file_system_without_it_is_reported_once_for_each_item(cold, saved, no_direct):
    reader = ParallelFileSystemReader(cold, direct_io=True, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report.bytes_direct == 0
    assert reader.last_report.fallbacks == {REFUSED: 6}  # the small ones would not have gone so
    assert f"slow paths: {REFUSED} (6)" in str(reader.last_report)


@pytest.fixture
def fails_once(monkeypatch):
    """The first of the reads past the cache."""
    really = _direct.DirectFile.read_into
    failed = []

    def failing(self, start, buffer, scratch):
        if not failed:
            failed.append(start)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(self, start, buffer, scratch)

    monkeypatch.setattr(_direct.DirectFile, "read_into", failing)


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_an_error_of_the_moment_is_tried_again(cold, saved, fails_once, executor):
    reader = ParallelFileSystemReader(cold, direct_io=True, executor=executor, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report.retries == 1
    assert reader.last_report.bytes_direct > 0


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_damage_is_found_as_ever(cold, saved, executor):
    path, offset, length = support.records_of(cold)["huge.0"]
    support.flip(path, offset + length // 2)
    ensure_cold(support.data_files(cold))
    reader = ParallelFileSystemReader(cold, executor=executor, max_workers=2, direct_io=True)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(plan, planner)
    [failure] = caught.value.failures
    assert isinstance(failure, ChecksumMismatchError)
    assert failure.fqn == "huge.0"


def test_verification_goes_past_it(cold):
    report = paraload.verify(cold, direct_io=True)
    assert report.ok
    assert report.bytes_direct >= 12 << 20
    assert not report.fallback
    by_cache = paraload.verify(cold)
    assert by_cache.bytes_checked == report.bytes_checked
    assert by_cache.bytes_direct == 0
    assert "page cache" not in str(by_cache)


def test_verification_reports_a_file_system_without_it(cold, no_direct):
    report = paraload.verify(cold, direct_io=True)
    assert report.ok
    assert report.bytes_direct == 0
    assert report.fallback == REFUSED
    assert f"slow path: {REFUSED}" in str(report).splitlines()


def test_verification_reports_retries(cold, fails_once):
    report = paraload.verify(cold, direct_io=True)
    assert report.ok
    assert report.retries == 1
    assert "retried requests: 1" in str(report)


def test_the_commands_have_it(cold, capsys):
    assert main(["verify", str(cold), "--direct-io"]) == 0
    assert "read past the page cache: " in capsys.readouterr().out
    ensure_cold(support.data_files(cold))
    assert main(["load", str(cold), "--direct-io"]) == 0
    assert "of it past the page cache" in capsys.readouterr().out
