"""Calls on daemon threads, with a deadline for each answer.

    caller --submit--> threads --answers--> caller: next()        or StalledReadError

A system call on a stalled storage cannot be interrupted. On a daemon thread it blocks neither the
caller nor the exit of the program; the threads of ``concurrent.futures`` block both. If the system
refuses to start a thread, calls run on the caller's thread, without a deadline.

A single call costs 50 us, mostly for starting the thread, and a small load notices that. So there
are no futures with their locks, and one thread can serve a whole load.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Self

from paraload.errors import StalledReadError
from paraload.runtime.interrupts import interrupts_deferred

logger = logging.getLogger("paraload")

#: How long the end of a load waits for its threads, which end after their current read. A thread
#: that is stuck in a system call cannot be ended, and must not block the caller's Ctrl-C.
PATIENCE_S: Final = 30.0
PATIENCE_WITH_STALLED_S: Final = 1.0


def no_answer(timeout_s: float, what: str, hint: str = "") -> StalledReadError:
    """The error for a storage that has stalled, while ``what`` (a clause) was going on."""
    return StalledReadError(
        f"no answer for {timeout_s:g} s from the storage while {what}.{hint and f' {hint}.'}"
        " Is the storage all right? stall_timeout_s= sets how long to wait; None waits forever"
    )


def start_thread(threads: list[threading.Thread], live: Callable[[], None], name: str) -> None:
    """Start a daemon thread and add it to ``threads``.

    Raises:
        RuntimeError: the system refuses to start one.
    """
    thread = threading.Thread(target=live, name=name, daemon=True)
    with interrupts_deferred():  # a thread that is in no list is never ended
        thread.start()
        threads.append(thread)


def end_threads(
    threads: list[threading.Thread], calls: SimpleQueue[Any], patience_s: float
) -> None:
    """Send each thread a ``None``, which ends it, and wait for all of them."""
    with interrupts_deferred():  # or else Ctrl-C leaves threads that still run
        for _thread in threads:
            calls.put(None)
        until_s = time.monotonic() + patience_s
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        if stuck := [thread.name for thread in threads if thread.is_alive()]:
            logger.warning("threads that the storage does not let go of: %s", ", ".join(stuck))


class _Call(NamedTuple):
    key: Any
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Answer(NamedTuple):
    """What a call returned or raised."""

    key: Any
    value: Any
    error: BaseException | None

    def result(self) -> Any:
        """What the call returned.

        Raises:
            BaseException: what the call raised.
        """
        if self.error is not None:
            raise self.error
        return self.value


class _ClosedError(BaseException):
    """Ends a call whose answer is no longer wanted."""


class DaemonThreads:
    """Up to ``limit`` threads, started on demand. Use as a context manager.

    Args:
        limit: the most threads at once.
        name: prefix of the threads' names.
        timeout_s: how long to wait for an answer; ``None`` waits forever.
        patience_s: how long the end waits for calls that are still running.
    """

    def __init__(
        self, limit: int, name: str, *, timeout_s: float | None, patience_s: float = PATIENCE_S
    ) -> None:
        self._limit = limit
        self._name = name
        self.timeout_s = timeout_s
        self._patience_s = patience_s
        self._pending = 0
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer | None] = SimpleQueue()
        self._is_closed = False

    @classmethod
    def for_looks(cls, timeout_s: float | None) -> DaemonThreads:
        """One thread for short calls; none if there is no deadline."""
        limit = 0 if timeout_s is None else 1
        patience_s = PATIENCE_WITH_STALLED_S
        return cls(limit, "paraload-look", timeout_s=timeout_s, patience_s=patience_s)

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Queue a call; its answer carries ``key``."""
        self._calls.put(_Call(key, function, arguments))  # before the thread that takes it starts
        self._pending += 1
        if len(self._threads) < min(self._pending, self._limit):
            self._start()
        if not self._threads:
            call = self._calls.get()
            if call is not None:
                self._answers.put(_made(call, Exception))

    def next(self, what: Callable[[], str]) -> Answer:
        """The next answer.

        Raises:
            StalledReadError: no answer arrived in time; ``what()`` says what was going on.
        """
        while True:
            try:
                answer = self._answers.get(timeout=self.timeout_s)
            except Empty:
                raise no_answer(self.timeout_s or 0.0, what()) from None
            if answer is not None:
                self._pending -= 1
                return answer

    def call(self, what: Callable[[], str], function: Callable[..., Any], *arguments: Any) -> Any:
        """Make one call while no others are pending, and wait for its answer."""
        self.submit(None, function, *arguments)
        answer = self.next(what)
        try:
            return answer.result()
        finally:
            del answer  # the traceback of its error refers to this frame

    def goes_on(self) -> None:
        """For long calls: restart the deadline; end the call if it is no longer wanted."""
        if self._is_closed:
            raise _ClosedError
        self._answers.put(None)

    def __enter__(self) -> Self:
        """Threads start with the first calls."""
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """End all threads; drop calls that have not started."""
        self._is_closed = True
        is_stalled = isinstance(error, StalledReadError)
        patience_s = PATIENCE_WITH_STALLED_S if is_stalled else self._patience_s
        end_threads(self._threads, self._calls, patience_s)

    def _start(self) -> None:
        try:
            start_thread(self._threads, self._live, f"{self._name}-{len(self._threads)}")
        except RuntimeError as error:
            started = len(self._threads)
            logger.info("only %d of %d threads could be started (%s)", started, self._limit, error)
            self._limit = started  # another attempt would most likely fail too

    def _live(self) -> None:
        """Make calls until there are no more: the body of one thread."""
        while (call := self._calls.get()) is not None and not self._is_closed:
            answer = _made(call, BaseException)
            if not self._is_closed:  # otherwise its error would keep files open until collected
                self._answers.put(answer)
            del call, answer  # or they would keep the caller's objects alive


def _made(call: _Call, caught: type[BaseException]) -> Answer:
    try:
        return Answer(call.key, call.function(*call.arguments), None)
    except caught as error:
        return Answer(call.key, None, error)
