"""A storage that fails briefly, fails for good, or stalls; files that change."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from pathlib import Path

import pytest
import torch

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import (
    ChangedFileError,
    FormatError,
    MissingFileError,
    ShortFileError,
    StalledReadError,
    StorageReadError,
    UnsafePathError,
)
from paraload.testing import FaultySource, leaked, resources
from tests.integration import support
from tests.integration.support import EXECUTORS

TRANSIENT = ["EIO", "ESTALE", "EAGAIN", "ETIMEDOUT", "ENOENT"]


def refused(name):
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


class FaultyReader(ParallelFileSystemReader):
    """Reads through a :class:`FaultySource`."""

    def __init__(self, path, faults, **keywords):
        super().__init__(path, **keywords)
        self._faults = faults

    def _make_source(self):
        return FaultySource(super()._make_source(), **self._faults)


def read(reader, saved):
    targets = support.empty_like(saved)
    plan, planner = support.plan_for(reader, targets)
    reader.read_data(plan, planner)
    return targets


def failing(reader, saved, kind=CheckpointReadError):
    targets = support.empty_like(saved)
    plan, planner = support.plan_for(reader, targets)
    before = resources()
    with pytest.raises(kind) as caught:
        reader.read_data(plan, planner)
    assert leaked(before) == []
    return caught.value, targets


# ------------------------------------------------------------------------------------ tried again


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", TRANSIENT)
def test_what_fails_once_is_tried_again_and_counted(folder, saved, executor, name):
    faults = {"fail_at": 2, "error": refused(name)}
    reader = FaultyReader(folder, faults, executor=executor, max_workers=2)
    support.assert_same(read(reader, saved), saved)
    report = reader.last_report
    assert report.retries >= 1
    assert f"retried requests: {report.retries}" in str(report)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_fails_for_good_is_an_error_with_the_place_and_the_tries(folder, saved, executor):
    faults = {"fail_at": 1, "times": 10**6, "error": refused("EIO")}
    reader = FaultyReader(folder, faults, executor=executor, max_workers=2, retries=2)
    error, _ = failing(reader, saved)
    assert {failure.fqn for failure in error.failures} == set(saved)
    assert all(isinstance(failure, StorageReadError) for failure in error.failures)
    assert "the system answered EIO (Input/output error) 3 times" in str(error)
    assert ".distcp', bytes [" in str(error)
    back = pickle.loads(pickle.dumps(error)).failures[0]
    assert (back.errno, str(back)) == (errno.EIO, str(error.failures[0]))


def test_a_thousand_small_records_do_not_wait_one_by_one(tmp_path):
    saved = {f"w.{n}": torch.ones(3) for n in range(1000)}
    support.save(tmp_path, saved, files=1)
    faults = {"fail_at": 1, "times": 10**6, "error": refused("EIO")}
    started = time.monotonic()
    failing(FaultyReader(tmp_path, faults, executor="sequential"), saved)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "name",
    ["EINVAL", "EFAULT", "EACCES", "EPERM", "ELOOP", "ENAMETOOLONG", "ENOTDIR", "EISDIR"],
)
def test_permanent_errors_are_not_retried(folder, saved, name):
    faults = {"fail_at": 1, "times": 10**6, "error": refused(name)}
    error, _ = failing(FaultyReader(folder, faults, executor="sequential"), saved)
    assert f"the system answered {name} ({os.strerror(getattr(errno, name))}) (file" in str(error)


def test_without_retries_the_first_answer_counts(folder, saved):
    faults = {"fail_at": 1, "times": 10**6, "error": refused("EIO")}
    started = time.monotonic()
    error, _ = failing(FaultyReader(folder, faults, executor="sequential", retries=0), saved)
    assert "EIO (Input/output error) (file" in str(error)
    assert time.monotonic() - started < 5


def test_damage_is_not_tried_again(folder, saved):
    file, offset, _ = support.records_of(folder)["big.1"]
    support.flip(file, offset + support.PAYLOAD + 10_000)
    reader = FaultyReader(folder, {})
    error, _ = failing(reader, saved)
    assert [failure.fqn for failure in error.failures] == ["big.1"]


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_every_read_in_turn_fails_once_and_the_load_is_right(folder, saved, executor):
    """As in SQLite's tests: the N-th call fails, for N = 1, 2, 3 ... until there is none."""
    for number in range(1, 100):
        faults = {"fail_at": number, "error": refused("ESTALE")}
        reader = FaultyReader(folder, faults, executor=executor, max_workers=1)
        support.assert_same(read(reader, saved), saved)
        if not reader.last_report.retries:
            assert number > 5
            return
    raise AssertionError("there is always one more read")


