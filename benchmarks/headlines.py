"""The few figures of the front pages, taken from the parts that ``make bench`` has measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import big, remote, whole
from benchmarks.page import Place

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.results import Section

__all__ = ["PARTS", "PLACE", "table"]

#: Where they stand in a README.
PLACE: Final = Place("headlines", "make bench")
#: The parts that the figures are from.
PARTS: Final = ("big", "whole", "remote")

_ENGLISH: Final = (
    "| load | torch | paraload | |",
    "1.46 GiB of bf16 in 8 files, page cache warm (`read_data`, checksums checked)",
    "50,000 tensors of 4 KiB (whole load)",
    "258 MiB in 8 files over HTTP, 32 MiB/s for each connection (whole load)",
    "Medians on {machine}, printed by `make bench`.",
)
_CHINESE: Final = (
    "| 加载内容 | torch | paraload | |",
    "8 个文件共 1.46 GiB 的 bf16，页缓存已热（`read_data`，校验全部 CRC-32）",  # noqa: RUF001
    "50,000 个 4 KiB 的张量（完整加载）",  # noqa: RUF001
    "通过 HTTP 读取 8 个文件共 258 MiB，每个连接限速 32 MiB/s（完整加载）",  # noqa: RUF001
    "均为中位数，由 `make bench` 在以下机器上测得：{machine}。",  # noqa: RUF001
)


def table(page: Path, sections: Mapping[str, Section], machine: str) -> str:
    """The headlines as Markdown, in the language of the page."""
    head, *labels, source = _CHINESE if page.name.endswith("zh-CN.md") else _ENGLISH
    rows = [
        f"| {label} | {torch_s:.2f} s | {ours_s:.2f} s | **{torch_s / ours_s:.1f}x** |"
        for label, (torch_s, ours_s) in zip(labels, _seconds(sections), strict=True)
    ]
    drawn = "\n".join([head, "|---|---:|---:|---:|", *rows])
    return f"{drawn}\n\n{source.format(machine=machine)}"


def _seconds(sections: Mapping[str, Section]) -> list[tuple[float, float]]:
    """Median seconds of torch and of paraload, in the order of the rows."""
    figures = [
        (sections["big"].figures["8 files"], big.HEADLINE),
        (sections["whole"].figures, whole.HEADLINE),
        (sections["remote"].figures["rated, 8"], remote.HEADLINE),
    ]
    return [
        (timings[stock]["median_s"], timings[ours]["median_s"])
        for timings, (stock, ours) in figures
    ]
