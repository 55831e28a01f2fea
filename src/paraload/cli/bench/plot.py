"""``paraload bench --plot``: throughput by workers, and what each worker read when.

Needs matplotlib, but not pyplot, which would look for a display and keep figures alive.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from paraload._text import counted, printable
from paraload.cli._arguments import UsageError
from paraload.cli._output import file_errors
from paraload.cli.bench.advice import AUTO
from paraload.cli.bench.show import title_of
from paraload.report import format_bytes
from paraload.report.trace import workers_of

if TYPE_CHECKING:
    from paraload.cli.bench.measure import Bench

#: Names may contain any character, even "$".
_STYLE: Final[Any] = {"axes.axisbelow": True, "grid.alpha": 0.4, "text.parse_math": False}


def check_format(target: str) -> None:
    known = FigureCanvasBase.get_supported_filetypes()
    if Path(target).suffix.removeprefix(".") not in known:
        raise UsageError(f"--plot {target}: name it with one of .{', .'.join(sorted(known))}")


def write_plot(bench: Bench, target: str) -> None:
    machine, states = bench.machine, list(bench.states)
    with rc_context(_STYLE):
        figure = Figure(figsize=(11, 8), dpi=130, layout="constrained")
        figure.suptitle(
            f"paraload bench {printable(Path(bench.subject.name).name)}:"
            f" {format_bytes(bench.case.nbytes)} in {counted(bench.part['files'], 'file')},"
            f" {counted(machine['cores'], 'core')}, {machine['file_system']},"
            f" torch {machine['torch']}"
        )
        axes: dict[str, Axes] = figure.subplot_mosaic([[*states], ["reads"] * len(states)])
        for state in states:
            _draw_throughput(axes[state], bench, state)
        _draw_timeline(axes["reads"], bench)
        with file_errors("--plot", target):
            figure.savefig(target)


def _draw_throughput(ax: Axes, bench: Bench, state: str) -> None:
    ax.set_title(title_of(state))
    gib = bench.case.nbytes / (1 << 30)
    arms = {arm: arm.seconds[state] for arm in bench.arms if state in arm.seconds}
    swept = dict.fromkeys(arm.executor for arm in arms if arm.executor not in {None, AUTO})
    for executor in [name for name in swept if name != "sequential"] or swept:
        # Every line starts with one worker.
        line = {
            arm.workers() or 1: runs
            for arm, runs in arms.items()
            if arm.executor in {"sequential", executor}
        }
        medians = [gib / median(runs) for runs in line.values()]
        ax.plot(list(line), medians, "o-", label=f"paraload {executor}")
        slowest, fastest = ([gib / end(runs) for runs in line.values()] for end in (max, min))
        ax.fill_between(list(line), slowest, fastest, alpha=0.13)
    for arm, runs in arms.items():
        if arm.executor == AUTO:
            at = arm.workers(state) or 1
            ax.plot(at, gib / median(runs), "*", markersize=15, label=arm.reader)
        elif arm.executor is None:
            ax.axhline(gib / median(runs), color="black", linestyle="--", label=arm.reader)
    counts = sorted({arm.workers(state) or 1 for arm in arms})
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.set_ylim(bottom=0)
    ax.grid(axis="y")
    ax.set_xlabel("workers (line: median, band: all rounds)")
    ax.set_ylabel("GiB/s")
    if arms:
        ax.legend(fontsize="small", framealpha=0.6)


def _draw_timeline(ax: Axes, bench: Bench) -> None:
    if bench.shown is None or bench.advice is None:
        ax.set_title("no setting of paraload could be measured")
        return
    state, report = bench.shown
    workers, files = workers_of(report.timeline), sorted(report.file_timings)
    for row, worker in enumerate(workers):
        tasks = [task for task in report.timeline if task.worker == worker]
        ax.broken_barh(
            [(task.started_s * 1e3, (task.ended_s - task.started_s) * 1e3) for task in tasks],
            (row - 0.4, 0.8),
            facecolors=[f"C{files.index(task.path) % 10}" for task in tasks],
            alpha=0.7,
            edgecolor="white",
        )
    ax.set_yticks(range(len(workers)), workers)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel("ms since the load began (a colour is a file)")
    ax.set_title(f"who reads when: {bench.advice.setting}, {title_of(state)}")
