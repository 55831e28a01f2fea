"""Transient errors are retried once for each call, as long as the load goes on."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from paraload.errors import MissingFileError, StorageReadError
from paraload.sources import Read, RetryPolicy, SourceLimits
from paraload.sources import retrying as _retrying
from paraload.sources.retrying import Retries, RetryingSource
from paraload.workers.read_context import Cancelled, ReadContext, TaskReader
from tests.sources import RemoteLikeSource, UnavailableError

DATA = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The pauses, which take no time."""
    seen = []
    monkeypatch.setattr(
        _retrying,
        "pauses",
        lambda retries, is_cancelled=None, **_: seen.append(retries) or range(retries),
    )
    return seen


def remote(**keywords):
    return RemoteLikeSource({"a": DATA}, latency_s=0, **keywords)


def ten():
    return [Read(5, [memoryview(bytearray(10))])]


def test_what_fails_for_a_moment_is_read():
    source = RetryingSource(remote(busy=2), retries=2)
    reads = ten()
    assert source.read("a", reads).requests == 1
    assert reads[0].buffers[0] == DATA[5:15]
    assert source.retried == 2


def test_a_permanent_failure_has_range_and_tries_and_uses_up_the_retries():
    source = RetryingSource(remote(busy=100), retries=2)
    with pytest.raises(StorageReadError, match=r"UnavailableError \(503 .* 3 times") as caught:
        source.read("a", ten())
    assert (caught.value.start, caught.value.end) == (5, 15)
    assert isinstance(caught.value.__cause__, UnavailableError)
    with pytest.raises(StorageReadError, match="503"):
        source.read("a", ten())
    assert len(source.inner.requests) == 4


def test_other_errors_are_final_and_stay_as_they_are():
    source = RetryingSource(remote(), retries=2)
    with pytest.raises(MissingFileError):
        source.stat("b")
    assert source.inner.looks == ["b"]


def test_a_handle_that_may_be_stale_is_dropped_before_each_retry():
    class Stale(RemoteLikeSource):
        dropped = 0

        def drop_handle(self, path):
            self.dropped += 1

    source = RetryingSource(Stale({"a": DATA}, latency_s=0, busy=2), retries=3)
    source.read("a", ten())
    assert source.inner.dropped == 2


def test_nothing_is_retried_twice():
    inner = RetryingSource(remote(busy=100), retries=1)
    with pytest.raises(StorageReadError):
        RetryingSource(inner, retries=5).read("a", ten())
    assert len(inner.inner.requests) == 2


# ------------------------------------------------------------------------------------ TaskReader


def task_reader(source, **keywords):
    return TaskReader(ReadContext(source=source, verify=True, **keywords), "a")


def test_no_request_is_longer_than_the_source_takes():
    source = remote()
    source.limits = SourceLimits(max_request_bytes=1000, max_gap_bytes=10)
    buffers = [bytearray(2500), bytearray(0), bytearray(700)]
    reader = task_reader(source)
    reader.read_into(3, [memoryview(buffer) for buffer in buffers])
    assert b"".join(buffers) == DATA[3:3203]
    assert [(start, end) for _, start, end in source.requests] == [
        (3, 1003),
        (1003, 2003),
        (2003, 2503),
        (2503, 3203),
    ]
    assert (reader.tally.reads, reader.tally.bytes_read) == (4, 3200)


def test_retries_are_counted():
    reader = task_reader(remote(busy=2), retries=3)
    reader.read_into(0, [memoryview(bytearray(1))])
    assert (reader.tally.reads, reader.tally.retries) == (1, 2)


def test_a_size_is_looked_up_once_for_all_tasks():
    source = remote()
    context = ReadContext(source=source, verify=True)
    assert [TaskReader(context, "a").size() for _ in range(3)] == [len(DATA)] * 3
    assert source.looks == ["a"]


@pytest.mark.parametrize(
    "act", [lambda it: it.size(), lambda it: it.read_into(0, [memoryview(b"")])]
)
def test_a_read_that_fails_after_the_load_ended_is_ignored(act):
    ended = []

    class Failing(RemoteLikeSource):
        def read(self, path, reads):
            ended.append(True)
            raise UnavailableError

        def stat(self, path):
            ended.append(True)
            raise UnavailableError

    reader = task_reader(Failing({}), retries=3, is_cancelled=lambda: bool(ended))
    with pytest.raises(Cancelled):
        act(reader)


