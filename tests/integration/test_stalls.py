"""A stalled storage ends every wait: for file checks, for ``.metadata``, in ``verify``."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

import paraload
from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.errors import StalledReadError
from paraload.manifest import write_manifest
from paraload.metadata import file_bytes as _metadata_bytes
from paraload.metadata import reading as metadata
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources.local import LocalSource
from tests.integration import support
from tests.integration.support import EXECUTORS

TIMEOUT_S = 0.3


@pytest.fixture
def storage():
    """What hangs until the test is over; then nothing of it may be left."""
    released = threading.Event()
    yield released
    released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("paraload-"):
            thread.join(10)
    gc.collect()  # what the stuck ones have opened since


def hang(monkeypatch, storage, where, name, *, from_call=1):
    really, calls = getattr(where, name), []

    def hanging(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) >= from_call:
            storage.wait()
        return really(*arguments, **keywords)

    monkeypatch.setattr(where, name, hanging)


def stalls(act, match, timeout_s=TIMEOUT_S):
    started = time.monotonic()
    with pytest.raises(StalledReadError, match=match) as caught:
        act()
    assert time.monotonic() - started < timeout_s + 5
    assert f"no answer for {timeout_s:g} s" in str(caught.value)
    assert "stall_timeout_s=" in str(caught.value)


@pytest.mark.parametrize(
    ("executor", "from_call"),
    # The first two are those of .metadata.
    [("threads", 3), ("threads", 4), *((executor, 6) for executor in EXECUTORS)],
)
def test_looks_at_files_before_and_after(folder, saved, monkeypatch, storage, executor, from_call):
    hang(monkeypatch, storage, LocalSource, "stat", from_call=from_call)
    timeout_s = (
        TIMEOUT_S if executor in {"sequential", "threads"} else 3.0
    )  # they take time to start
    options = {"executor": executor, "max_workers": 2, "stall_timeout_s": timeout_s}
    stalls(
        lambda: paraload.load(support.empty_like(saved), folder, no_dist=True, **options),
        r"'__0_\d.distcp' was being checked|checking \d files?, '__0_",
        timeout_s,
    )


@pytest.mark.parametrize("executor", ["sequential", "threads"])
@pytest.mark.parametrize("size", ["small", "big"])
@pytest.mark.parametrize("from_call", [2, 4])  # the first read is that of .metadata
def test_reads(tmp_path, monkeypatch, storage, executor, size, from_call):
    """With "threads" too a load of less than 1 MiB has one reader."""
    side = {"small": 30, "big": 500}[size]
    saved = {f"w{n}": torch.randn(side, side) for n in range(4)}
    support.save(tmp_path, saved, files=4)
    hang(monkeypatch, storage, LocalSource, "read", from_call=from_call)
    options = {"executor": executor, "max_workers": 2, "stall_timeout_s": TIMEOUT_S}
    stalls(
        lambda: paraload.load(support.empty_like(saved), tmp_path, no_dist=True, **options),
        r"being read: '__0_\d.distcp' bytes \[\d+, \d+\).*do not use them again",
    )


def test_hooks_of_sequential_run_on_the_caller_s_thread(folder, saved):
    threads = set()

    def narrow(tensor, offsets, lengths):
        threads.add(threading.current_thread())
        return tensor[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]

    targets = support.empty_like(saved)
    paraload.load(targets, folder, no_dist=True, executor="sequential", narrow_tensor=narrow)
    support.assert_same(targets, saved)
    assert threads == {threading.current_thread()}


def test_slow_looks_that_several_threads_take(folder, saved, monkeypatch, storage):
    monkeypatch.setattr("paraload.engine.file_checks._ALONE_S", -1)
    monkeypatch.setattr("paraload.engine.file_checks._QUICK_LOOK_S", -1)
    hang(monkeypatch, storage, LocalSource, "stat", from_call=4)
    stalls(
        lambda: paraload.load(
            support.empty_like(saved), folder, no_dist=True, stall_timeout_s=TIMEOUT_S
        ),
        r"while checking 2 files, '__0_\d.distcp' among them",
    )


def test_many_looks_may_take_longer_together(folder, saved, monkeypatch):
    really = LocalSource.stat

    def slow(self, path):
        time.sleep(0.15)
        return really(self, path)

    monkeypatch.setattr(LocalSource, "stat", slow)
    targets = support.empty_like(saved)
    paraload.load(targets, folder, no_dist=True, stall_timeout_s=TIMEOUT_S)
    support.assert_same(targets, saved)


@pytest.mark.parametrize("step", ["stat", "read"])
@pytest.mark.parametrize("act", ["load", "dcp", "verify"])
def test_metadata(folder, saved, monkeypatch, storage, step, act):
    hang(monkeypatch, storage, LocalSource, step)
    acts = {
        "load": lambda: paraload.load(
            support.empty_like(saved), folder, no_dist=True, stall_timeout_s=TIMEOUT_S
        ),
        "dcp": lambda: ParallelFileSystemReader(folder, stall_timeout_s=TIMEOUT_S).read_metadata(),
        "verify": lambda: paraload.verify(folder, stall_timeout_s=TIMEOUT_S),
    }
    stalls(acts[act], r".metadata' was being read")


def test_metadata_that_come_piece_by_piece_may_take_longer(folder, saved, monkeypatch):
    monkeypatch.setattr(_metadata_bytes, "_PIECE_BYTES", 500)
    pieces = []

    def slow(self, path, reads, really=LocalSource.read):
        pieces.append(1)
        time.sleep(0.1)
        return really(self, path, reads)

    monkeypatch.setattr(LocalSource, "read", slow)
    found = metadata.read_metadata(folder / ".metadata", stall_timeout_s=TIMEOUT_S)
    assert found.state_dict_metadata.keys() == saved.keys()
    assert len(pieces) > 4


@pytest.mark.parametrize("workers", [1, 3])
def test_verify(folder, saved, monkeypatch, storage, workers):
    hang(monkeypatch, storage, LocalSource, "read", from_call=4)
    stalls(
        lambda: paraload.verify(folder, max_workers=workers, stall_timeout_s=TIMEOUT_S),
        r"these were being read: '__0_\d.distcp' bytes \[\d+, \d+\)",
    )


@pytest.mark.parametrize("from_call", [4, 6])  # the tail of a record, and a piece of its payload
def test_verify_of_a_big_tensor(tmp_path, monkeypatch, storage, from_call):
    support.save(tmp_path, {"w": torch.randn(2 << 20)}, files=1)
    hang(monkeypatch, storage, LocalSource, "read", from_call=from_call)
    with pytest.raises(StalledReadError, match=r"being read: '__0_0.distcp' bytes \[") as caught:
        paraload.verify(tmp_path, max_workers=2, stall_timeout_s=TIMEOUT_S)
    assert "tensors that it reads into" not in str(caught.value)  # there are none


def test_the_listing_and_the_manifest_of_verify(folder, saved, monkeypatch, storage, tmp_path):
    write_manifest(folder, tmp_path / "manifest")
    really = LocalSource.read

    def hanging(self, path, reads):
        if threading.current_thread().name.startswith("paraload-digest"):
            storage.wait()
        return really(self, path, reads)

    monkeypatch.setattr(LocalSource, "read", hanging)
    stalls(
        lambda: paraload.verify(folder, manifest=tmp_path / "manifest", stall_timeout_s=TIMEOUT_S),
        r"while reading \d files",
    )
    hang(monkeypatch, storage, Path, "rglob")
    stalls(lambda: paraload.verify(folder, stall_timeout_s=TIMEOUT_S), "was being listed")


def test_an_error_is_raised_even_if_the_final_checks_hang(folder, saved, monkeypatch, storage):
    def broken(self, path, reads):
        raise OSError(5, "Input/output error")

    reader = ParallelFileSystemReader(
        folder, executor="sequential", retries=0, stall_timeout_s=TIMEOUT_S
    )
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    monkeypatch.setattr(LocalSource, "read", broken)
    hang(monkeypatch, storage, LocalSource, "stat", from_call=4)
    with pytest.raises(CheckpointReadError, match="EIO") as caught:
        reader.read_data(plan, planner)
    assert any("files have changed: no answer for 0.3 s" in note for note in caught.value.__notes__)


def test_the_program_ends_though_threads_are_stuck(folder, saved):
    code = """
        import sys, threading, paraload, paraload.errors
        from paraload.sources.local import LocalSource
        LocalSource.read = lambda *_: threading.Event().wait()
        try:
            paraload.verify(sys.argv[1], stall_timeout_s=0.3)
        except paraload.errors.StalledReadError:
            print("stalled")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "stalled\n"


def test_none_waits_for_ever_on_the_callers_thread(folder, saved, monkeypatch):
    monkeypatch.setattr("paraload.engine.file_checks._ALONE_S", 60)
    threads = set()
    really = LocalSource.stat

    def stat(self, path):
        threads.add(threading.current_thread())
        return really(self, path)

    monkeypatch.setattr(LocalSource, "stat", stat)
    paraload.load(support.empty_like(saved), folder, no_dist=True, stall_timeout_s=None)
    assert threads == {threading.current_thread()}


def test_an_error_of_a_call_that_is_a_timeout_is_none_of_ours():
    def refused():
        raise TimeoutError(110, "Connection timed out")

    with DaemonThreads.for_looks(5.0) as thread, pytest.raises(TimeoutError, match="Connection"):
        thread.call(str, refused)
