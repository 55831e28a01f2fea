"""The contract of executors."""

import threading
import time
from collections.abc import Generator, Sequence
from typing import Any, Final

import psutil

from paraload.core.checksum import crc32
from paraload.core.memory import TargetMemory
from paraload.core.results import Failed, Landed, TaskResult
from paraload.core.tasks import ReadTask, RunsTask
from paraload.errors import ShortFileError, WorkerDiedError
from paraload.executors.base import ReadExecutor
from paraload.geometry.runs import Run
from paraload.sources import ByteSource, Read, ReadStats
from paraload.testing._faulty import FaultySource
from paraload.testing._resources import leaked, resources
from paraload.testing._sources import FILES, expect
from paraload.workers.read_context import ReadContext

#: Longer than any wait of the suite.
_PATIENCE_S: Final = 30.0
_SLOW_READ_S: Final = 1.0
#: Fits every slot of shared memory, so that no task comes back for the caller's thread to read.
_FITS_SLOTS: Final = 300


class _SlowAtZero(FaultySource):
    """A read at the start of a file takes longer than all others together."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _SlowAtZero, (self.inner,)

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        time.sleep(0 if reads[0].start else _SLOW_READ_S)
        return super().read(path, reads)


class _BrokenError(BaseException):
    """Not an ``Exception``, so it does not become the error of an item."""


class ExecutorContract:
    """What every :class:`~paraload.executors.base.ReadExecutor` does.

    Fixtures: ``executor``, and ``source``, which reads :data:`FILES` and pickles.
    """

    def _tasks(self, count: int, *, path: str = "sub/large", nbytes: int = 1000) -> list[ReadTask]:
        return [
            RunsTask(
                path=path,
                start=n * nbytes,
                end=(n + 1) * nbytes,
                items=(n,),
                base=n * nbytes,
                target=n,
                runs=(Run(0, 0, nbytes),),
                max_gap_bytes=0,
                checksum=True,
            )
            for n in range(count)
        ]

    def _targets(self, tasks: list[ReadTask]) -> dict[int, TargetMemory]:
        return {
            task.items[0]: TargetMemory(memoryview(bytearray(task.end - task.start)))
            for task in tasks
        }

    def _run(
        self,
        executor: ReadExecutor,
        source: ByteSource,
        tasks: list[ReadTask],
        targets: dict[int, TargetMemory] | None = None,
    ) -> Generator[TaskResult, None, None]:
        """The results of ``tasks``, which may grow meanwhile: the loop of the engine."""
        context = ReadContext(source=source, verify=True)
        in_flight = 0
        try:
            executor.start(context, self._targets(tasks) if targets is None else targets)
            while True:
                while tasks and executor.capacity() > 0:
                    executor.submit(tasks.pop(0))
                    in_flight += 1
                if not in_flight:
                    return
                results = executor.ready(_PATIENCE_S)
                assert results, f"no result of {in_flight} tasks in {_PATIENCE_S} s"
                in_flight -= len(results)
                yield from results
        finally:
            executor.close()

    def _check(self, result: TaskResult, targets: dict[int, TargetMemory]) -> None:
        (landed,) = result.outcomes
        assert isinstance(landed, Landed)
        data = FILES["sub/large"][result.task.start : result.task.end]
        assert bytes(targets[landed.item].memory) == data
        assert landed.crc == crc32(data)
        assert result.ended_s >= result.started_s

    def test_all_tasks_run_and_fill_their_targets(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        tasks = self._tasks(200)  # more than any executor takes at once
        targets = self._targets(tasks)
        results = list(self._run(executor, source, tasks, targets))
        assert sorted(result.task.items[0] for result in results) == list(range(200))
        for result in results:
            self._check(result, targets)

    def test_results_may_lead_to_new_tasks_and_targets(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        tasks = self._tasks(20)
        given = [tasks[0]]
        targets = self._targets(given)
        seen = 0
        for result in self._run(executor, source, given, targets):
            seen += 1
            self._check(result, targets)
            number = result.task.items[0] + 1
            if number < len(tasks):
                targets |= self._targets([tasks[number]])
                given.append(tasks[number])
        assert seen == len(tasks)

    def test_one_failure_does_not_stop_the_others(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        tasks = self._tasks(9)
        tasks[4] = self._tasks(5, path="small")[4]
        run = self._run(executor, source, tasks)
        outcomes = [outcome for result in run for outcome in result.outcomes]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        assert [outcome.item for outcome in failed] == [4]
        assert isinstance(failed[0].error, ShortFileError)
        assert "Traceback" in failed[0].error.traceback_text
        assert len(outcomes) == 9  # noqa: PLR2004 - the number of tasks

    def test_results_arrive_in_order_of_completion(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        tasks = self._tasks(12, nbytes=_FITS_SLOTS)
        results = list(self._run(executor, _SlowAtZero(source), tasks))
        order = [result.task.items[0] for result in results]
        assert sorted(order) == list(range(12))
        assert order.index(0) == (0 if executor.workers == 1 else 11)

    def test_ready_returns_after_its_timeout(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        (task,) = self._tasks(1, nbytes=_FITS_SLOTS)
        context = ReadContext(source=_SlowAtZero(source), verify=True, stall_timeout_s=_PATIENCE_S)
        try:
            executor.start(context, self._targets([task]))
            executor.submit(task)
            started_s = time.monotonic()
            assert not executor.ready(_SLOW_READ_S / 10)
            assert time.monotonic() - started_s < _SLOW_READ_S
            assert list(executor.running()) == [task]
            (result,) = executor.ready(_PATIENCE_S)
            assert result.task == task
            assert not executor.running()
        finally:
            executor.close()

    def test_the_checksum_is_that_of_the_bytes_that_arrived(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        for cut in (False, True):
            faulty = FaultySource(source, fail_at=1, cut=cut)
            (result,) = self._run(executor, faulty, self._tasks(1, nbytes=1000))
            (landed,) = result.outcomes
            assert isinstance(landed, Landed)
            assert landed.crc != crc32(FILES["sub/large"][:1000])

    def test_nothing_leaks_after_success_or_an_exception(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        source.read("sub/large", [Read(0, [memoryview(bytearray(1))])])  # it may keep the file open
        before = resources()
        list(self._run(executor, source, self._tasks(30)))
        assert leaked(before, grace_s=1) == []
        run = self._run(executor, source, self._tasks(100))
        next(run)
        expect(ZeroDivisionError, run.throw, ZeroDivisionError("raised by the caller"))
        assert leaked(before, grace_s=1) == []

    def test_it_can_be_closed_at_any_time_and_more_than_once(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        source.read("sub/large", [Read(0, [memoryview(bytearray(1))])])  # it may keep the file open
        before = resources()
        threads, children = threading.active_count(), len(psutil.Process().children())
        executor.close()
        executor.start(ReadContext(source=source, verify=True), {})
        executor.close()
        executor.close()
        assert leaked(before, grace_s=1) == []
        for stop_after in (1, 5):
            tasks = self._tasks(100)
            run = self._run(executor, FaultySource(source, delay_s=0.01), tasks)
            for _ in range(stop_after):
                next(run)
            run.close()
            # At once, not some time later.
            assert threading.active_count() == threads
            assert len(psutil.Process().children()) == children
            executor.close()
            assert tasks, "the executor takes more tasks than it has room for"
            assert leaked(before, grace_s=1) == []

    def test_an_error_that_is_not_an_exception_ends_the_run(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        before = resources()
        broken = FaultySource(source, fail_at=1, times=1 << 30, error=_BrokenError())
        run = self._run(executor, broken, self._tasks(30))
        expect((_BrokenError, WorkerDiedError), list, run)
        assert leaked(before, grace_s=1) == []
