"""Signals during a load: none is lost, and none interrupts the start or end of workers.

Ctrl-C is deferred while workers are started or ended. A ``KeyboardInterrupt`` can arrive between
any two instructions. Between the start of a process and the line that notes its number, it would
leave a process that nothing ends.

An exception that a signal handler raises (``signal.alarm`` and ``TimeoutError``, a scheduler's
SIGTERM) surfaces wherever the main thread happens to be. Inside a read it would look like a failure
of that read: it would become the error of one item, or be retried, and the load would go on. So
while a load runs, such an exception travels in a ``BaseException``, which no ``except Exception``
catches:

    handler raises --> _Guard --> _Carrier(error) --> out of the load --> error, as it was raised

From then on the load is torn down, and further signals must not interrupt that: their handlers run
when it is done.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed does not know it
import functools
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "carried",
    "interrupts_blocked",
    "interrupts_deferred",
    "stop_if_signalled",
    "stopped_by_signals",
]

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class _Carrier(BaseException):
    """Carries the exception of a signal handler past every ``except Exception``."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _Guard:
    """Stands in for the program's handler of one signal."""

    def __init__(self, handler: Callable[..., object]) -> None:
        self.handler = handler
        self.is_active = True

    def __call__(self, number: int, frame: Any) -> None:
        if not self.is_active:  # the program kept this guard and reinstalled it after the load
            self.handler(number, frame)
        elif _state.deferring or _state.is_ending:
            _state.waiting[number] = self
        else:
            interrupted = sys.exc_info()[1]
            try:
                self.handler(number, frame)
            except BaseException as error:
                _state.is_ending, _state.lost = True, _Carrier(error)
                if error.__context__ is interrupted:  # of ours, with all that its frames hold
                    error.__context__ = None
                if not isinstance(error, Exception):
                    raise
                raise _state.lost from None


class _State:
    """State of the main thread, the only one that runs signal handlers.

    Attributes:
        depth: guarded functions, each in the one before it.
        deferring: blocks in which signals wait.
        is_ending: a handler has raised; other signals wait until everything is torn down.
        waiting: guards of these signals, by number.
        lost: what the handler raised, for the case that Python drops it on the way.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.deferring = 0
        self.is_ending = False
        self.waiting: dict[int, _Guard] = {}
        self.lost: _Carrier | None = None


_state: Final = _State()

#: Does not convert each answer to an enum, as :mod:`signal` does: 1 us for all signals, not 20.
_getsignal: Final = _signal.getsignal


def stopped_by_signals(
    function: Callable[Arguments, Answer],
) -> Callable[Arguments, Answer]:
    """Let what a signal handler raises end ``function`` at once, unchanged.

    On the main thread only: no other thread runs handlers. If such functions are nested, the
    outermost one raises the exception.
    """

    # Not a context manager made of a generator: a StopIteration could not leave that unchanged.
    @functools.wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        guards: dict[int, _Guard] = {}
        depth = _state.depth
        try:
            _state.depth = depth + 1
            _set(guards)
            answer = function(*args, **kwargs)
            stop_if_signalled()  # the load must not seem to have ended well
        except _Carrier as carrier:
            if depth:
                raise
            error = carrier.error
        else:
            return answer
        finally:
            for guard in guards.values():
                guard.is_active = False  # first: handlers raise to the caller from now on
            _state.depth = depth
            if not depth:
                _state.lost, _state.is_ending = None, False
            _put_back(guards)
            if not depth:
                _handle_waiting()
        raise error  # outside of the except block: the carrier must not become its context

    return guarded


def carried(error: BaseException) -> BaseException:
    """What a signal handler raised, if that is what ``error`` carries; or else ``error``."""
    return error.error if isinstance(error, _Carrier) else error


def stop_if_signalled() -> None:
    """Raise what a signal handler has raised, if Python has dropped it, as it does in destructors.

    For loops of the caller's thread, which would go on.
    """
    if _state.lost is not None and threading.current_thread() is threading.main_thread():
        raise _state.lost


def _set(guards: dict[int, _Guard]) -> None:
    """Guard the program's signal handlers; there is rarely one besides Ctrl-C's own."""
    for number in range(1, signal.NSIG):
        handler = _getsignal(number)
        # Ctrl-C raises a BaseException already. Constants and C handlers raise nothing.
        if callable(handler) and handler is not signal.default_int_handler:
            if isinstance(handler, _Guard) and handler.is_active:
                continue
            guards[number] = _Guard(handler)
            signal.signal(number, guards[number])


def _put_back(guards: dict[int, _Guard]) -> None:
    """Restore every handler, even if one of them raises meanwhile."""
    raised: BaseException | None = None
    while guards:
        try:
            for number, guard in list(guards.items()):
                if _getsignal(number) is guard:  # otherwise the program has set another one
                    signal.signal(number, guard.handler)
                del guards[number]
        except BaseException as error:  # noqa: BLE001 - raised again when all are back
            raised = error
    if raised is not None:
        raise raised


class interrupts_deferred:  # noqa: N801 - used like a function
    """On the main thread, defer SIGINT and guarded signals to the end of the block.

    Not a context manager made of a generator: until one of those has begun, a signal may still
    come between a block and its own tearing down.
    """

    __slots__ = ("_caught", "_handler", "_is_main")

    def __enter__(self) -> None:
        """Signals wait from now on."""
        self._is_main = threading.current_thread() is threading.main_thread()
        if not self._is_main:
            return
        _state.deferring += 1  # before SIGINT is changed: other handlers may raise as well
        self._caught: list[int] = []
        self._handler: Any = _getsignal(signal.SIGINT)
        try:
            if callable(self._handler):
                signal.signal(signal.SIGINT, lambda number, _: self._caught.append(number))
        except BaseException:
            _state.deferring -= 1
            raise

    def __exit__(self, *_: object) -> None:
        """Handle those that came."""
        if not self._is_main:
            return
        handler = self._handler
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
        _state.deferring -= 1
        try:
            if self._caught:
                # Not the interrupted frame: that would keep its locks alive.
                handler(self._caught[-1], None)
        finally:
            if not _state.deferring:
                _handle_waiting()


def _handle_waiting() -> None:
    """Handle every deferred signal, even if the handler of one raises."""
    if _state.waiting and not _state.is_ending:
        number, guard = _state.waiting.popitem()
        try:
            guard(number, sys._getframe())  # noqa: SLF001 - profilers want a frame
        finally:
            _handle_waiting()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes that are started in this block never see the terminal's Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
