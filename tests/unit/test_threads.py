"""The number of threads during a run."""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from unittest.mock import Mock

import pytest

from benchmarks.rated import RatedSource
from paraload.core.memory import Layout, TargetMemory
from paraload.core.records import TensorRecord
from paraload.core.results import LandedItems, Located
from paraload.core.tasks import LocateTask, RecordSpec, RunsTask, Wanted
from paraload.executors import threads as _threads
from paraload.executors.gauge import GaugedSource
from paraload.executors.ramp import RampLimits
from paraload.executors.threads import RampingTeam, ThreadExecutor, ThreadTeam
from paraload.geometry.runs import Run
from paraload.sources import Read
from paraload.sources.local import LocalSource
from paraload.workers.read_context import ReadContext
from paraload.workers.sinks import TargetSink

TASK_BYTES = 10_000
TASKS = 300


@pytest.fixture
def source(tmp_path):
    (tmp_path / "data").write_bytes(bytes(TASK_BYTES))
    source = LocalSource(tmp_path)
    yield source
    source.close()


def task(number):
    return RunsTask(
        path="data",
        start=0,
        end=TASK_BYTES,
        items=(number,),
        base=0,
        target=number,
        runs=(Run(0, 0, TASK_BYTES),),
        max_gap_bytes=0,
        checksum=False,
    )


def targets(tasks):
    return {t.target: TargetMemory(memoryview(bytearray(TASK_BYTES))) for t in tasks}


def run(executor, source):
    """The most threads that there were at once, as an onlooker sees it."""
    tasks = [task(n) for n in range(TASKS)]
    others = threading.active_count()
    queue = tasks[::-1]
    left, most = TASKS, 0
    executor.start(ReadContext(source=source, verify=False), targets(tasks))
    while left:
        while queue and executor.capacity() > 0:
            executor.submit(queue.pop())
        left -= len(executor.ready(30))
        most = max(most, threading.active_count() - others)
    executor.close()
    return most


def test_storage_that_gives_each_stream_its_rate_gets_more_threads(source):
    executor = ThreadExecutor(2, RampLimits(start=2, limit=8, cores=2))
    rated = RatedSource(source, bytes_per_second_per_stream=TASK_BYTES / 0.01)
    assert run(executor, rated) == 8
    assert executor.workers == 8, "what the report says"


def test_a_number_that_is_given_is_kept(source):
    executor = ThreadExecutor(3)
    rated = RatedSource(source, bytes_per_second_per_stream=TASK_BYTES / 0.002)
    assert run(executor, rated) == executor.workers == 3


def test_each_run_begins_anew(source):
    executor = ThreadExecutor(2, RampLimits(start=2, limit=4, cores=2))
    rated = RatedSource(source, bytes_per_second_per_stream=TASK_BYTES / 0.01)
    assert run(executor, rated) == 4
    others = threading.active_count()
    executor.start(ReadContext(source=source, verify=False), targets([task(0)]))
    executor.submit(task(0))
    assert len(executor.ready(30)) == 1
    assert threading.active_count() - others == 2
    assert executor.workers == 2
    executor.close()


def test_a_team_that_has_become_smaller_has_fewer_threads(source):
    tasks = [task(n) for n in range(20)]
    rated = RatedSource(source, bytes_per_second_per_stream=TASK_BYTES / 0.01)
    team = ThreadTeam(ReadContext(source=rated, verify=False), TargetSink(targets(tasks)), [])
    others = threading.active_count()
    try:
        team.resize(4)
        assert threading.active_count() - others == 4
        team.resize(1)
        for one in tasks:
            team.tasks.put(one)  # behind what ends three of the threads
        assert len({result.worker for result in results_of(team, len(tasks))}) == 1
        team.resize(3)
        assert team.size == 3
    finally:
        team.end()
    assert threading.active_count() == others


def results_of(team, count):
    """So many results, and perhaps others that came with them."""
    results = []
    while len(results) < count:
        got = team.ready(5)
        assert got
        results += got
    return results


