"""Files under a lease: opening one waits until its holder releases it, as torch does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import paraload
from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import FormatError, MetadataError, StalledReadError
from paraload.metadata.reading import read_metadata
from paraload.sources import Read
from paraload.sources import regular_files as _open
from paraload.sources.local import LocalSource
from tests.integration import hooks, support
from tests.integration.support import EXECUTORS

HOLDER = """
    import fcntl, os, signal, sys, time
    fds = [os.open(name, os.O_RDWR) for name in sys.argv[2:]]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    try:
        for fd in fds:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        print(error, flush=True)
        sys.exit()
    print("held", flush=True)
    signal.sigwait({signal.SIGIO})
    time.sleep(float(sys.argv[1]))
    for fd in fds:
        os.close(fd)
"""


@contextmanager
def leased(*files, seconds=0.5):
    """Another process has leases on ``files``, and takes its time to give them back."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(seconds), *map(str, files)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        answer = child.stdout.readline().strip()
        if answer != "held":
            pytest.skip(f"this file system has no leases ({answer})")
        yield
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_load_waits_for_leases(folder, saved, executor):
    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2, retries=0)
    started = time.monotonic()
    with leased(*support.data_files(folder)):
        support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert time.monotonic() - started > 0.5
    assert reader.last_report.retries == 0


@pytest.mark.parametrize("hook", [None, hooks.sliced])
@pytest.mark.parametrize("direct_io", [False, True])
def test_so_do_streams_and_direct_reads(folder, saved, hook, direct_io):
    with leased(*support.data_files(folder)):
        targets = support.empty_like(saved)
        paraload.load(
            targets, folder, no_dist=True, retries=0, slice_file=hook, direct_io=direct_io
        )
    support.assert_same(targets, saved)


def test_metadata_wait_too(folder, saved):
    with leased(folder / ".metadata"):
        assert read_metadata(folder / ".metadata").state_dict_metadata.keys() == saved.keys()
    with leased(folder / ".metadata", *support.data_files(folder)):
        assert paraload.verify(folder, retries=0).ok


def test_what_is_open_waits_for_its_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    with _open.open_regular(str(path)) as file:
        assert os.get_blocking(file.fileno())
    with leased(path, seconds=0.1), _open.open_regular(str(path)) as file:
        assert os.get_blocking(file.fileno())
        assert file.read() == b"bytes"


def test_the_wait_on_a_thread_is_under_the_deadline(folder, saved):
    reader = ParallelFileSystemReader(folder, max_workers=2, retries=0, stall_timeout_s=0.3)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    started = time.monotonic()
    with leased(*support.data_files(folder), seconds=3), pytest.raises(StalledReadError):
        reader.read_data(plan, planner)
    assert time.monotonic() - started < 2.5
    for thread in threading.enumerate():
        if thread.name.startswith("paraload-"):
            thread.join(10)


def test_ctrl_c_ends_the_wait_of_the_callers_thread(folder, saved):
    reader = ParallelFileSystemReader(folder, executor="sequential")
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    with leased(*support.data_files(folder), seconds=10):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            reader.read_data(plan, planner)
        assert time.monotonic() - started < 3
        timer.join()


def blocked(path, flags, *, really=os.open, **keywords):
    """Answers as a file system where opening a file of any kind takes time."""
    if flags & os.O_NONBLOCK:
        raise BlockingIOError(11, "Resource temporarily unavailable", path)
    return really(path, flags, **keywords)


def test_a_fifo_is_refused_at_once_also_where_a_regular_file_was_before(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    source = LocalSource(tmp_path)
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(2):
        with pytest.raises(FormatError, match="not a regular file"):
            source.read("fifo", [Read(0, [memoryview(bytearray(1))])])
        with pytest.raises(MetadataError, match="not a regular file"):
            read_metadata(tmp_path / "fifo")
        # What answers EAGAIN and is then looked at is the FIFO that has taken the file's place.
        monkeypatch.setattr(_open.os, "open", blocked)
    (tmp_path / "file").write_bytes(b"bytes")
    buffer = bytearray(5)
    source.read("file", [Read(0, [memoryview(buffer)])])
    assert buffer == b"bytes"
    source.close()
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_fifo_in_a_load_is_an_error_at_once(folder, saved):
    first = support.data_files(folder)[0]
    first.unlink()
    os.mkfifo(first)
    started = time.monotonic()
    with pytest.raises(CheckpointReadError, match="not a regular file"):
        paraload.load(support.empty_like(saved), folder, no_dist=True)
    assert time.monotonic() - started < 5
