"""Files without read permission: named before the first read, and not retried."""

from __future__ import annotations

import errno
import importlib
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import paraload
from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.cli import main
from paraload.errors import FormatError, MetadataError, StorageReadError
from paraload.sources.local import LocalSource
from paraload.testing import FaultySource, leaked, resources
from tests.integration import support
from tests.integration.support import EXECUTORS

NOBODY = 65534
#: The pauses of three retries take 350 ms.
NO_PAUSE_S = 0.3


@contextmanager
def as_ordinary_user():
    """Without root's right to read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def folder():
    """A checkpoint of three files, 40 tensors each, where an ordinary user can come to it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        saved = {f"w.{n:03}": torch.randn(50) for n in range(117)}
        saved |= {f"big.{n}": torch.randn(300, 400) for n in range(3)}
        support.save(Path(name) / "ckpt", saved)
        # What is imported on the first use may be out of this user's reach.
        paraload.load(support.empty_like(saved), Path(name) / "ckpt", no_dist=True)
        importlib.import_module("paraload.executors.processes.executor")
        yield Path(name) / "ckpt", saved
        for path in [Path(name), Path(name) / "ckpt"]:
            path.chmod(0o755)


def refusal(load, targets, kind=CheckpointReadError):
    """The error, which comes at once, and leaves targets and system as they were."""
    before = resources()
    as_they_were = {name: tensor.clone() for name, tensor in targets.items()}
    with as_ordinary_user():
        started = time.monotonic()
        with pytest.raises(kind) as caught:
            load()
        took_s = time.monotonic() - started
    assert took_s < NO_PAUSE_S
    assert leaked(before) == []
    support.assert_same(targets, as_they_were)
    return caught.value


def ranges(folder):
    return {name: (at, at + length) for name, (_, at, length) in support.records_of(folder).items()}


def assert_refused(error, folder, broken, number):
    """All items of the files ``broken`` are named with their ranges, and no others."""
    places = support.records_of(folder)
    names = {n for n, (file, _, _) in places.items() if str(file.relative_to(folder)) in broken}
    assert {failure.fqn for failure in error.failures} == names
    true_ranges = ranges(folder)
    for failure in error.failures:
        assert isinstance(failure, StorageReadError)
        assert failure.errno == number
        assert failure.path in broken
        assert (failure.start, failure.end) == true_ranges[failure.fqn]
    assert "nothing was read, and the targets are as they were" in str(error)
    assert f"the system answered {errno.errorcode[number]} ({os.strerror(number)}) (" in str(error)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("mode", [0o000, 0o200])
def test_all_unreadable_files_are_named_before_the_first_byte(folder, executor, mode):
    path, saved = folder
    first, _, third = support.data_files(path)
    for file in (first, third):
        file.chmod(mode)
    targets = support.empty_like(saved)
    error = refusal(
        lambda: paraload.load(targets, path, no_dist=True, executor=executor, max_workers=2),
        targets,
    )
    assert_refused(error, path, {first.name, third.name}, errno.EACCES)
    assert "Give this user permission to read the file" in str(error)


def test_so_is_one_behind_a_folder_that_may_not_be_searched(folder):
    path, saved = folder
    file = support.data_files(path)[1]
    (path / "closed").mkdir()
    file.rename(path / "closed" / file.name)
    file.symlink_to(Path("closed") / file.name)
    (path / "closed").chmod(0o600)
    targets = support.empty_like(saved)
    error = refusal(lambda: paraload.load(targets, path, no_dist=True), targets)
    assert_refused(error, path, {file.name}, errno.EACCES)


def test_so_is_one_of_a_wrapped_source(folder):
    path, saved = folder
    file = support.data_files(path)[1]
    file.chmod(0)

    class Reader(ParallelFileSystemReader):
        def _make_source(self):
            return FaultySource(super()._make_source())

    targets = support.empty_like(saved)
    reader = Reader(path)
    plan = support.plan_for(reader, targets)
    error = refusal(lambda: reader.read_data(*plan), targets)
    assert_refused(error, path, {file.name}, errno.EACCES)


@pytest.mark.parametrize("name", ["EPERM", "EACCES"])
def test_a_refusal_to_open_counts_and_not_what_the_permissions_say(folder, monkeypatch, name):
    path, saved = folder
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    targets = support.empty_like(saved)
    paraload.load(targets, path, no_dist=True)
    support.assert_same(targets, saved)

    first = support.data_files(path)[0]
    number = getattr(errno, name)
    really_open = os.open

    def refusing(file, *args, **keywords):
        if str(file) == str(first):
            raise OSError(number, os.strerror(number))
        return really_open(file, *args, **keywords)

    monkeypatch.setattr(os, "open", refusing)
    targets = support.empty_like(saved)
    error = refusal(lambda: paraload.load(targets, path, no_dist=True), targets)
    assert_refused(error, path, {first.name}, number)


def link_to_itself(file):
    file.unlink()
    file.symlink_to(file.name)


def put_into_a_file(file):
    """As if the file's folder had been replaced by a file."""
    with support.rewritten(file.parent) as metadata:
        for info in metadata.storage_data.values():
            if info.relative_path == file.name:
                info.relative_path = f"{file.name}/x.distcp"


