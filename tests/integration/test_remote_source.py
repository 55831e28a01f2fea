"""A whole load from a storage unlike a file system."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import (
    ChangedFileError,
    InvalidOptionError,
    MissingFileError,
    ShortFileError,
    StorageReadError,
)
from tests.integration import hooks, support
from tests.integration.test_slices import empty, wanted
from tests.sources import MIB, RemoteLikeSource


class RemoteReader(ParallelFileSystemReader):
    """Keeps the source of its last load."""

    def __init__(self, path, *, latency_s=0.001, busy=0, **options):
        super().__init__(path, **options)
        files = {file.name: file.read_bytes() for file in Path(path).glob("*.distcp")}
        self.source = RemoteLikeSource(files, latency_s=latency_s, busy=busy)

    def _make_source(self):
        return self.source


def failing(reader, saved, kind=CheckpointReadError):
    plan = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(kind) as caught:
        reader.read_data(*plan)
    return caught.value


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_every_executor_loads_the_same_bits(folder, saved, executor):
    reader = RemoteReader(folder, executor=executor, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report.fallbacks == {}


def test_small_records_are_one_request_and_headers_are_not_read_apart(tmp_path):
    """All of this fits into one request, so nothing is worth another."""
    saved = support.save(tmp_path, support.example_state(), files=1)
    reader = RemoteReader(tmp_path, latency_s=0.03)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    [(_, start, end)] = reader.source.requests
    assert end - start > 3 * MIB
    assert reader.last_report.reads == 1
    assert len(reader.source.looks) == 2, "before the load and after it"


def test_blocks_hold_what_one_request_may_bring(tmp_path):
    saved = {f"w.{n}": torch.randn(1 << 18) for n in range(20)}
    support.save(tmp_path, saved, files=1)
    reader = RemoteReader(tmp_path)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert len(reader.source.requests) == 3, "7 of 1 MiB each time"


def test_a_record_longer_than_a_request_is_located_and_split(tmp_path):
    saved = support.save(tmp_path, {"w": torch.randn(5 * MIB)}, files=1)
    reader = RemoteReader(tmp_path, max_workers=1)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    lengths = [end - start for _, start, end in reader.source.requests]
    head, last, *data = sorted(lengths)
    assert head == 64 << 10
    assert data == [8 * MIB, 8 * MIB]
    assert 0 < last - 4 * MIB < 100, "the trailer comes with the last bytes"


def test_a_trailer_that_does_not_fit_is_a_request_of_its_own(tmp_path):
    saved = support.save(tmp_path, {"w": torch.randn(4 * MIB)}, files=1)
    reader = RemoteReader(tmp_path, max_workers=1)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    trailer, head, *data = sorted(end - start for _, start, end in reader.source.requests)
    assert (head, data) == (64 << 10, [8 * MIB, 8 * MIB])
    assert trailer < 100
    assert reader.last_report.bytes_verified == saved["w"].nbytes


def test_rows_apart_by_less_than_a_request_costs_are_read_through(tmp_path):
    matrix = torch.randn(100, 50_000)
    support.save(tmp_path, {"w": matrix})
    window = {"w": (slice(0, 100), slice(7, 107))}
    reader, targets = RemoteReader(tmp_path), empty(window)
    reader.read_data(*wanted(reader, targets, window)).wait()
    assert torch.equal(targets["w"], matrix[:, 7:107])
    assert len(reader.source.requests) == 4, "the header, and rows of 200 kB, 8 MiB at once"


def test_many_requests_are_in_flight_on_any_number_of_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("paraload.runtime.resources.usable_cores", lambda: 1)
    saved = support.save(tmp_path, {f"w.{n}": torch.randn(3 * MIB) for n in range(20)}, files=2)
    reader = RemoteReader(tmp_path, latency_s=0.03)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert 8 < reader.source.most_in_flight <= 32


def test_its_own_transient_errors_are_retried_and_counted(folder, saved):
    reader = RemoteReader(folder, busy=2, retries=3, executor="sequential")
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert reader.last_report.retries == 2


def test_an_error_that_stays_is_reported(folder, saved):
    error = failing(RemoteReader(folder, busy=10**6, retries=1), saved)
    assert {failure.fqn for failure in error.failures} == set(saved)
    assert all(isinstance(failure, StorageReadError) for failure in error.failures)
    assert "the storage answered UnavailableError (503 Slow Down)" in str(error)


def test_a_client_that_retries_by_itself_is_asked_once(folder, saved):
    class Patient(RemoteLikeSource):
        is_transient = None

    reader = RemoteReader(folder, executor="sequential", retries=3)
    reader.source = Patient(reader.source.files, latency_s=0, busy=10**6)
    error = failing(reader, saved)
    assert "UnavailableError: 503 Slow Down" in str(error)
    assert len(reader.source.requests) <= 3 + len(saved), "once each, together and one by one"


def test_files_that_are_missing_or_short_are_known_before_the_first_byte(folder, saved):
    reader = RemoteReader(folder)
    first, second, _ = sorted(reader.source.files)
    del reader.source.files[first]
    reader.source.files[second] = reader.source.files[second][:-1]
    error = failing(reader, saved)
    assert {(f.path, type(f)) for f in error.failures} == {
        (first, MissingFileError),
        (second, ShortFileError),
    }
    assert reader.source.requests == []


def test_another_etag_after_the_load_is_an_error(folder, saved):
    reader = RemoteReader(folder)
    first = min(reader.source.files)
    data = bytearray(reader.source.files[first])
    data[-1] ^= 1

    def change(_):
        reader.source.files[first] = bytes(data)

    reader.options = RemoteReader(folder, progress=change).options
    error = failing(reader, saved, ChangedFileError)
    assert error.paths == (first,)
    assert "was replaced or written to" in str(error)


def test_hooks_that_want_streams_are_refused_before_any_work(folder, saved):
    reader = RemoteReader(folder, slice_file=hooks.sliced)
    error = failing(reader, saved, InvalidOptionError)
    assert "RemoteLikeSource does not have" in str(error)
    assert (reader.source.requests, reader.source.looks) == ([], [])
