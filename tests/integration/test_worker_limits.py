"""A system that refuses more threads or processes: a load uses those it has."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from multiprocessing import util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import paraload
from paraload import ParallelFileSystemReader
from paraload.executors.processes import executor as _executor
from paraload.executors.processes import pools as _pools
from paraload.executors.processes import slots as _slots
from paraload.executors.ramp import RampLimits
from tests.integration import hooks, support

REFUSAL = "can't start new thread"


def allow_threads(monkeypatch, most):
    """So many more threads start, and no more after them; how many were asked for."""
    really = threading.Thread.start
    asked = []

    def start(thread):
        asked.append(thread.name)
        if len(asked) > most:
            raise RuntimeError(REFUSAL)
        really(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    return asked


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big") / "ckpt"
    return folder, support.save(folder, support.example_state(big=12))


def load(folder, saved, **options):
    targets = support.empty_like(saved)
    report = paraload.load(targets, folder, no_dist=True, stall_timeout_s=None, **options)
    support.assert_same(targets, saved)
    return report


@pytest.mark.parametrize("options", [{"max_workers": 8}, {}])
def test_without_threads_the_callers_thread_reads(big, monkeypatch, caplog, options):
    allow_threads(monkeypatch, 0)
    report = load(*big, **options)
    assert (report.executor, report.workers) == ("sequential", 1)
    [reason] = report.fallbacks
    assert reason.startswith("threads: none of ")
    assert reason.endswith(f" could be started ({REFUSAL})")
    assert caplog.text.count(reason) == 1


def test_with_some_threads_these_do_it_all(big, monkeypatch, caplog):
    asked = allow_threads(monkeypatch, 3)
    report = load(*big, max_workers=8)
    assert (report.executor, report.workers) == ("threads", 3)
    reason = f"threads: only 3 of 8 could be started ({REFUSAL})"
    assert report.fallbacks == {reason: report.items}
    assert caplog.text.count(reason) == 1
    assert len(asked) == 4


def test_a_ramp_does_not_ask_again_and_again(tmp_path, monkeypatch):
    from benchmarks.rated import RatedSource

    saved = {f"w.{n}": torch.randn(300, 700) for n in range(60)}
    support.save(tmp_path, saved, files=4)

    class Reader(ParallelFileSystemReader):
        def _make_source(self):
            source = super()._make_source()
            return RatedSource(source, bytes_per_second_per_stream=20e6)

    monkeypatch.setattr(
        "paraload.executors.choice.choose_ramp", lambda *_: RampLimits(start=2, limit=32, cores=2)
    )
    reader = Reader(tmp_path, stall_timeout_s=None)
    targets = support.empty_like(saved)
    plan, planner = support.plan_for(reader, targets)
    asked = allow_threads(monkeypatch, 3)
    reader.read_data(plan, planner)
    support.assert_same(targets, saved)
    report = reader.last_report
    assert (report.executor, report.workers) == ("threads", 3)
    assert list(report.fallbacks) == [f"threads: only 3 of 4 could be started ({REFUSAL})"]
    assert len(asked) < 10


@pytest.mark.parametrize("most", range(8))
@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_processes_need_threads_of_their_own(big, monkeypatch, caplog, executor, most):
    allow_threads(monkeypatch, most)
    report = load(*big, executor=executor, max_workers=2)
    if report.executor != executor:
        reason = f"threads instead of {executor}: {REFUSAL}"
        assert report.fallbacks[reason] == report.items
        assert caplog.text.count(reason) == 1
    else:
        assert most >= 2
    assert most or report.executor == "sequential"


@pytest.mark.parametrize("most", [0, 1, 2, 3])
@pytest.mark.parametrize("executor", ["processes", "pool"])
@pytest.mark.parametrize("hook", [None, hooks.sliced])
def test_processes_that_the_system_refuses(big, monkeypatch, caplog, executor, most, hook):
    really, asked = util.spawnv_passfds, []

    def spawn(*arguments):
        asked.append(arguments)
        if len(asked) > most:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return really(*arguments)

    monkeypatch.setattr(util, "spawnv_passfds", spawn)
    report = load(*big, executor=executor, max_workers=4, slice_file=hook)
    gc.collect()
    if len(asked) <= most:  # there was less to do
        assert report.executor == executor
        return
    assert (report.executor, report.workers) == ("threads", 4)
    reason = f"threads instead of {executor}: [Errno 11] Resource temporarily unavailable"
    assert report.fallbacks[reason] == report.items
    assert caplog.text.count(reason) == 1


@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_a_priority_is_not_required(big, monkeypatch, executor):
    def refuses(*args):
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", refuses)
    assert load(*big, executor=executor, max_workers=2).executor == executor


@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_a_process_that_gets_no_work_is_ended(big, monkeypatch, executor):
    def refuses(*args, **keywords):
        raise OSError("no descriptor for it")

    # The launch opens the pipe to the process that it has just started.
    monkeypatch.setitem(_pools._launch_without_main.__globals__, "open", refuses)
    assert load(*big, executor=executor, max_workers=2).executor == "threads"


@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_shared_memory_that_is_too_small(big, monkeypatch, executor):
    monkeypatch.setattr(_slots.shutil, "disk_usage", lambda _: SimpleNamespace(free=65536))
    report = load(*big, executor=executor, max_workers=2)
    [reason] = report.fallbacks
    assert report.executor == "threads"
    assert reason.startswith(f"threads instead of {executor}: [Errno 28] ")
    assert "/dev/shm has 65536; give the container more (docker run --shm-size)" in reason


@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_no_shared_memory_at_all(big, monkeypatch, executor):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_slots, "SharedMemory", refuse)
    report = load(*big, executor=executor, max_workers=2)
    assert list(report.fallbacks) == [
        f"threads instead of {executor}: [Errno 13] Permission denied"
    ]


def test_other_errors_of_a_start_are_errors():
    error = RuntimeError("before the current process has finished its bootstrapping phase")

    def step():
        raise error

    with pytest.raises(RuntimeError) as caught:
        _executor.ProcessExecutor("processes", 2, 1024)._try_or_use_threads(step)
    assert caught.value is error


@pytest.mark.parametrize("most", [0, 1, 3])
def test_verify(big, monkeypatch, caplog, most):
    folder, saved = big
    allow_threads(monkeypatch, most)
    report = paraload.verify(folder, max_workers=8, stall_timeout_s=None)
    assert report.ok
    assert report.records == len(saved)
    how_many = f"only {most}" if most else "none"
    assert report.fallback == f"threads: {how_many} of 8 could be started ({REFUSAL})"
    assert caplog.text.count(report.fallback) == 1


@pytest.mark.parametrize("executor", ["threads", "processes", "sequential"])
def test_file_checks_and_metadata_work_without_threads(big, monkeypatch, executor):
    folder, saved = big
    monkeypatch.setattr("paraload.engine.file_checks._ALONE_S", -1)
    monkeypatch.setattr("paraload.engine.file_checks._QUICK_LOOK_S", -1)
    allow_threads(monkeypatch, 0)
    targets = support.empty_like(saved)
    paraload.load(targets, folder, no_dist=True, executor=executor, max_workers=2)
    support.assert_same(targets, saved)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("executor", ["threads", "processes", "pool"])
def test_a_real_limit(executor):
    code = """
        import os, resource, sys
        import paraload, torch
        def load():
            target = {"w": torch.zeros(3, 300000)}
            report = paraload.load(
                target, sys.argv[1], no_dist=True, executor=sys.argv[2], max_workers=4
            )
            assert torch.equal(target["w"], torch.ones(3, 300000))
            return report
        load()  # the user that it becomes may not be able to import anything
        paraload.verify(sys.argv[1], max_workers=4)
        uid = 64123
        os.setgid(uid)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.setuid(uid)
        report = load()
        print(report.executor, *report.fallbacks, sep="\\n")
        print(paraload.verify(sys.argv[1], max_workers=4).ok)
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        support.save(folder, {"w": torch.ones(3, 300000)})
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), folder, executor],
            check=False,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "none of 4 could be started" in done.stdout
    assert done.stdout.splitlines()[0] == "sequential"
    assert done.stdout.splitlines()[-1] == "True"
