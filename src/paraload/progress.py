"""Progress: frozen snapshots for any hook, and a tqdm bar for people.

The engine calls the hook on the caller's thread after every task. A hook that raises ends the load
with its error; a bar that cannot be drawn ends by itself.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType

    from tqdm import tqdm

__all__ = ["ProgressBar", "ProgressHook", "ReadProgress", "is_quiet_rank", "is_terminal"]

logger = logging.getLogger("paraload")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadProgress:
    """How far a load is.

    Attributes:
        bytes_done: bytes that are in their targets, or waiting for the planner.
        bytes_total: bytes that the plan needs.
        items_done: tensors and objects that are committed.
        items_total: tensors and objects of the plan.
        files_done: files of which every item is done.
        files_total: files that the plan reads from.
        seconds: since the load began.
    """

    bytes_done: int
    bytes_total: int
    items_done: int
    items_total: int
    files_done: int
    files_total: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Mean rate so far."""
        return self.bytes_done / self.seconds if self.seconds > 0 else 0.0


class ProgressHook(Protocol):
    """Anything that can be called with a snapshot."""

    def __call__(self, progress: ReadProgress, /) -> object:
        """Take note of ``progress``."""


def is_terminal(stream: Any) -> bool:
    """Whether ``stream`` is a terminal. Never raises, whatever ``stream`` is.

    It is ``None`` in a program without a console, and may be closed in the background.
    """
    try:
        return bool(stream.isatty())
    except Exception:  # noqa: BLE001 - a program may put any object there
        return False


def is_quiet_rank() -> bool:
    """Whether this process is not the first of its job, so that another one shows the bar."""
    distributed = sys.modules.get("torch.distributed")  # not imported for this: then no group lives
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() != 0)
    return os.environ.get("RANK", "0") not in {"", "0"}


class ProgressBar:
    """A tqdm bar in bytes with the files done; silent where there is no terminal.

    If the bar cannot be drawn because the terminal is gone, it ends, and the load goes on.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._is_wanted = True

    def __enter__(self) -> Self:
        """The bar appears with the first snapshot."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        try:
            if self._bar is not None:
                self._bar.close()
        except Exception as broken:  # noqa: BLE001 - the bar must not fail the load
            self._end(broken)

    def __call__(self, progress: ReadProgress, /) -> None:
        """Move the bar."""
        try:
            self._move(progress)
        except Exception as error:  # noqa: BLE001 - the bar must not fail the load
            self._end(error)

    def _end(self, error: Exception) -> None:
        if self._bar is not None:
            self._bar.disable = True  # otherwise it tries once more when it is collected
        self._bar, self._is_wanted = None, False
        logger.warning("the progress bar stopped: %s: %s", type(error).__name__, error)

    def _move(self, progress: ReadProgress) -> None:
        if self._bar is None:
            if not self._is_wanted or is_quiet_rank() or not is_terminal(sys.stderr):
                return
            self._bar = _make_bar()
        bar = self._bar
        bar.total = progress.bytes_total
        bar.set_postfix_str(f"{progress.files_done}/{progress.files_total} files", refresh=False)
        bar.update(progress.bytes_done - bar.n)
        if progress.items_done == progress.items_total:
            bar.refresh()


def _make_bar() -> tqdm[Any]:
    from tqdm import tqdm  # noqa: PLC0415 - only for those who want a bar

    class Bar(tqdm):  # type: ignore[type-arg]  # generic for the type checker alone
        monitor_interval = 0  # its monitor is a thread that would outlive the load

    return Bar(desc="Loading checkpoint", unit="iB", unit_scale=True, unit_divisor=1024)
