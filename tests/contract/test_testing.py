"""paraload.testing: the suites find faulty implementations, and its helpers do what they say."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from paraload import ParallelFileSystemReader
from paraload.core.records import TensorRecord
from paraload.errors import ShortFileError
from paraload.executors.choice import make_executor
from paraload.formats.torch_zip import TorchZipFormat
from paraload.sources import Read, ReadStats
from paraload.sources.local import LocalSource
from paraload.testing import (
    ExecutorContract,
    FaultySource,
    FormatContract,
    SourceContract,
    _resources,
    leaked,
    make_checkpoint,
    resources,
)
from tests.contract.test_formats import payload, record
from tests.contract.test_sources import written


def test_importing_it_brings_no_torch():
    code = "import sys, paraload.testing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ----------------------------------------------------------------- make_checkpoint


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize(
    ("files", "single_file_per_rank", "expected"), [(1, True, 1), (3, True, 3), (2, False, 5)]
)
def test_make_checkpoint_writes_what_is_asked_for(
    tmp_path, files, single_file_per_rank, expected, zstd
):
    state = {f"w{n}": torch.full((40, n + 1), float(n)) for n in range(4)} | {"step": 3}
    returned = make_checkpoint(
        tmp_path, state, files=files, single_file_per_rank=single_file_per_rank, zstd=zstd
    )
    assert returned is state
    assert len(list(tmp_path.glob("*.distcp"))) == expected
    got = {f"w{n}": torch.zeros(40, n + 1) for n in range(4)} | {"step": 0}
    reader = ParallelFileSystemReader(tmp_path)
    dcp.load(got, storage_reader=reader, no_dist=True)
    assert all(torch.equal(got[f"w{n}"], state[f"w{n}"]) for n in range(4))
    assert got["step"] == 3
    infos = reader.storage_data.values()
    # Before torch 2.7, no record is transformed.
    described = {tuple(getattr(info, "transform_descriptors", None) or ()) for info in infos}
    assert described == {("stream.zstd/1",) if zstd else ()}


# ----------------------------------------------------------------- resources


def test_resources_sees_descriptors_threads_children_and_shared_memory():
    before = resources()
    with open(os.devnull, "rb"):
        assert leaked(before, grace_s=0) == ["descriptor of /dev/null"]
    event = threading.Event()
    thread = threading.Thread(target=event.wait, name="waits")
    thread.start()
    assert leaked(before, grace_s=0) == ["thread waits"]
    event.set()
    thread.join()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert f"process {child.pid}" in leaked(before, grace_s=0)
    child.communicate(b"\n")
    assert leaked(before, grace_s=1) == []


def test_resources_sees_shared_memory():
    from multiprocessing import resource_tracker

    before = resources()
    segment = SharedMemory(create=True, size=10)
    assert f"shared memory /dev/shm/{segment.name}" in leaked(before, grace_s=0)
    segment.close()
    segment.unlink()
    resource_tracker._resource_tracker._stop()  # started by this test, not by paraload
    assert leaked(before, grace_s=1) == []


def test_a_leak_is_what_every_check_finds(monkeypatch):
    checks = itertools.count()

    def busy_machine():
        return Counter(["shared memory ours", f"shared memory of another program, {next(checks)}"])

    monkeypatch.setattr(_resources, "resources", busy_machine)
    monkeypatch.setattr(_resources, "_mapped_by", lambda _: set())
    assert leaked(Counter(), grace_s=0.1) == ["shared memory ours"]
    assert next(checks) > 2
    started = time.monotonic()
    assert leaked(Counter(["shared memory ours"]), grace_s=60) == []
    assert time.monotonic() - started < 30


# ----------------------------------------------------------------- faults


@pytest.mark.parametrize("executor", ["sequential", "threads"])
def test_one_fault_of_many_threads_hits_one_read(tmp_path, executor):
    source = FaultySource(LocalSource(written(tmp_path)), fail_at=50, error=OSError(5, "EIO"))
    buffers = [memoryview(bytearray(10)) for _ in range(100)]
    failed = []

    def read(some):
        for buffer in some:
            try:
                source.read("sub/large", [Read(0, [buffer])])
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=read, args=(buffers[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [error.errno for error in failed] == [5]
    source.close()


def test_a_cut_read_leaves_its_last_byte_alone(tmp_path):
    source = FaultySource(LocalSource(written(tmp_path)), fail_at=1, cut=True)
    source = pickle.loads(pickle.dumps(source))
    buffer = bytearray(b"....")
    source.read("small", [Read(0, [memoryview(buffer)])])
    assert bytes(buffer) == b"012."
    source.read("small", [Read(0, [memoryview(buffer)])])
    assert bytes(buffer) == b"0123"
    source.close()


# ----------------------------------------------------------------- the suites find faults


class LyingSource(LocalSource):
    """Returns zeros past the end."""

    def read(self, path, reads):
        try:
            return super().read(path, reads)
        except ShortFileError:
            return ReadStats(1)


class StaleSource(LocalSource):
    """Pickles with its open files."""

    def __reduce__(self):
        return _stale, (self.root, {path: handle.fd for path, handle in self._handles.items()})


def _stale(root, fds):
    if fds:
        raise TypeError("descriptors do not travel")
    return StaleSource(root)


@pytest.mark.parametrize(
    ("kind", "test"),
    [(LyingSource, "test_reading_past_the_end_is_an_error"), (StaleSource, "test_pickling")],
)
def test_the_source_suite_finds_a_wrong_source(tmp_path, kind, test):
    source = kind(written(tmp_path))
    with pytest.raises((AssertionError, TypeError)):
        getattr(SourceContract(), test)(source)
    source.close()


class GreedyFormat(TorchZipFormat):
    """Trusts every length in a record."""

    def locate(self, head, record_bytes):
        return super().locate(head, 1 << 60)


class HastyFormat(TorchZipFormat):
    """Returns Unsupported where it should ask for more bytes."""

    def __reduce__(self):
        return HastyFormat, ()

    def locate(self, head, record_bytes):
        found = super().locate(head, record_bytes)
        return found if isinstance(found, TensorRecord) else super().locate(b"x" * 9999, 9999)


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (GreedyFormat, "test_a_damaged_record_raises_nothing_and_stays_in_bounds"),
        (HastyFormat, "test_a_prefix_gives_the_payload_or_needs_bytes"),
    ],
)
def test_the_format_suite_finds_a_wrong_format(kind, test):
    records = {record(tensor): payload(tensor) for tensor in (torch.ones(9), torch.arange(400))}
    with pytest.raises(AssertionError):
        getattr(FormatContract(), test)(kind(), records)


class Wrong:
    """The thread executor with one fault."""

    def __init__(self, fault):
        self.inner = make_executor("threads", workers=2, slot_bytes=0)
        self.name, self.workers, self.fault = "wrong", 2, fault

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def start(self, context, targets):
        self.in_flight = self.returned = 0
        if self.fault == "left open":
            self.kept = os.open(os.devnull, os.O_RDONLY)
        self.inner.start(context, dict(targets) if self.fault == "fixed targets" else targets)

    def submit(self, task):
        self.in_flight += 1
        self.inner.submit(task)

    def ready(self, timeout_s):
        match self.fault:
            case "in order":
                results = []
                while len(results) < self.in_flight:
                    results += self.inner.ready(timeout_s)
                results.sort(key=lambda result: result.task.start)
            case "one lost":
                results = list(self.inner.ready(1))
                self.returned += len(results)
                if self.returned == self.in_flight:
                    results = results[1:]
            case "overslept":
                results = self.inner.ready(None)
            case _:
                results = self.inner.ready(timeout_s)
        self.in_flight -= len(results) if self.fault == "in order" else 0
        return results


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("in order", "test_results_arrive_in_order_of_completion"),
        ("one lost", "test_all_tasks_run_and_fill_their_targets"),
        ("fixed targets", "test_results_may_lead_to_new_tasks_and_targets"),
        ("left open", "test_nothing_leaks_after_success_or_an_exception"),
        ("overslept", "test_ready_returns_after_its_timeout"),
    ],
)
def test_the_executor_suite_finds_a_wrong_executor(tmp_path, fault, test):
    source = LocalSource(written(tmp_path))
    executor = Wrong(fault)
    with pytest.raises(AssertionError):
        getattr(ExecutorContract(), test)(executor, source)
    source.close()
    if fault == "left open":
        os.close(executor.kept)


@pytest.mark.parametrize(
    ("make", "end"),
    [
        (
            (
                "from multiprocessing.shared_memory import SharedMemory\n"
                "segment = SharedMemory(create=True, size=4096)\n"
                "print(segment.name, flush=True)\n"
            ),
            "segment.close()\nsegment.unlink()\n",
        ),
        (
            (
                "import multiprocessing\n"
                "lock = multiprocessing.get_context('spawn').Lock()\n"
                "print('sem.' + lock._semlock.name[1:], flush=True)\n"
            ),
            "del lock\n",
        ),
    ],
    ids=["segment", "semaphore"],
)
def test_the_shared_memory_of_other_programs_does_not_count(make, end):
    holding = f"{make}input()\n{end}"
    # A process that is not a child of this one, as another program's.
    other = "import os, sys\nif os.fork():\n os._exit(0)\n" + holding
    before = resources()
    with subprocess.Popen(
        [sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        name = process.stdout.readline().decode().strip()
        assert Path("/dev/shm", name).exists()
        assert not any("shared memory" in line for line in leaked(before, grace_s=1))
        process.stdin.write(b"\n")
