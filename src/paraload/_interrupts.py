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

__all__ = ["interrupts_blocked", "interrupts_deferred", "stopped_by_signals"]

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class _Carrier(BaseException):
    """Carries the exception of a signal handler past every ``except Exception``."""

    def __init__(self, error: Exception) -> None:
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
        elif _state.deferring:
            _state.waiting[number] = self
        else:
            try:
                self.handler(number, frame)
            except Exception as error:  # noqa: BLE001 - raised again when the load is over
                carrier = _Carrier(error)
                _state.lost = carrier
                raise carrier from None


class _State:
    """State of the main thread, the only one that runs signal handlers."""

    def __init__(self) -> None:
        self.depth = 0
        self.deferring = 0
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

    @functools.wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        try:
            with _guards():
                return function(*args, **kwargs)
        except _Carrier as carrier:
            if _state.depth:
                raise
            error = carrier.error
        raise error  # outside of the except block: the carrier must not become its context

    return guarded


@contextmanager
def _guards() -> Iterator[None]:
    """Guard the program's signal handlers; there is rarely one besides Ctrl-C's own."""
    guards: dict[int, _Guard] = {}
    _state.depth += 1
    try:
        for number in range(1, signal.NSIG):
            handler = _getsignal(number)
            # Ctrl-C raises a BaseException already. Constants and C handlers raise nothing.
            if callable(handler) and handler is not signal.default_int_handler:
                if isinstance(handler, _Guard) and handler.is_active:
                    continue
                guards[number] = _Guard(handler)
                signal.signal(number, guards[number])
        yield
        # Python drops what is raised in a destructor; the load must not appear to succeed.
        if _state.depth == 1 and _state.lost is not None:
            raise _state.lost
    finally:
        _state.depth -= 1
        if not _state.depth:
            _state.lost = None
        for guard in guards.values():
            guard.is_active = False  # first: a handler may raise while others are restored
        for number, guard in guards.items():
            if _getsignal(number) is guard:  # otherwise the program has set another one
                signal.signal(number, guard.handler)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """On the main thread, defer SIGINT and guarded signals to the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    handler: Any = signal.getsignal(signal.SIGINT)
    _state.deferring += 1  # before SIGINT's handler is replaced: others may raise as well
    try:
        if callable(handler):
            signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
        yield
    finally:
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
        _state.deferring -= 1
        try:
            if caught:
                # Not the interrupted frame: that would keep its locks alive.
                handler(caught[-1], None)
        finally:
            if not _state.deferring:
                _handle_waiting()


def _handle_waiting() -> None:
    """Handle every deferred signal, even if the handler of one raises."""
    if _state.waiting:
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
