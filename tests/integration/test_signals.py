"""An exception from a signal handler ends a load at once, unchanged."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

import paraload
from paraload import ParallelFileSystemReader, cli
from paraload.adapters.dcp.quick_planner import QuickLoadPlanner
from paraload.metadata import reading as _metadata_reading
from paraload.metadata.reading import read_metadata
from paraload.runtime import interrupts as _interrupts
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.runtime.interrupts import interrupts_deferred, stopped_by_signals
from tests.integration import hooks, support
from tests.integration.support import EXECUTORS


class ExpiredError(OSError):
    """As ``TimeoutError`` one of those that reads raise, too."""


@contextmanager
def alarm(error, after_s):
    """A handler that raises ``error`` once, ``after_s`` seconds from now."""

    def expired(number, frame):
        raise error

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
        assert signal.getsignal(signal.SIGALRM) is expired, "the program's handler is back"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class SlowReader(ParallelFileSystemReader):
    def _make_source(self):
        return hooks.SlowSource(super()._make_source())


@pytest.mark.parametrize("kind", [ExpiredError, ValueError, TimeoutError])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_exception_of_a_signal_handler_ends_a_load_at_once(folder, saved, executor, kind):
    reader = SlowReader(folder, executor=executor, max_workers=2)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    error = kind("time is up")
    with alarm(error, 0.9), pytest.raises(kind) as caught:
        reader.read_data(plan, planner)
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("after_s", [0.05, 0.3])
@pytest.mark.parametrize("executor", ["processes", "pool"])
def test_workers_that_are_just_starting_are_ended(folder, saved, executor, after_s):
    reader = ParallelFileSystemReader(
        folder, executor=executor, max_workers=2, slice_file=hooks.slow_slice
    )
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    with alarm(ExpiredError("time is up"), after_s), pytest.raises(ExpiredError):
        reader.read_data(plan, planner)


def test_a_whole_load_raises_it_itself(folder, saved, monkeypatch):
    make = ParallelFileSystemReader._make_source
    monkeypatch.setattr(
        ParallelFileSystemReader, "_make_source", lambda self: hooks.SlowSource(make(self))
    )
    error = ExpiredError("time is up")
    with alarm(error, 0.5), pytest.raises(ExpiredError) as caught:
        paraload.load(support.empty_like(saved), folder, no_dist=True, executor="sequential")
    assert caught.value is error


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, StopIteration])
def test_an_exception_while_torch_plans_is_not_an_error_of_the_plan(
    folder, saved, monkeypatch, kind
):
    monkeypatch.setattr(QuickLoadPlanner, "_could_be_old", lambda self: raise_it())
    error = kind("time is up")
    targets = support.empty_like(saved) | {"no such key": torch.zeros(1)}
    with alarm(error, 60), pytest.raises(kind) as caught:
        paraload.load(targets, folder, no_dist=True)
    assert caught.value is error


def test_torch_wraps_the_exception_itself_and_nothing_of_ours(folder, saved):
    reader = SlowReader(folder, executor="sequential")
    error = ExpiredError("time is up")
    with alarm(error, 0.5), pytest.raises(CheckpointException) as caught:
        support.load(reader, support.empty_like(saved))
    assert caught.value.failures[0][0] is error


def raise_it(number=signal.SIGALRM):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def read_alone(folder, saved):
    read_metadata(folder / ".metadata")


def load_whole(folder, saved):
    paraload.load(support.empty_like(saved), folder, no_dist=True)


@pytest.mark.parametrize("act", [read_alone, load_whole])
def test_metadata_that_is_being_read(folder, saved, monkeypatch, act):
    error = ExpiredError("time is up")

    def unpickle(data, allow_globals):
        try:
            raise_it()
        except Exception:  # noqa: BLE001 - as what unpickles damaged bytes does
            raise AssertionError("taken for damage") from None

    monkeypatch.setattr(_metadata_reading, "unpickle", unpickle)
    with alarm(error, 60), pytest.raises(ExpiredError) as caught:
        act(folder, saved)
    assert caught.value is error


@pytest.mark.parametrize("run", [paraload.verify, lambda folder: cli.main(["verify", str(folder)])])
def test_verify(folder, saved, monkeypatch, run):
    from paraload.engine.load import Load

    error = ExpiredError("time is up")
    really = Load._handle

    def handle(self, result):
        raise_it()
        return really(self, result)

    monkeypatch.setattr(Load, "_handle", handle)
    with alarm(error, 60), pytest.raises(ExpiredError) as caught:
        run(folder)
    assert caught.value is error


@pytest.mark.parametrize("kind", [ExpiredError, KeyboardInterrupt])
def test_a_hook_of_the_program_that_swallows_it_does_not_hide_it(folder, saved, kind):
    calls = []

    def progress(_):
        calls.append("progress")
        try:
            raise_it()
        except BaseException:  # noqa: BLE001 - as a destructor would
            return

    reader = ParallelFileSystemReader(folder, executor="sequential", progress=progress)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    with alarm(kind("time is up"), 60), pytest.raises(kind):
        reader.read_data(plan, planner)
    assert calls == ["progress"], "the load goes on"
    with alarm(kind("time is up"), 60), pytest.raises(kind):
        paraload.verify(folder, progress=progress)
    assert calls == ["progress"] * 2


def test_a_handler_that_the_program_sets_meanwhile_stays(folder, saved):
    def other(number, frame):
        raise AssertionError

    def progress(_):
        signal.signal(signal.SIGALRM, other)

    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        reader = ParallelFileSystemReader(folder, executor="sequential", progress=progress)
        plan, planner = support.plan_for(reader, support.empty_like(saved))
        reader.read_data(plan, planner)
        assert signal.getsignal(signal.SIGALRM) is other
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_handler_that_raises_nothing_is_called_as_ever(folder, saved):
    called = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: called.append((number, frame)))
    try:
        reader = ParallelFileSystemReader(
            folder, executor="sequential", progress=lambda _: raise_it(signal.SIGUSR1)
        )
        support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert called
    assert all(number == signal.SIGUSR1 and frame is not None for number, frame in called)


def test_a_handler_that_the_program_has_kept_is_its_own_again_after_the_load():
    error = ExpiredError("time is up")
    kept = []
    with alarm(error, 60):
        stopped_by_signals(lambda: kept.append(signal.getsignal(signal.SIGALRM)))()
        with pytest.raises(ExpiredError):
            kept[0](signal.SIGALRM, None)


def test_inner_ones_leave_it_to_the_outer_one():
    error = ExpiredError("time is up")
    seen = []

    @stopped_by_signals
    def inner():
        raise_it()

    @stopped_by_signals
    def outer():
        try:
            inner()
        except Exception as wrong:  # noqa: BLE001 - the very thing
            seen.append(wrong)

    with alarm(error, 60), pytest.raises(ExpiredError) as caught:
        outer()
    assert caught.value is error
    assert seen == []
    assert _interrupts._state.depth == 0


def test_other_threads_change_no_handlers():
    with alarm(ExpiredError(), 60):
        before = signal.getsignal(signal.SIGALRM)
        seen = []
        look = stopped_by_signals(lambda: seen.append(signal.getsignal(signal.SIGALRM)))
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert seen == [before]


def test_guarded_signals_wait_like_ctrl_c_where_that_waits():
    steps = []

    @stopped_by_signals
    def run():
        with interrupts_deferred():
            raise_it()
            with interrupts_deferred():
                raise_it()
            steps.append("done")
        steps.append("not reached")

    with alarm(ExpiredError(), 60), pytest.raises(ExpiredError):
        run()
    assert steps == ["done"]
    assert _interrupts._state.deferring == 0


@pytest.mark.parametrize("kind", [ExpiredError, SystemExit, KeyboardInterrupt])
def test_further_signals_do_not_break_off_what_is_torn_down(kind):
    steps = []

    def second(number, frame):
        steps.append("second handler")

    @stopped_by_signals
    def run():
        try:
            raise_it()
        finally:
            raise_it()
            raise_it(signal.SIGUSR1)
            steps.append("torn down")

    before = signal.signal(signal.SIGUSR1, second)
    error = kind("time is up")
    try:
        with alarm(error, 60), pytest.raises(kind) as caught:
            run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught.value is error
    assert steps == ["torn down", "second handler"]
    assert not _interrupts._state.waiting


@pytest.mark.parametrize("kind", [ExpiredError, StopIteration, GeneratorExit, SystemExit])
@pytest.mark.parametrize("call", range(1, 5))
def test_a_handler_that_raises_while_handlers_are_changed(monkeypatch, kind, call):
    """The first two looks are made before the function, the others when it has returned."""
    looks = []

    def look(number):
        handler = signal.getsignal(number)
        if number in (signal.SIGALRM, signal.SIGUSR1):
            looks.append(number)
            if len(looks) == call:
                raise_it()
        return handler

    def other(number, frame):
        raise AssertionError

    monkeypatch.setattr(_interrupts, "_getsignal", look)
    before = signal.signal(signal.SIGUSR1, other)
    error = kind("time is up")
    try:
        with alarm(error, 60), pytest.raises(kind) as caught:
            stopped_by_signals(lambda: None)()
        assert signal.getsignal(signal.SIGUSR1) is other
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught.value is error
    assert (_interrupts._state.depth, _interrupts._state.is_ending) == (0, False)


def test_the_exception_has_no_unrelated_context():
    """It would keep the frames of the load alive, and with them shared memory."""

    @stopped_by_signals
    def run():
        try:
            queue.SimpleQueue().get_nowait()
        except queue.Empty:
            raise_it()

    for error in (ExpiredError(), SystemExit()):
        with alarm(error, 60), pytest.raises(type(error)):
            run()
        assert error.__context__ is None


def test_a_thread_that_is_just_starting(monkeypatch):
    """A signal between the start and the wait for it breaks the locks of ``threading``."""
    start = threading.Thread.start

    def interrupted(self):
        start(self)
        try:
            raise_it()
        except BaseException:  # noqa: BLE001 - as in CPython's Condition
            raise RuntimeError("release unlocked lock") from None

    monkeypatch.setattr(threading.Thread, "start", interrupted)

    @stopped_by_signals
    def run():
        with DaemonThreads(1, "waits", timeout_s=5) as threads:
            threads.call(lambda: "", time.monotonic)

    error = ExpiredError("time is up")
    with alarm(error, 3), pytest.raises(ExpiredError) as caught:
        run()
    assert caught.value is error


def test_ctrl_c_and_a_handler_of_its_own(folder, saved):
    class PreemptedError(Exception):
        pass

    def progress(_):
        raise_it(signal.SIGINT)

    reader = ParallelFileSystemReader(folder, executor="sequential", progress=progress)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(KeyboardInterrupt):
        reader.read_data(plan, planner)

    def handler(number, frame):
        raise PreemptedError

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(PreemptedError):
            reader.read_data(plan, planner)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_costs_next_to_nothing():
    nothing = stopped_by_signals(lambda: None)
    best = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        nothing()
        best = min(best, time.perf_counter() - started)
    assert best < 5e-5


def test_objects_that_are_being_unpickled(tmp_path):
    error = ExpiredError("time is up")

    class Slow:
        def __reduce__(self):
            return raise_it, ()

    support.save(tmp_path, {"w": torch.zeros(3), "note": Slow()})
    with alarm(error, 60), pytest.raises(ExpiredError) as caught:
        paraload.load({"w": torch.zeros(3), "note": None}, tmp_path, no_dist=True)
    assert caught.value is error