# ----------------------------------------------------------------------------------- standing still


@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_workers_that_do_not_answer_are_an_error(folder, saved, executor):
    class Slow(FaultyReader):
        def _make_source(self):
            return SlowElsewhere(super()._make_source(), delay_s=30)

    reader = Slow(folder, {}, executor=executor, max_workers=2, stall_timeout_s=0.5)
    started = time.monotonic()
    error, _ = failing(reader, saved, StalledReadError)
    assert time.monotonic() - started < 15
    assert "no answer for 0.5 s" in str(error)
    assert ".distcp' bytes [" in str(error)


class SlowElsewhere(FaultySource):
    """Slow in workers, not in the process that made it."""

    def __init__(self, inner, *, delay_s=0.0, home=None, **faults):
        home = home or os.getpid()
        super().__init__(inner, delay_s=0.0 if os.getpid() == home else delay_s)
        self._again = delay_s, home

    def __reduce__(self):
        return slow_elsewhere, (self.inner, *self._again)


def slow_elsewhere(inner, delay_s, home):
    return SlowElsewhere(inner, delay_s=delay_s, home=home)


def test_a_thread_that_does_not_come_back_is_an_error(folder, saved):
    released = threading.Event()

    class Stuck(FaultySource):
        def read(self, path, reads):
            released.wait()
            raise refused("EIO")

    class Reader(ParallelFileSystemReader):
        def _make_source(self):
            return Stuck(super()._make_source())

    reader = Reader(folder, executor="threads", max_workers=2, stall_timeout_s=0.2)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    before = resources()
    try:
        with pytest.raises(StalledReadError) as caught:
            reader.read_data(plan, planner)
    finally:
        released.set()
    assert "do not use them again in this process" in str(caught.value)
    assert ".distcp' bytes [" in str(caught.value)
    assert leaked(before) == []


def test_a_slow_storage_is_not_a_stall(folder, saved):
    faults = {"delay_s": 0.05}
    reader = FaultyReader(folder, faults, executor="threads", max_workers=2, stall_timeout_s=0.5)
    support.assert_same(read(reader, saved), saved)


# -------------------------------------------------------------------------------- before and after


@pytest.mark.parametrize("executor", EXECUTORS)
def test_all_broken_files_are_named_together(tmp_path, executor):
    saved = {f"w.{n}": torch.randn(100) for n in range(120)}
    support.save(tmp_path, saved, files=6)
    missing, short, empty, pipe, folder, whole = support.data_files(tmp_path)
    missing.unlink()
    os.truncate(short, short.stat().st_size - 1)
    os.truncate(empty, 0)
    for path, make in ((pipe, os.mkfifo), (folder, os.mkdir)):
        path.unlink()
        make(path)
    error, targets = failing(ParallelFileSystemReader(tmp_path, executor=executor), saved)
    support.assert_same(targets, support.empty_like(saved))
    by_file = {failure.path: type(failure) for failure in error.failures}
    assert by_file == {
        missing.name: MissingFileError,
        short.name: ShortFileError,
        empty.name: ShortFileError,
        pipe.name: FormatError,
        folder.name: FormatError,
    }
    assert all(name in str(error) for name in by_file)
    assert whole.name not in str(error)
    assert len([failure for failure in error.failures if failure.path == missing.name]) == 20


def test_a_loop_of_links_is_an_error_and_a_link_is_none(folder, saved):
    first, second, *_ = support.data_files(folder)
    first.rename(folder / "elsewhere")
    first.symlink_to("elsewhere")
    support.assert_same(read(ParallelFileSystemReader(folder), saved), saved)
    first.unlink()
    first.symlink_to(first.name)
    error, _ = failing(ParallelFileSystemReader(folder, retries=0), saved)
    assert "ELOOP" in str(error)
    assert second.name not in str(error)


def test_a_file_that_appears_late_is_waited_for(folder, saved):
    late = support.data_files(folder)[0]
    hidden = late.with_suffix(".hidden")
    late.rename(hidden)
    threading.Timer(0.1, hidden.rename, [late]).start()
    support.assert_same(read(ParallelFileSystemReader(folder), saved), saved)


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../x.distcp", "a/../../x", "a\0b", "\ud800", ".."]
)
def test_paths_that_leave_the_folder_are_refused(folder, saved, path):
    reader = ParallelFileSystemReader(folder)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    for index, info in reader.storage_data.items():
        if index.fqn == "big.0":
            info.relative_path = path
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(plan, planner)
    [failure] = caught.value.failures
    assert isinstance(failure, UnsafePathError)
    assert failure.fqn == "big.0"
    assert ("allow_outside_paths" in failure.hint) == (path not in ("a\0b", "\ud800"))


