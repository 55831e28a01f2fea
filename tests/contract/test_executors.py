"""Every executor passes the contract suite; tests/conftest.py checks for leaks."""

from __future__ import annotations

import time

import psutil
import pytest

from paraload.errors import WorkerDiedError
from paraload.executors.choice import make_executor
from paraload.executors.ramp import RampLimits
from paraload.sources.local import LocalSource
from paraload.testing import ExecutorContract
from tests.contract.test_sources import written


class _Contract(ExecutorContract):
    @pytest.fixture
    def source(self, tmp_path):
        source = LocalSource(written(tmp_path))
        yield source
        source.close()


class TestSequential(_Contract):
    @pytest.fixture
    def executor(self):
        return make_executor("sequential", workers=1, slot_bytes=0)


class TestThreads(_Contract):
    @pytest.fixture(params=[1, 2, 7])
    def executor(self, request):
        return make_executor("threads", workers=request.param, slot_bytes=0)


class TestThreadsThatFindOutHowMany(_Contract):
    @pytest.fixture
    def executor(self):
        ramp = RampLimits(start=2, limit=7, cores=2)
        return make_executor("threads", workers=ramp.start, slot_bytes=0, ramp=ramp)


class _ProcessesContract(_Contract):
    def test_workers_that_die_between_two_tasks_are_reported(self, executor, source):
        run = self._run(executor, source, self._tasks(30, nbytes=300))
        next(run)
        time.sleep(2)  # the workers start, and answer all they were given
        next(run)
        workers = [
            child
            for child in psutil.Process().children()
            if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(workers) == executor.workers
        for worker in workers:
            worker.kill()
        time.sleep(1)  # the pool notices
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            list(run)


class TestProcesses(_ProcessesContract):
    @pytest.fixture(params=[1 << 20, 400], ids=["roomy", "overflowing"])
    def executor(self, request):
        return make_executor("processes", workers=2, slot_bytes=request.param)


class TestPool(_ProcessesContract):
    @pytest.fixture(params=[1 << 20, 400], ids=["roomy", "overflowing"])
    def executor(self, request):
        return make_executor("pool", workers=2, slot_bytes=request.param)
