"""Signals during a load: none is lost, and none interrupts the start or end of workers.

Ctrl-C is deferred while workers start or stop: a ``KeyboardInterrupt`` between the start of a
process and the line that records its pid would leave a process that nothing ends.

The exception of a signal handler (``TimeoutError`` from ``signal.alarm``, a scheduler's SIGTERM)
surfaces at any line of the main thread. Inside a read it would look like a failed read. So during a
load it travels inside a ``BaseException``, which no ``except Exception`` catches:

    handler raises --> _Guard --> _Carrier(error) --> out of the load --> error, unchanged

From then on the load is shutting down, and further signals are handled afterwards.
"""

import _signal  # type: ignore[import-not-found]  # typeshed does not know it
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: ``signal.getsignal`` converts each answer to an enum: 20 us for all signals instead of 1 us.
_getsignal: Final = _signal.getsignal


class _Carrier(BaseException):
    """Carries the exception of a signal handler, its argument, past every ``except Exception``."""


class _Guard:
    """Replaces the program's handler of one signal during a load or a deferral."""

    def __init__(self, handler: Callable[..., object]) -> None:
        self.handler = handler
        self.is_active = True

    def __call__(self, number: int, frame: Any) -> None:
        if not self.is_active:  # deferred, or the program kept this guard and reinstalled it later
            self.handler(number, frame)
        elif _state.deferring or _state.is_ending:
            _state.waiting[number] = self
        else:
            interrupted = sys.exc_info()[1]
            try:
                self.handler(number, frame)
            except BaseException as error:
                _state.is_ending, _state.lost = True, _Carrier(error)
                if error.__context__ is interrupted:  # it would keep our frames alive
                    error.__context__ = None
                if not isinstance(error, Exception):
                    raise
                raise _state.lost from None


@dataclass
class _State:
    """State of the main thread, the only one that runs signal handlers."""

    depth: int = 0  # of nested guarded functions
    deferring: int = 0  # depth of nested blocks that defer signals
    is_ending: bool = False  # a handler has raised
    waiting: dict[int, _Guard] = field(default_factory=dict)  # deferred signals
    lost: _Carrier | None = None  # what the handler raised, in case Python drops it


_state: Final = _State()


def stopped_by_signals(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: an exception of a signal handler ends ``function`` at once and unchanged.

    It has no effect outside the main thread, which runs all handlers. Of nested decorated
    functions, the outermost one raises the exception.
    """

    # Not a @contextmanager: a StopIteration could not leave its generator unchanged.
    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        guards: dict[int, _Guard] = {}
        depth = _state.depth
        try:
            _state.depth = depth + 1
            _set(guards)
            answer = function(*args, **kwargs)
            stop_if_signalled()  # otherwise a load that was interrupted seems to have succeeded
        except _Carrier as carrier:
            if depth:
                raise
            error: BaseException = carrier.args[0]
        else:
            return answer
        finally:
            for guard in guards.values():
                guard.is_active = False  # first: from now on handlers raise to the caller
            _state.depth = depth
            if not depth:
                _state.lost, _state.is_ending = None, False
            _put_back(guards)
            if not depth:
                _handle_waiting()
        raise error  # outside of the except block: the carrier must not become its context

    return guarded


def carried(error: BaseException) -> BaseException:
    """The exception of a signal handler if ``error`` carries one, otherwise ``error``."""
    return error.args[0] if isinstance(error, _Carrier) else error


def stop_if_signalled() -> None:
    """Raise an exception of a signal handler that Python dropped, as it does in destructors.

    Loops on the caller's thread call this, since they would continue otherwise.
    """
    if _state.lost is not None and threading.current_thread() is threading.main_thread():
        raise _state.lost


def _set(guards: dict[int, _Guard]) -> None:
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
    try:
        for number, guard in list(guards.items()):
            if _getsignal(number) is guard:  # otherwise the program has set another one
                signal.signal(number, guard.handler)
            del guards[number]
    finally:
        if guards:
            _put_back(guards)


class interrupts_deferred:  # noqa: N801 - used like a function
    """On the main thread, defer SIGINT and guarded signals to the end of the block.

    Not a ``@contextmanager``: a signal could arrive before its generator has entered the ``try``.
    """

    _guard: _Guard | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._guard = _Guard(_getsignal(signal.SIGINT))
        _state.deferring += 1  # before SIGINT is changed: other handlers may raise as well
        try:
            if callable(self._guard.handler):
                signal.signal(signal.SIGINT, self._guard)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._guard is None:
            return
        try:
            _put_back({signal.SIGINT: self._guard})
        finally:
            self._guard.is_active = False
            _state.deferring -= 1
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
    """Processes that start in this block never see the terminal's Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