def lengthen_the_name(file):
    with support.rewritten(file.parent) as metadata:
        for info in metadata.storage_data.values():
            if info.relative_path == file.name:
                info.relative_path = "x" * 300


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("spoil", "number"),
    [
        (link_to_itself, errno.ELOOP),
        (put_into_a_file, errno.ENOTDIR),
        (lengthen_the_name, errno.ENAMETOOLONG),
    ],
)
def test_paths_that_lead_nowhere_are_known_at_once(folder, executor, spoil, number):
    path, saved = folder
    spoil(support.data_files(path)[1])
    targets = support.empty_like(saved)
    error = refusal(
        lambda: paraload.load(targets, path, no_dist=True, executor=executor, max_workers=2),
        targets,
    )
    broken = {failure.path for failure in error.failures}
    assert_refused(error, path, broken, number)
    assert len(error.failures) == 40


def test_a_folder_in_the_place_of_a_file(folder):
    path, saved = folder
    file = support.data_files(path)[1]
    file.unlink()
    file.mkdir()
    targets = support.empty_like(saved)
    error = refusal(lambda: paraload.load(targets, path, no_dist=True), targets)
    assert {type(failure) for failure in error.failures} == {FormatError}
    assert {(f.start, f.end) for f in error.failures} <= set(ranges(path).values())


def test_verify_names_them_too(folder):
    path, _ = folder
    file = support.data_files(path)[1]
    file.chmod(0)
    with as_ordinary_user():
        started = time.monotonic()
        report = paraload.verify(path)
        assert time.monotonic() - started < NO_PAUSE_S
    assert not report.ok
    assert "EACCES" in str(report)


@pytest.mark.parametrize("executor", ["threads", "processes", "pool"])
def test_a_file_that_cannot_be_opened_later_has_real_ranges_too(folder, executor, monkeypatch):
    path, saved = folder
    monkeypatch.setattr("paraload.executors.choice._SHARE_FROM_BYTES", 0)

    class Closing(ParallelFileSystemReader):
        def _make_source(self):
            return Closed(self.path)

    targets = support.empty_like(saved)
    reader = Closing(path, executor=executor, max_workers=2)
    plan = support.plan_for(reader, targets)
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(*plan)
    true_ranges = ranges(path)
    assert {failure.fqn for failure in caught.value.failures} == set(saved)
    for failure in caught.value.failures:
        assert isinstance(failure, StorageReadError)
        start, end = true_ranges[failure.fqn]
        # A big record is read in parts.
        assert start <= failure.start < failure.end <= end


class Closed(LocalSource):
    """Files that may be looked at, but not be opened."""

    def __reduce__(self):
        return Closed, (self.root,)

    def read(self, path, reads):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_permission_that_is_lost_during_the_load_changes_nothing(folder):
    path, saved = folder

    def close(_):
        for file in support.data_files(path):
            file.chmod(0)

    targets = support.empty_like(saved)
    reader = ParallelFileSystemReader(path, executor="sequential", progress=close)
    plan = support.plan_for(reader, targets)
    reader.read_data(*plan)
    support.assert_same(targets, saved)
    with as_ordinary_user():
        for file in support.data_files(path):
            source = LocalSource(path)
            assert source.stat(file.name).size
            with pytest.raises(PermissionError):
                source.require_readable(file.name)


# ------------------------------------------------------------------------------------- .metadata


def close_the_file(path):
    (path / ".metadata").chmod(0)


def close_the_folder(path):
    path.chmod(0)


def close_the_folder_above(path):
    path.parent.chmod(0)


@pytest.mark.parametrize("close", [close_the_file, close_the_folder, close_the_folder_above])
def test_unreadable_metadata_is_one_error_at_once(folder, close):
    path, saved = folder
    close(path)
    targets = support.empty_like(saved)
    load = lambda: paraload.load(targets, path, no_dist=True)  # noqa: E731
    error = refusal(load, targets, MetadataError)
    assert type(error) is MetadataError
    assert error.path == str(path / ".metadata")
    assert "Permission denied" in str(error)
    assert "Give this user permission to read it" in str(error)
    error = refusal(lambda: ParallelFileSystemReader(path).read_metadata(), targets, MetadataError)
    assert "Permission denied" in str(error)


@pytest.mark.parametrize("close", [close_the_file, close_the_folder])
def test_tools_report_unreadable_metadata_too(folder, close, capsys):
    path, _ = folder
    close(path)
    with as_ordinary_user():
        for command in ("inspect", "verify", "load"):
            assert main([command, str(path)]) == 1
            assert "Give this user permission to read it" in capsys.readouterr().err
        with pytest.raises(MetadataError, match="Permission denied"):
            paraload.verify(path)


@pytest.mark.parametrize("command", ["inspect", "verify", "load"])
def test_a_checkpoint_that_may_not_be_looked_at_is_a_wrong_call(folder, command, capsys):
    path, _ = folder
    close_the_folder_above(path)
    with as_ordinary_user():
        assert main([command, str(path)]) == 2
    assert capsys.readouterr().err == f"paraload: {path}: Permission denied\n"


def test_commands_report_files_in_a_folder_that_cannot_be_searched(folder, capsys):
    path, _ = folder
    with support.rewritten(path) as metadata:
        for info in metadata.storage_data.values():
            info.relative_path = f"inside/{info.relative_path}"
    inside = path / "inside"
    inside.mkdir()
    for file in support.data_files(path):
        file.rename(inside / file.name)
    inside.chmod(0)
    with as_ordinary_user():
        assert main(["inspect", str(path)]) == 1
        text = capsys.readouterr().err
        assert main(["load", str(path)]) == 1
    assert text.count("the file cannot be looked at: Permission denied") == 3
    assert "missing" not in text
    assert "EACCES" in capsys.readouterr().err
