"""The contract of executors."""

from __future__ import annotations

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
from paraload.workers.read_context import Work

#: Longer than any wait of the suite.
_PATIENCE_S: Final = 30.0
_SLOW_READ_S: Final = 1.0


class _SlowAtZero(FaultySource):
    """Reads that begin a file take longer than all others together."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _SlowAtZero, (self.inner,)

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        """Read, in time or not."""
        time.sleep(0 if reads[0].start else _SLOW_READ_S)
        return super().read(path, reads)


class _BrokenError(BaseException):
    """An error that no handler of items' errors takes."""


class _Broken(FaultySource):
    def __reduce__(self) -> tuple[Any, ...]:
        return _Broken, (self.inner,)

    def read(self, path: str, reads: Sequence[Read]) -> ReadStats:
        raise _BrokenError(f"{path}: {len(reads)} reads")


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
        """The results of ``tasks``, which may grow meanwhile: the loop of a load."""
        work = Work(source=source, verify=True)
        in_flight = 0
        try:
            executor.start(work, self._targets(tasks) if targets is None else targets)
            while True:
                while tasks and executor.capacity() > 0:
                    executor.submit(tasks.pop(0))
                    in_flight += 1
                if not in_flight:
                    return
                results = executor.ready(_PATIENCE_S)
                assert results, f"nothing came back of {in_flight} tasks"
                in_flight -= len(results)
                yield from results
        finally:
            executor.close()

    def test_every_task_is_run_and_its_bytes_arrive(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """More tasks than any executor takes at once, each with its checksum."""
        tasks = self._tasks(200)
        targets = self._targets(tasks)
        results = list(self._run(executor, source, tasks, targets))
        assert sorted(result.task.items[0] for result in results) == list(range(200))
        for result in results:
            (landed,) = result.outcomes
            assert isinstance(landed, Landed)
            data = FILES["sub/large"][result.task.start : result.task.end]
            assert bytes(targets[landed.item].memory) == data
            assert landed.crc == crc32(data)
            assert result.ended_s >= result.started_s

    def test_results_may_lead_to_new_tasks_and_targets(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """There may be nothing to do now, and more after the next result."""
        tasks = self._tasks(20)
        given = [tasks[0]]
        targets = self._targets(given)
        seen = 0
        for result in self._run(executor, source, given, targets):
            seen += 1
            (landed,) = result.outcomes
            assert isinstance(landed, Landed)
            data = FILES["sub/large"][result.task.start : result.task.end]
            assert bytes(targets[landed.item].memory) == data
            number = result.task.items[0] + 1
            if number < len(tasks):
                targets |= self._targets([tasks[number]])
                given.append(tasks[number])
        assert seen == len(tasks)

    def test_one_failure_does_not_stop_the_others(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """It is the outcome of its item, with the traceback of its worker."""
        tasks = self._tasks(9)
        tasks[4] = self._tasks(5, path="small")[4]
        run = self._run(executor, source, tasks)
        outcomes = [outcome for result in run for outcome in result.outcomes]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        assert [outcome.item for outcome in failed] == [4]
        assert isinstance(failed[0].error, ShortFileError)
        assert "Traceback" in failed[0].error.traceback_text
        assert len(outcomes) == 9  # noqa: PLR2004 - as many as there are tasks

    def test_results_come_as_they_are_ready(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """A slow first task does not hold up the others, where there are several workers."""
        results = list(self._run(executor, _SlowAtZero(source), self._tasks(12, nbytes=300)))
        order = [result.task.items[0] for result in results]
        assert sorted(order) == list(range(12))
        assert order.index(0) == (0 if executor.workers == 1 else 11)

    def test_a_wait_ends_in_time_though_a_task_takes_longer(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """It brings nothing then; the result comes with a later wait."""
        (task,) = self._tasks(1)
        work = Work(source=_SlowAtZero(source), verify=True, stall_timeout_s=_PATIENCE_S)
        try:
            executor.start(work, self._targets([task]))
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

    def test_damage_of_a_source_shows_in_the_checksum(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """Sums are made of what arrived, not of what should have."""
        for cut in (False, True):
            faulty = FaultySource(source, fail_at=1, cut=cut)
            (result,) = self._run(executor, faulty, self._tasks(1, nbytes=1000))
            (landed,) = result.outcomes
            assert isinstance(landed, Landed)
            assert landed.crc != crc32(FILES["sub/large"][:1000])

    def test_nothing_is_left_however_it_ends(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """No descriptor, thread, process or shared memory: when it returns, not some time later."""
        # It may keep the file open.
        source.read("sub/large", [Read(0, [memoryview(bytearray(1))])])
        before = resources()
        list(self._run(executor, source, self._tasks(30)))
        assert leaked(before, grace_s=1) == []
        run = self._run(executor, source, self._tasks(100))
        next(run)
        expect(ZeroDivisionError, run.throw, ZeroDivisionError("the consumer's own problem"))
        assert leaked(before, grace_s=1) == []

    def test_it_can_be_left_at_any_time(self, executor: ReadExecutor, source: ByteSource) -> None:
        """Before it started, before its first task, and after some results; more than once."""
        source.read("sub/large", [Read(0, [memoryview(bytearray(1))])])  # it may keep the file open
        before = resources()
        executor.close()
        executor.start(Work(source=source, verify=True), {})
        executor.close()
        executor.close()
        assert leaked(before, grace_s=1) == []
        for stop_after in (1, 5):
            tasks = self._tasks(100)
            run = self._run(executor, source, tasks)
            for _ in range(stop_after):
                next(run)
            run.close()
            executor.close()
            assert tasks, "it takes only as many tasks as it has room for"
            assert leaked(before, grace_s=1) == []

    def test_nothing_runs_on_when_it_was_left(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """Threads and processes have ended when closing returns, not some time later."""
        threads, children = threading.active_count(), len(psutil.Process().children())
        run = self._run(executor, FaultySource(source, delay_s=0.05), self._tasks(50))
        next(run)
        run.close()
        assert threading.active_count() == threads
        assert len(psutil.Process().children()) == children

    def test_an_error_that_is_no_failure_of_an_item_comes_out(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """And ends the run."""
        before = resources()
        run = self._run(executor, _Broken(source), self._tasks(30))
        try:
            list(run)
        except (_BrokenError, WorkerDiedError):
            pass
        else:
            raise AssertionError("the error did not come out")
        assert leaked(before, grace_s=1) == []
