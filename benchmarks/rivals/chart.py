"""The picture: a bar for each reader, ours in colour, the raw limit as a line."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.rivals.contestants import RAW, Side
from benchmarks.rivals.report import fastest_first

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.rivals.contest import Result
    from benchmarks.rivals.contestants import Contestant

__all__ = ["draw"]

_COLOURS: Final = {Side.OURS: "#e4572e", Side.RIVAL: "#b4b9c1", Side.LIMIT: "#5b6470"}
_TEXT: Final = "#2b2f36"
_FAINT: Final = "#7a818c"
_ROW_INCHES: Final = 0.29
_DOTS_PER_INCH: Final = 110
#: Enough for three colours, black, and their smoothed edges; a third of the bytes.
_PALETTE: Final = 64
_NOTE: Final = (
    "Orange: paraload. Only “paraload threads” and “raw limit + CRC-32” check every byte."
)


def draw(target: Path, results: Sequence[Result], contestants: Sequence[Contestant]) -> None:
    """Write a PNG with one panel for each result, side by side."""
    rows = max(len(result.timings) for result in results)
    size = (6.6 * len(results), 1.7 + _ROW_INCHES * rows)
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        _panel(axes, result, contestants)
    figure.supxlabel(_NOTE, fontsize=9, color=_TEXT)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(_PALETTE).save(target, format="PNG", optimize=True)


def _panel(axes: Axes, result: Result, contestants: Sequence[Contestant]) -> None:
    shown = [c for c in fastest_first(result, contestants) if c.name != RAW]
    rates = [result.gib_per_s(contestant.name) for contestant in shown]
    limit = result.gib_per_s(RAW)
    room = max(*rates, limit) * 1.12
    axes.barh(range(len(shown)), rates, height=0.72, color=[_COLOURS[c.side] for c in shown])
    for row, (contestant, rate) in enumerate(zip(shown, rates, strict=True)):
        _label(axes, row, rate, room, contestant.side)
    axes.axvline(limit, color=_COLOURS[Side.LIMIT], linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
    line = f"raw limit, 2 threads: {limit:.1f}"
    axes.text(limit, -0.75, line, ha="center", color=_COLOURS[Side.LIMIT], fontsize=9)
    _dress(axes, shown, room)
    axes.set_title(result.title, loc="left", fontsize=11, color=_TEXT, pad=16)


def _label(axes: Axes, row: int, rate: float, room: float, side: Side) -> None:
    """The figure, inside of the bar if it is long enough."""
    is_inside = rate > room / 8
    axes.text(
        rate + room * (-0.01 if is_inside else 0.01),
        row,
        f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}",
        horizontalalignment="right" if is_inside else "left",
        verticalalignment="center",
        color=_TEXT if side is Side.RIVAL or not is_inside else "white",
        fontsize=9,
        fontweight="normal" if side is Side.RIVAL else "bold",
    )


def _dress(axes: Axes, shown: Sequence[Contestant], room: float) -> None:
    axes.set_yticks(range(len(shown)), [contestant.name for contestant in shown], fontsize=9)
    for label, contestant in zip(axes.get_yticklabels(), shown, strict=True):
        ours = contestant.side is Side.OURS
        label.set_color(_COLOURS[Side.OURS] if ours else _TEXT)
        label.set_fontweight("bold" if ours else "normal")
    axes.set_ylim(len(shown) - 0.3, -0.7)  # the fastest on top
    axes.set_xlim(0, room)
    axes.set_xlabel(
        "GiB/s into given CPU tensors, median; longer is faster", color=_FAINT, fontsize=9
    )
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=8, labelcolor=_FAINT)
    axes.xaxis.grid(visible=True, color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d0d4da")
