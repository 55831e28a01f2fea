"""``paraload bench --plot``: throughput by workers, and what each worker read when.

Needs matplotlib. No pyplot: that would look for a screen, and keep figures alive.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from paraload._text import counted, printable
from paraload._trace import workers_of
from paraload.cli._bench_arms import AUTO, RAW, TORCH
from paraload.cli._errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from paraload.cli._bench_contest import Entry
    from paraload.cli._bench_result import Result

__all__ = ["check_format", "write_plot"]

_GIB: Final = 1 << 30
_INK, _FAINT, _GRID = "#24292f", "#6e7781", "#e6e8eb"
#: Okabe and Ito's colours, which nearly everybody can tell apart.
_COLOURS: Final = {"threads": "#0072b2", "processes": "#d55e00", "pool": "#009e73"}
_AUTO_COLOUR: Final = "#e69f00"
_MARKERS: Final = {"threads": "o", "processes": "s", "pool": "D"}
#: Of files: soft, and neighbours differ.
_FILE_COLOURS: Final = "Set2"
_WIDTH_IN: Final = 11.0
#: Heights in inches: of the upper half, of a worker's bar, of what is around the bars, of all bars.
_UPPER_IN, _ROW_IN, _AROUND_IN, _MOST_ROWS_IN = 4.6, 0.45, 1.0, 4.5


def check_format(target: str) -> None:
    """Refuse a kind of picture that cannot be drawn.

    Raises:
        UsageError: matplotlib does not know the suffix.
    """
    kind = Path(target).suffix.removeprefix(".")
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise UsageError(f"--plot {target}: name it with one of .{', .'.join(sorted(known))}")


def write_plot(result: Result, target: str) -> None:
    """Draw everything.

    Raises:
        UsageError: the file cannot be written.
    """
    lower_in = _timeline_inches(result)
    figure = Figure(
        figsize=(11, _UPPER_IN + lower_in), dpi=130, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    figure.suptitle(_title(result), x=0.012, ha="left", fontsize=12, color=_INK, parse_math=False)
    halves = figure.subfigures(2, 1, height_ratios=(_UPPER_IN, lower_in))
    upper, lower = cast("Sequence[SubFigure]", halves)
    axes = upper.subplots(1, len(result.states), squeeze=False)[0]
    for ax, state in zip(axes, result.states, strict=True):
        _draw_throughput(ax, result, state)
    handles, labels = axes[0].get_legend_handles_labels()
    upper.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    _draw_timeline(lower.subplots(), result)
    try:
        figure.savefig(target)
    except OSError as error:
        raise UsageError(f"--plot {target}: {error.strerror}") from error


def _timeline_inches(result: Result) -> float:
    rows = 1 if result.shown is None else len(workers_of(result.shown[1].timeline))
    return _AROUND_IN + min(_MOST_ROWS_IN, _ROW_IN * rows)


def _title(result: Result) -> str:
    part, machine = result.plan.part, result.plan.machine
    return (
        f"paraload bench {printable(result.plan.path.name)}: {part.nbytes / _GIB:.2f} GiB in"
        f" {counted(part.files, 'file')}, {counted(machine.cores, 'core')}, {machine.file_system},"
        f" torch {machine.torch}"
    )


def _draw_throughput(ax: Axes, result: Result, state: str) -> None:
    nbytes = result.plan.part.nbytes
    for executor in _COLOURS:
        entries = [entry for entry in result.entries if _is_of(entry, executor, state)]
        if any(entry.arm.executor == executor for entry in entries):
            _draw_line(ax, entries, executor, state, nbytes)
    _draw_auto(ax, result, state)
    _draw_level(ax, RAW, result.raw_s(state), nbytes, colour=_FAINT, style=":")
    _draw_level(ax, TORCH, result.torch_s(state), nbytes, colour=_INK, style="--")
    counts = sorted({count for entry in result.entries if (count := entry.workers(state))})
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(counts))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.set_ylim(0, ax.get_ylim()[1] * 1.04)
    ax.set_title(f"page cache {state}", loc="left", fontsize=10, color=_INK)
    ax.set_xlabel("workers (line: median, band: all rounds)", color=_INK)
    ax.set_ylabel("GiB/s", color=_INK)
    _tidy(ax)
    ax.grid(axis="y", color=_GRID)


def _is_of(entry: Entry, executor: str, state: str) -> bool:
    """One worker is the beginning of every line."""
    return entry.arm.executor in {"sequential", executor} and state in entry.timings()


def _draw_line(ax: Axes, entries: list[Entry], executor: str, state: str, nbytes: int) -> None:
    entries.sort(key=lambda entry: entry.arm.workers or 0)
    workers = [entry.arm.workers or 0 for entry in entries]
    seconds = [entry.timings()[state].seconds for entry in entries]
    medians = [nbytes / entry.timings()[state].median_s / _GIB for entry in entries]
    colour = _COLOURS[executor]
    low = [nbytes / max(all_s) / _GIB for all_s in seconds]
    high = [nbytes / min(all_s) / _GIB for all_s in seconds]
    ax.fill_between(workers, low, high, color=colour, alpha=0.13, linewidth=0)
    marker = _MARKERS[executor]
    label = f"paraload {executor}"
    ax.plot(workers, medians, color=colour, marker=marker, linewidth=2, label=label)


def _draw_auto(ax: Axes, result: Result, state: str) -> None:
    """Paraload by itself: a star at the number of workers that it took; hollow with direct_io."""
    for entry in result.entries:
        workers = entry.workers(state)
        if entry.arm.executor == AUTO and workers is not None and state in entry.timings():
            rate = result.plan.part.nbytes / entry.timings()[state].median_s / _GIB
            ax.plot(
                [workers],
                [rate],
                label=entry.arm.reader,
                linestyle="none",
                marker="*",
                markersize=17,
                markerfacecolor="white" if entry.arm.direct_io else _AUTO_COLOUR,
                markeredgecolor=_AUTO_COLOUR if entry.arm.direct_io else "white",
            )


def _draw_level(
    ax: Axes, label: str, seconds: float | None, nbytes: int, *, colour: str, style: str
) -> None:
    if seconds is not None:
        level = nbytes / seconds / _GIB
        ax.axhline(level, linewidth=1.6, label=label, color=colour, linestyle=style)


def _draw_timeline(ax: Axes, result: Result) -> None:
    _tidy(ax)
    if result.shown is None or result.advice is None:
        ax.set_title("no setting of paraload could be measured", loc="left", fontsize=10)
        return
    state, report = result.shown
    workers = workers_of(report.timeline)
    files = sorted(report.file_timings)
    colours = colormaps[_FILE_COLOURS]
    colour_of = {path: colours(number % colours.N) for number, path in enumerate(files)}
    for row, worker in enumerate(workers):
        spans = [timing for timing in report.timeline if timing.worker == worker]
        ax.broken_barh(
            [(span.started_s * 1e3, (span.ended_s - span.started_s) * 1e3) for span in spans],
            (row - 0.4, 0.8),
            facecolors=[colour_of[span.path] for span in spans],
            edgecolor="white",
            linewidth=0.4,
        )
    ax.set_ylim(len(workers) - 0.5, -0.5)
    ax.set_yticks(range(len(workers)), workers)
    ax.set_xlim(0, report.seconds * 1e3)
    ax.set_xlabel("ms since the load began (a colour is a file)", color=_INK)
    title = f"who reads when: {result.advice.setting}, page cache {state}"
    ax.set_title(title, loc="left", fontsize=10, color=_INK)


def _tidy(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(_FAINT)
    ax.tick_params(color=_FAINT, labelcolor=_INK, labelsize=9)
    ax.set_axisbelow(True)
