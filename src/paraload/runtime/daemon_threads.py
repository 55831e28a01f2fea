"""Calls on daemon threads, with a deadline for each answer.

    caller --submit--> threads --answers--> caller: next()        or StalledReadError

A system call on a stalled storage cannot be interrupted. On a daemon thread it blocks neither the
caller nor the exit of the program; the threads of ``concurrent.futures`` block both. If the system
refuses to start a thread, calls run on the caller's thread, without a deadline. A call costs 50 us,
mostly for starting the thread; futures with their locks would add to that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
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
    """The error for a storage that has stalled during ``what``, a clause."""
    return StalledReadError(
        f"no answer for {timeout_s:g} s from the storage while {what}.{hint and f' {hint}.'}"
        " Is the storage all right? stall_timeout_s= sets how long to wait; None waits forever"
    )


def start_thread(threads: list[threading.Thread], live: Callable[[], None], name: str) -> None:
    """Start a daemon thread and add it to ``threads``; ``RuntimeError`` if the system refuses."""
    thread = threading.Thread(target=live, name=name, daemon=True)
    with interrupts_deferred():  # Ctrl-C between the two lines would leave a thread running
        thread.start()
        threads.append(thread)


def end_threads(
    threads: list[threading.Thread], calls: SimpleQueue[Any], patience_s: float
) -> None:
    """Send each thread a ``None``, which ends it, and wait for all of them."""
    with interrupts_deferred():  # Ctrl-C would leave threads running
        for _thread in threads:
            calls.put(None)
        until_s = time.monotonic() + patience_s
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        if stuck := [thread.name for thread in threads if thread.is_alive()]:
            logger.warning("threads that the storage does not let go of: %s", ", ".join(stuck))


class Answer(NamedTuple):
    """What a call returned or raised."""

    key: Any
    value: Any
    error: BaseException | None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class DaemonThreads:
    """Up to ``limit`` threads, started on demand. Use as a context manager.

    Without any threads, calls run on the caller's thread. Answers are awaited for ``timeout_s``
    (``None``: forever), and calls that are still running at the end for ``patience_s``.
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
        self._calls: SimpleQueue[tuple[Any, Callable[[], Any]] | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer | None] = SimpleQueue()
        self._is_closed = False

    @classmethod
    def for_looks(cls, timeout_s: float | None) -> DaemonThreads:
        """One thread for short calls; none if there is no deadline."""
        limit, patience_s = 0 if timeout_s is None else 1, PATIENCE_WITH_STALLED_S
        return cls(limit, "paraload-look", timeout_s=timeout_s, patience_s=patience_s)

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Queue a call; its answer carries ``key``."""
        self._calls.put((key, partial(function, *arguments)))  # before its thread starts
        self._pending += 1
        if len(self._threads) < min(self._pending, self._limit):
            self._start()
        if not self._threads and (call := self._calls.get()) is not None:
            self._answers.put(_answer(*call, Exception))

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
        """In a long call: restart the deadline; end the call if its answer is no longer wanted."""
        if self._is_closed:
            raise SystemExit
        self._answers.put(None)

    def __enter__(self) -> Self:
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
        while (call := self._calls.get()) is not None and not self._is_closed:
            answer = _answer(*call, BaseException)
            if not self._is_closed:  # otherwise its error would keep files open until collected
                self._answers.put(answer)
            del call, answer  # the next wait would keep the caller's objects alive


def _answer(key: Any, call: Callable[[], Any], caught: type[BaseException]) -> Answer:
    try:
        return Answer(key, call(), None)
    except caught as error:
        return Answer(key, None, error)
