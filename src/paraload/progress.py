"""Progress of a load: snapshots for a callable, a bar, or lines in a log.

``progress=True`` shows it on rank 0:

    terminal, Jupyter   a bar of tqdm
    elsewhere           a line every 10 s and one at the end, through logging
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from paraload.report import format_bytes

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["ProgressBar", "ProgressHook", "ReadProgress", "is_quiet_rank", "is_terminal"]

logger = logging.getLogger("paraload")

#: Seconds between two lines where there is no terminal.
_LINE_EVERY_S: Final = 10.0
_BAR_FORMAT: Final = (
    "{desc}: {percentage:3.0f}%|{bar}| {done}/{all} [{elapsed}<{remaining}, {speed}/s{postfix}]"
)
_RANKS: Final = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


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
    """Whether another rank of this job shows the progress."""
    distributed = sys.modules.get("torch.distributed")  # without it there is no process group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() != 0)
    ranks = [text for name in _RANKS if (text := os.environ.get(name))]
    return bool(ranks) and ranks[0] != "0"


def is_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    # None is also what a stub has, or a module that another thread is importing.
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A hook that shows bytes and files on rank 0: as a bar, or as lines without a terminal.

    If they cannot be shown, they are dropped with a warning, and the load goes on.

    Args:
        doing: what is done to the checkpoint, such as ``"loading"``.
    """

    def __init__(self, doing: str = "loading") -> None:
        self._doing = doing
        self._bar: tqdm[Any] | None = None
        self._line_s = 0.0
        self._is_wanted = not is_quiet_rank()
        self._is_drawn = is_terminal(sys.stderr) or is_notebook()

    def __exit__(self, *_: object) -> None:
        with self._dropped_on_error():
            if self._bar is not None:
                self._bar.close()

    def __call__(self, progress: ReadProgress, /) -> None:
        """Show ``progress``."""
        with self._dropped_on_error():
            if self._is_wanted and self._is_drawn:
                self._draw(progress)
            elif self._is_wanted:
                self._write(progress)

    @contextmanager
    def _dropped_on_error(self) -> Generator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the bar must not fail the load
            if self._bar is not None:
                self._bar.disable = True  # otherwise tqdm draws it again when it is collected
            self._bar, self._is_wanted = None, False
            logger.warning("the progress bar stopped: %s: %s", type(error).__name__, error)

    def _draw(self, progress: ReadProgress) -> None:
        if self._bar is None:
            self._bar = _make_bar(self._doing.capitalize(), progress.bytes_total)
        bar = self._bar
        bar.set_postfix_str(f"{progress.files_done}/{progress.files_total} files", refresh=False)
        bar.update(progress.bytes_done - bar.n)
        if progress.items_done == progress.items_total:
            bar.refresh()

    def _write(self, progress: ReadProgress) -> None:
        is_done = progress.items_done == progress.items_total
        if not is_done and progress.seconds - self._line_s < _LINE_EVERY_S:
            return
        self._line_s = progress.seconds
        _write_line(f"{self._doing} checkpoint: {_line(progress)}")


def _line(progress: ReadProgress) -> str:
    """A snapshot in words."""
    done, total = progress.bytes_done, progress.bytes_total
    text = (
        f"{format_bytes(done)} of {format_bytes(total)}"
        f" ({100 * done // total if total else 100}%),"
        f" {progress.files_done} of {progress.files_total} files"
        f" in {progress.seconds:.1f} s ({format_bytes(progress.bytes_per_second)}/s"
    )
    if 0 < done < total:
        text += f", {progress.seconds * (total - done) / done:.0f} s left"
    return f"{text})"


def _write_line(line: str) -> None:
    """Log ``line``; or write it to standard error if the logger does not show such lines.

    By default Python shows warnings alone, but who asks for progress wants to see it.
    """
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info("%s", line)
        return
    with suppress(OSError, ValueError, AttributeError):  # sys.stderr may be None, closed, anything
        sys.stderr.write(f"paraload: {line}\n")
        sys.stderr.flush()


def _make_bar(description: str, bytes_total: int) -> tqdm[Any]:
    # Imported only where a bar is drawn. tqdm.auto would warn if Jupyter has no widgets.
    has_widgets = is_notebook() and importlib.util.find_spec("ipywidgets") is not None
    base: Any = importlib.import_module("tqdm.notebook" if has_widgets else "tqdm").tqdm

    class Bar(base):
        monitor_interval = 0  # the monitor is a thread that would outlive the load

        @property
        def format_dict(self) -> Any:
            """What the format of the bar names; tqdm itself would write "4.00M"."""
            fields = super().format_dict
            rate = fields["rate"] or (
                (fields["n"] - fields["initial"]) / fields["elapsed"] if fields["elapsed"] else 0
            )
            fields["done"] = format_bytes(fields["n"])
            fields["all"] = format_bytes(fields["total"])
            fields["speed"] = format_bytes(rate)
            return fields

    bar: tqdm[Any] = Bar(desc=description, total=bytes_total, bar_format=_BAR_FORMAT)
    return bar


@contextmanager
def progress_hook(
    option: bool | ProgressHook | None,  # noqa: FBT001 - the value of ``progress=``
    file_callback: Callable[[int, int], object] | None,
    *,
    doing: str = "loading",
) -> Iterator[ProgressHook | None]:
    """One hook for the option ``progress=`` and for ``file_callback(files done, files)``.

    It is ``None`` if neither wants progress. A bar is closed at the end. ``doing`` is a word of it.
    """
    hooks: list[ProgressHook] = []
    if file_callback is not None:
        hooks.append(_files_hook(file_callback))
    if callable(option):
        hooks.append(option)

    def call_all(progress: ReadProgress, /) -> None:
        for hook in hooks:
            hook(progress)

    with ProgressBar(doing) as bar:
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
