"""Progress of a load: snapshots for a callable, and a tqdm bar."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["ProgressBar", "ProgressHook", "ReadProgress", "is_quiet_rank", "is_terminal"]

logger = logging.getLogger("paraload")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadProgress:
    """A snapshot of a running load.

    Attributes:
        bytes_done: bytes that are in their targets, or staged for the planner.
        bytes_total: bytes that the plan needs.
        items_done: tensors and objects that were committed.
        items_total: tensors and objects in the plan.
        files_done: files all of whose items are done.
        files_total: files that the plan reads.
        seconds: seconds since the load began.
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
        """Mean throughput since the load began; 0.0 at its start."""
        return self.bytes_done / self.seconds if self.seconds > 0 else 0.0


class ProgressHook(Protocol):
    """A callable that receives a snapshot after every task."""

    def __call__(self, progress: ReadProgress, /) -> object:
        """Called on the caller's thread; an exception ends the load."""


def is_terminal(stream: Any) -> bool:
    """Whether ``stream`` is an open terminal."""
    try:
        return bool(stream.isatty())
    except Exception:  # noqa: BLE001 - sys.stderr may be None, closed, or any object
        return False


def is_quiet_rank() -> bool:
    """Whether another rank of this job shows the bar."""
    distributed = sys.modules.get("torch.distributed")  # without it there is no process group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() != 0)
    return os.environ.get("RANK", "0") not in {"", "0"}


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A hook that draws a tqdm bar of bytes and files on a terminal, on rank 0.

    If the bar cannot be drawn, it is dropped with a warning, and the load goes on.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._is_wanted = not is_quiet_rank() and is_terminal(sys.stderr)

    def __exit__(self, *_: object) -> None:
        with self._dropped_on_error():
            if self._bar is not None:
                self._bar.close()

    def __call__(self, progress: ReadProgress, /) -> None:
        """Show ``progress``."""
        with self._dropped_on_error():
            if self._is_wanted:
                self._show(progress)

    @contextmanager
    def _dropped_on_error(self) -> Generator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the bar must not fail the load
            if self._bar is not None:
                self._bar.disable = True  # otherwise tqdm draws it again when it is collected
            self._bar, self._is_wanted = None, False
            logger.warning("the progress bar stopped: %s: %s", type(error).__name__, error)

    def _show(self, progress: ReadProgress) -> None:
        bar = self._bar = self._bar or _make_bar()
        bar.total = progress.bytes_total
        bar.set_postfix_str(f"{progress.files_done}/{progress.files_total} files", refresh=False)
        bar.update(progress.bytes_done - bar.n)
        if progress.items_done == progress.items_total:
            bar.refresh()


def _make_bar() -> tqdm[Any]:
    from tqdm import tqdm  # noqa: PLC0415 - only where a bar is drawn

    class Bar(tqdm):  # type: ignore[type-arg]  # generic for the type checker alone
        monitor_interval = 0  # the monitor is a thread that would outlive the load

    return Bar(desc="Loading checkpoint", unit="iB", unit_scale=True, unit_divisor=1024)


@contextmanager
def progress_hook(
    option: bool | ProgressHook | None,  # noqa: FBT001 - the value of ``progress=``
    file_callback: Callable[[int, int], object] | None,
) -> Iterator[ProgressHook | None]:
    """One hook for the option ``progress=`` and for ``file_callback(files done, files)``.

    It is ``None`` if neither wants progress. A bar is closed at the end.
    """
    hooks: list[ProgressHook] = []
    if file_callback is not None:
        hooks.append(_files_hook(file_callback))
    if callable(option):
        hooks.append(option)

    def call_all(progress: ReadProgress, /) -> None:
        for hook in hooks:
            hook(progress)

    with ProgressBar() as bar:
        if option is True:
            hooks.append(bar)
        yield call_all if hooks else None


def _files_hook(callback: Callable[[int, int], object]) -> ProgressHook:
    """Calls ``callback`` once for each file, even if several are done at once."""
    reported = 0

    def hook(progress: ReadProgress, /) -> None:
        nonlocal reported
        while reported < progress.files_done:
            reported += 1
            callback(reported, progress.files_total)

    return hook