# --------------------------------------------------------------------------------------- Retries


@pytest.fixture
def clock(monkeypatch, waits):
    """A clock that only pauses move; pauses are never shorter than the longest."""
    monkeypatch.undo()  # the fixture for all tests
    clock = SimpleNamespace(now_s=0.0)

    def sleep(seconds):
        clock.now_s += seconds

    fake = SimpleNamespace(monotonic=lambda: clock.now_s, sleep=sleep)
    monkeypatch.setattr(_retrying, "time", fake)
    monkeypatch.setattr(_retrying, "random", SimpleNamespace(uniform=lambda _, most: most))
    return clock


SERVER = RetryPolicy(retries=3, first_pause_s=1.0, longest_pause_s=8.0, outage_s=30.0)


def server(**keywords):
    source = RemoteLikeSource(dict.fromkeys("abc", DATA), latency_s=0, **keywords)
    source.limits = SourceLimits(retry=SERVER)
    return source


def task_of(source, shared):
    return RetryingSource(source, shared)


def test_a_server_is_retried_for_longer_than_a_disk(clock):
    source = task_of(server(busy=3), None)
    source.read("a", ten())
    assert (source.retried, clock.now_s) == (3, pytest.approx(1 + 2 + 4))


def test_a_server_that_answers_nothing_is_given_up_by_all_tasks(clock):
    source, shared = server(busy=10**6), Retries(SERVER)

    def fail(path):
        before = len(source.requests)
        with pytest.raises(StorageReadError, match="503") as caught:
            task_of(source, shared).read(path, ten())
        assert (caught.value.start, caught.value.end) == (5, 15)
        return len(source.requests) - before

    assert fail("a") == 4
    assert [fail("b"), fail("a")] == [1, 1], "one try, in case that it answers again"
    clock.now_s = 29.9
    assert fail("c") == 1
    clock.now_s = 30.0
    assert fail("c") == 0
    assert clock.now_s == 30.0


def test_a_file_that_cannot_be_read_is_given_up_alone(clock):
    source, shared = server(busy=4), Retries(SERVER)
    with pytest.raises(StorageReadError):
        task_of(source, shared).read("a", ten())
    task_of(source, shared).read("b", ten())
    clock.now_s = 100.0
    source._busy = 3
    with pytest.raises(StorageReadError):
        task_of(source, shared).read("a", ten())
    source._busy = 3
    task_of(source, shared).read("b", ten())


def test_retries_end_with_the_deadline(clock):
    for stall_timeout_s, most_s in ((None, 30.0), (1000, 30.0), (16, 8.0), (1, 0.5)):
        clock.now_s = 0.0
        with pytest.raises(StorageReadError):
            task_of(server(busy=10**6), Retries(SERVER, 100, stall_timeout_s)).read("a", ten())
        assert most_s / 2 <= clock.now_s + 0.5 <= most_s + 0.5
    clock.now_s = 0.0
    waits = [clock.now_s for _ in _retrying.pauses(100, policy=SERVER)]
    assert waits == pytest.approx([1, 3, 7, 15, 23])


def test_a_disk_is_retried_by_each_task_alone(clock):
    source, shared = remote(busy=10**6), Retries(RetryPolicy())
    for _ in range(2):
        with pytest.raises(StorageReadError, match="4 times"):
            task_of(source, shared).read("a", ten())
        clock.now_s += 1000


def test_pauses_grow_and_differ(monkeypatch):
    monkeypatch.undo()  # the fixture's
    now_s = 0.0

    def sleep(seconds):
        nonlocal now_s
        now_s += seconds

    fake = SimpleNamespace(monotonic=lambda: now_s, sleep=sleep)
    monkeypatch.setattr(_retrying, "time", fake)

    def waited():
        ends = [now_s] + [now_s for _ in _retrying.pauses(9, policy=RetryPolicy())]
        return [after - before for before, after in pairwise(ends)]

    longest = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    first, second = waited(), waited()
    for pause_s, most_s in zip(first + second, longest * 2, strict=True):
        assert most_s / 2 - 1e-6 <= pause_s <= most_s + 1e-6
    assert first != second