def test_an_odd_layout_can_be_allowed(folder, saved):
    outside = folder.parent / "outside.distcp"
    inside = support.data_files(folder)[0]
    inside.rename(outside)
    reader = ParallelFileSystemReader(folder, allow_outside_paths=True)
    targets = support.empty_like(saved)
    plan, planner = support.plan_for(reader, targets)
    for info in reader.storage_data.values():
        if info.relative_path == inside.name:
            info.relative_path = f"../{outside.name}"
    reader.read_data(plan, planner)
    support.assert_same(targets, saved)


def replace_shard(folder):
    first = support.data_files(folder)[0]
    other = first.with_suffix(".new")
    other.write_bytes(first.read_bytes())
    other.rename(first)
    return first.name, "is another file, put in the place of the first"


def write_to_shard(folder):
    first = support.data_files(folder)[0]
    status = first.stat()
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return first.name, "was written to"


def grow_shard(folder):
    first = support.data_files(folder)[0]
    with first.open("ab") as file:
        file.write(b"more")
    return first.name, "bytes and has"


def remove_shard(folder):
    first = support.data_files(folder)[0]
    first.unlink()
    return first.name, "cannot be looked at any more"


def rewrite_metadata(folder):
    metadata = folder / ".metadata"
    other = folder / "x"
    other.write_bytes(metadata.read_bytes())
    other.rename(metadata)
    return ".metadata", "is another file"


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    "change", [replace_shard, write_to_shard, grow_shard, remove_shard, rewrite_metadata]
)
def test_what_changes_during_the_load_is_an_error(folder, saved, executor, change):
    changes = []

    def once(progress):
        if not changes:
            changes.append(change(folder))

    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2, progress=once)
    error, _ = failing(reader, saved)
    [(name, what)] = changes
    text = str(error)
    if isinstance(error, ChangedFileError):
        assert [Path(path).name for path in error.paths] == [name]
    else:  # a worker came too late to open it
        assert change is remove_shard
        assert isinstance(error.failures[0], MissingFileError)
        text = error.__notes__[-1]
    assert what in text
    assert "a mixture of two checkpoints" in text
    assert reader.last_report is None


def test_new_links_and_owners_are_not_changes(folder, saved):
    def touch(progress):
        first = support.data_files(folder)[0]
        link = folder / "link"
        if not link.exists():
            link.hardlink_to(first)
            first.chmod(0o600)

    support.assert_same(read(ParallelFileSystemReader(folder, progress=touch), saved), saved)


def test_an_error_of_a_load_names_files_that_changed(folder, saved):
    def cut(progress):
        for file in support.data_files(folder):
            os.truncate(file, 10)

    reader = ParallelFileSystemReader(folder, executor="sequential", progress=cut)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(plan, planner)
    assert any("changed while it was read" in note for note in caught.value.__notes__)


def test_a_thread_that_hangs_while_it_opens_a_file_does_not_hang_the_caller(
    folder, saved, monkeypatch
):
    from paraload.sources import local as _local

    released = threading.Event()
    caller = threading.get_ident()
    really_open = os.open

    def hanging(*args, **keywords):
        if threading.get_ident() != caller:
            released.wait()
        return really_open(*args, **keywords)

    reader = ParallelFileSystemReader(folder, max_workers=2, stall_timeout_s=0.2)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    monkeypatch.setattr(_local.os, "open", hanging)  # .metadata is read by a thread as well
    started = time.monotonic()
    try:
        with pytest.raises(StalledReadError):
            reader.read_data(plan, planner)
    finally:
        released.set()
    assert time.monotonic() - started < 10
    for thread in threading.enumerate():
        if thread.name.startswith("paraload-"):
            thread.join(10)


def test_too_many_open_files_are_done_with_fewer(tmp_path):
    import resource

    saved = {f"w.{n}": torch.randn(100) for n in range(60)}
    support.save(tmp_path, saved, files=60)
    reader = ParallelFileSystemReader(tmp_path, executor="sequential", retries=0)
    targets = support.empty_like(saved)
    plan, planner = support.plan_for(reader, targets)
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 6, hard))
    try:
        reader.read_data(plan, planner)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    support.assert_same(targets, saved)