def at_work(source, tasks, kind=ThreadTeam, **limits):
    """A team with queued tasks of 20 ms each, and no threads yet."""
    rated = RatedSource(source, bytes_per_second_per_stream=TASK_BYTES / 0.02)
    context = ReadContext(source=rated, verify=False)
    team = kind(context, TargetSink(targets(tasks)), [], **limits)
    for one in tasks:
        team.tasks.put(one)
    return team


def test_threads_that_are_too_many_leave_before_they_take_another_task(source):
    others = threading.active_count()
    team = at_work(source, [task(n) for n in range(400)])
    try:
        team.resize(4)
        results_of(team, 1)
        team.resize(1)
        results_of(team, 8)
        assert threading.active_count() - others == 1
        assert team.tasks.qsize() > 300
    finally:
        team.end()


def test_a_thread_that_ends_delivers_its_results(source, monkeypatch):
    monkeypatch.setattr(_threads, "_BATCH_WITHIN_S", 60.0)
    team = at_work(source, [task(n) for n in range(400)])
    try:
        team.resize(1)
        time.sleep(0.03)
        team.resize(0)
        assert results_of(team, 1)[0].task == task(0)
        assert team.tasks.qsize() > 300
    finally:
        team.end()


def test_samples_count_when_those_who_are_too_many_have_left(source):
    limits = RampLimits(start=4, limit=4, cores=2)
    team = at_work(source, [task(n) for n in range(400)], RampingTeam, limits=limits)
    team._ramp = ramp = Mock(workers=4, note=Mock(return_value=4))
    others = threading.active_count()
    threads_then = []
    ramp.changed.side_effect = lambda _: threads_then.append(threading.active_count() - others)
    try:
        team.resize(4)
        assert len(threads_then) == 1
        results_of(team, 1)
        team.resize(2)
        assert len(threads_then) == 1, "four are reading"
        results_of(team, 8)
        assert len(threads_then) == 2
        assert threads_then[1] <= 3, "two, and the last of those who leave"
    finally:
        team.end()


def test_results_come_together_unless_that_takes_long(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(_threads.time, "monotonic", lambda: now_s)
    queue = SimpleQueue()
    batch = _threads._ResultBatch(queue)
    for number in range(9):
        batch.add(number)
    now_s += 1.0
    batch.add(9)  # was a second in coming
    batch.add(10)
    batch.send()
    batch.send()  # there is nothing
    sent = [queue.get_nowait() for _ in range(queue.qsize())]
    assert sent == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10]]


def test_samples_are_stretches_of_a_thread_and_lose_nothing(source):
    samples = []
    rated = RatedSource(source, bytes_per_second_per_stream=TASK_BYTES / 0.002)
    gauged = GaugedSource(rated, samples.append)
    gauged.begin()
    buffer = memoryview(bytearray(TASK_BYTES))
    for _ in range(12):
        gauged.read("data", [Read(0, [buffer[:4000], buffer[4000:]])])
    gauged.count(5)
    assert sum(sample.nbytes for sample in samples) <= 12 * TASK_BYTES + 5
    assert sum(sample.nbytes for sample in samples) >= 9 * TASK_BYTES
    for before, after in pairwise(samples):
        assert before.ended_s == after.started_s
    for sample in samples:
        assert sample.ended_s - sample.started_s >= 0.005
        assert 0 <= sample.working_s <= sample.ended_s - sample.started_s + 0.001


@pytest.mark.parametrize(
    ("at_once_bytes", "dtypes", "is_sampled"),
    [(9, ["int8"], True), (9, [], False), (9, ["int16"], False), (8, ["int8"], False)],
    ids=["read at once", "staged", "converted", "only located"],
)
def test_headers_alone_are_no_samples(source, monkeypatch, at_once_bytes, dtypes, is_sampled):
    layout = TensorRecord(
        dtype="int8", itemsize=1, shape=(9,), strides=(1,), storage_offset=0, start=0, end=9
    )
    wanted = Wanted("tensor", (0,), (9,), layout=layout)
    located = LocateTask(
        path="data",
        start=0,
        end=9,
        items=(0,),
        specs=(RecordSpec(0, "data", 0, 9, "t", wanted),),
        at_once_bytes=at_once_bytes,
    )
    memory = {
        item: TargetMemory(memoryview(bytearray(18)), Layout(dtype, (9,), (1,)))
        for item, dtype in enumerate(dtypes)
    }
    context = ReadContext(source=source, verify=True)
    team = RampingTeam(context, TargetSink(memory), [], RampLimits(start=1, limit=1, cores=1))
    monkeypatch.setattr(team._gauge, "count", counted := Mock())
    (outcome,) = team._run(located).outcomes
    assert isinstance(outcome, LandedItems if is_sampled else Located)
    assert counted.called == is_sampled


