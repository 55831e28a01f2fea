"""``paraload bench --plot``: throughput by workers, and what each worker read when.

Needs matplotlib. No pyplot: that would look for a screen, and keep figures alive.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from matplotlib import colormaps, rc_context
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

    from paraload.cli._bench_result import Result

__all__ = ["check_format", "write_plot"]

_GIB: Final = 1 << 30
_INK, _FAINT, _GRID = "#24292f", "#6e7781", "#e6e8eb"
_STYLE: Final[Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "grid.color": _GRID,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "text.parse_math": False,  # names hold any character
    "xtick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "xtick.labelsize": 9,
    "ytick.color": _FAINT,
    "ytick.labelcolor": _INK,
    "ytick.labelsize": 9,
}
#: Colours of Okabe and Ito, which colour-blind people can tell apart.
_EXECUTORS: Final = {
    "threads": {"color": "#0072b2", "marker": "o"},
    "processes": {"color": "#d55e00", "marker": "s"},
    "pool": {"color": "#009e73", "marker": "D"},
}
_AUTO_COLOUR: Final = "#e69f00"
#: For files: soft, and neighbours differ.
_FILE_COLOURS: Final = "Set2"
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
    rows = 1 if result.shown is None else len(workers_of(result.shown[1].timeline))
    heights = (_UPPER_IN, _AROUND_IN + min(_MOST_ROWS_IN, _ROW_IN * rows))
    with rc_context(_STYLE):
        figure = Figure(figsize=(11, sum(heights)), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
        figure.suptitle(_title(result), x=0.012, ha="left", fontsize=12, color=_INK)
        halves = figure.subfigures(2, 1, height_ratios=heights)
        upper, lower = cast("Sequence[SubFigure]", halves)
        axes = upper.subplots(1, len(result.states), squeeze=False)[0]
        for ax, state in zip(axes, result.states, strict=True):
            _draw_throughput(ax, result, state)
        handles, labels = axes[0].get_legend_handles_labels()
        upper.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        _draw_timeline(lower.subplots(), result)
        try:
            figure.savefig(target)
        except OSError as error:
            raise UsageError(f"--plot {target}: {error.strerror}") from error


def _title(result: Result) -> str:
    part, machine = result.plan.part, result.plan.machine
    return (
        f"paraload bench {printable(result.plan.path.name)}: {part.nbytes / _GIB:.2f} GiB in"
        f" {counted(part.files, 'file')}, {counted(machine.cores, 'core')}, {machine.file_system},"
        f" torch {machine.torch}"
    )


def _draw_throughput(ax: Axes, result: Result, state: str) -> None:
    gib = result.plan.part.nbytes / _GIB
    for executor, look in _EXECUTORS.items():
        if any(arm.executor == executor and state in arm.timings for arm in result.plan.arms):
            _draw_line(ax, result, executor, state, look)
    for arm in result.plan.arms:
        if arm.executor == AUTO and state in arm.timings:
            colours = ("white", _AUTO_COLOUR) if arm.direct_io else (_AUTO_COLOUR, "white")
            ax.plot(
                [arm.workers(state) or 0],
                [gib / arm.timings[state].median_s],
                label=arm.reader,
                linestyle="none",
                marker="*",
                markersize=17,
                markerfacecolor=colours[0],
                markeredgecolor=colours[1],
            )
    for label, colour, style in (
        (RAW, _FAINT, ":"),
        (TORCH, _INK, "--"),
    ):
        if (seconds := result.best_s(label, state)) is not None:
            ax.axhline(gib / seconds, label=label, color=colour, linestyle=style, linewidth=1.6)
    counts = sorted({count for arm in result.plan.arms if (count := arm.workers(state))})
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(counts))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.set_ylim(0, ax.get_ylim()[1] * 1.04)
    ax.set_title(f"page cache {state}")
    ax.set_xlabel("workers (line: median, band: all rounds)")
    ax.set_ylabel("GiB/s")
    ax.grid(axis="y")


def _draw_line(ax: Axes, result: Result, executor: str, state: str, look: dict[str, str]) -> None:
    gib = result.plan.part.nbytes / _GIB
    # One worker is the beginning of every line.
    timings = {
        arm.workers() or 0: arm.timings[state]
        for arm in result.plan.arms
        if arm.executor in {"sequential", executor} and state in arm.timings
    }
    workers = sorted(timings)
    low = [gib / max(timings[count].seconds) for count in workers]
    high = [gib / min(timings[count].seconds) for count in workers]
    ax.fill_between(workers, low, high, color=look["color"], alpha=0.13, linewidth=0)
    medians = [gib / timings[count].median_s for count in workers]
    ax.plot(workers, medians, label=f"paraload {executor}", **look)  # type: ignore[arg-type]


def _draw_timeline(ax: Axes, result: Result) -> None:
    if result.shown is None or result.advice is None:
        ax.set_title("no setting of paraload could be measured")
        return
    state, report = result.shown
    workers = workers_of(report.timeline)
    colours = colormaps[_FILE_COLOURS]
    files = enumerate(sorted(report.file_timings))
    colour_of = {path: colours(number % colours.N) for number, path in files}
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
    ax.set_xlabel("ms since the load began (a colour is a file)")
    ax.set_title(f"who reads when: {result.advice.setting}, page cache {state}")