def test_waiting_for_the_first_task_is_not_sampled(source):
    rated = RatedSource(source, bytes_per_second_per_stream=TASK_BYTES / 0.02)
    limits = RampLimits(start=1, limit=1, cores=1)
    sink = TargetSink(targets([task(0)]))
    team = RampingTeam(ReadContext(source=rated, verify=False), sink, [], limits)
    team._ramp = Mock(workers=1, note=Mock(return_value=1))
    try:
        team.resize(1)
        time.sleep(0.5)
        team.submit(task(0))
        results_of(team, 1)
    finally:
        team.end()
    ((sample,), _) = team._ramp.note.call_args
    assert 0.02 <= sample.ended_s - sample.started_s < 0.5


def test_threads_are_sampled_apart(source):
    samples = []
    gauged = GaugedSource(source, samples.append)
    gauged.begin()
    gauged._open.started_s -= 1.0  # this thread has been at it for a second
    thread = threading.Thread(target=partial(_read_once, gauged))
    thread.start()
    thread.join()
    assert samples == []
    _read_once(gauged)
    assert [sample.nbytes for sample in samples] == [TASK_BYTES]


def _read_once(source):
    source.read("data", [Read(0, [memoryview(bytearray(TASK_BYTES))])])


def test_threads_of_a_team_that_shrinks_and_grows_do_not_interfere(monkeypatch):
    """Each has a name of its own, or tracks of a trace would overlap."""
    import threading
    import time

    from paraload.workers.read_context import ReadContext
    from paraload.workers.sinks import TargetSink

    source = LocalSource("/")
    team = ThreadTeam(ReadContext(source=source, verify=True), TargetSink({}), [])
    monkeypatch.setattr(team, "_run", lambda task: (task.wait(10), threading.get_ident())[1])
    tasks = [threading.Event() for _ in range(5)]
    try:
        team.resize(3)
        for task in tasks[:3]:
            team.tasks.put(task)
        while len(team._reading) < 3:
            time.sleep(0.001)
        team.resize(1)
        last = next(
            n for n, task in enumerate(tasks[:3]) if team._reading[team._threads[2].ident] is task
        )
        for number in {0, 1, 2} - {last}:
            tasks[number].set()
            results_of(team, 1)
        while team._threads[0].is_alive() or team._threads[1].is_alive():
            time.sleep(0.001)
        team.resize(3)
        names = [thread.name for thread in team._threads if thread.is_alive()]
        assert len(names) == len(set(names)) == 3
        for task in tasks[3:]:
            team.tasks.put(task)
        while len(team._reading) < 3:
            time.sleep(0.001)
        for task in (tasks[last], *tasks[3:]):
            task.set()
        assert len(set(results_of(team, 3))) == 3
    finally:
        for task in tasks:
            task.set()
        team.end()


def test_a_name_is_used_again_only_when_its_thread_has_ended(source):
    """Or else events of one track of a trace overlap."""
    tasks = [task(n) for n in range(30)]
    team = at_work(source, tasks)
    try:
        for size in (3, 1, 3, 1, 4):  # while those that are too many are still reading
            team.resize(size)
            time.sleep(0.005)
            names = [thread.name for thread in team._threads if thread.is_alive()]
            assert len(names) == len(set(names))
        results = results_of(team, len(tasks))
        team.resize(1)
        team.resize(0)
        for thread in team._threads:
            thread.join(5)
        team.resize(2)
        assert {thread.name for thread in team._threads} == {"paraload-0", "paraload-1"}
    finally:
        team.end()
    by_worker = {}
    for result in results:
        by_worker.setdefault(result.worker, []).append((result.started_s, result.ended_s))
    for spans in by_worker.values():
        assert all(end <= start for (_, end), (start, _) in pairwise(sorted(spans)))
