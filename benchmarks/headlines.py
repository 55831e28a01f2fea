"""The few figures of pages for users, taken from the parts that ``make bench`` has measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import big, remote, whole
from benchmarks.page import Place, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.results import Section

__all__ = ["page", "parts_of", "rewrite"]

_HEADLINES: Final = Place("headlines", "make bench")
_REMOTE: Final = Place("remote", "make bench")
#: The parts that each is from.
_PARTS: Final = {_HEADLINES: ("big", "whole", "remote"), _REMOTE: ("remote",)}

_ENGLISH: Final = (
    "| load | torch | paraload | speed-up |",
    "1.46 GiB of bf16 in 8 files, page cache warm (`read_data`, checksums checked)",
    "50,000 tensors of 4 KiB (whole load)",
    "258 MiB in 8 files over HTTP, 32 MiB/s for each connection (whole load)",
    "Medians, printed by `make bench` on {machine}.",
)
_CHINESE: Final = (
    "| 加载内容 | torch | paraload | 加速比 |",
    "1.46 GiB 的 bf16 张量，分为 8 个文件，页缓存已预热（`read_data`，启用校验）",  # noqa: RUF001
    "50,000 个 4 KiB 的张量（完整加载）",  # noqa: RUF001
    "258 MiB，分为 8 个文件，经 HTTP 读取，每个连接限速 32 MiB/s（完整加载）",  # noqa: RUF001
    "以上均为中位数，由 `make bench` 输出；测试机器：{machine}。",  # noqa: RUF001
)

_PRINTED: Final = "Printed by `make bench`; {machine}."
_PRINTED_CHINESE: Final = "由 `make bench` 输出；测试机器：{machine}。"  # noqa: RUF001


def page(text: str) -> Path:
    """The value of ``--front``: looked at before minutes of measuring, not after them."""
    found = Path(text)
    try:
        places = _places(found)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not places:
        raise argparse.ArgumentTypeError(f"{found} has no place for figures")
    return found


def parts_of(page: Path) -> set[str]:
    """The parts of the benchmark that the figures of a page are from."""
    return {part for place in _places(page) for part in _PARTS[place]}


def rewrite(page: Path, sections: Mapping[str, Section], machine: str) -> None:
    """Put the figures into the places of a page, in its language."""
    is_chinese = page.name.endswith("zh-CN.md")
    if is_chinese:
        machine = machine.replace(" cores, ", " 核，").replace(", ", "，")  # noqa: RUF001
    for place in _places(page):
        if place is _HEADLINES:
            content = _headlines(_CHINESE if is_chinese else _ENGLISH, sections, machine)
        else:
            table = sections["remote"].tables[0]
            printed = _PRINTED_CHINESE if is_chinese else _PRINTED
            content = f"{rows_of(table)}\n\n{printed.format(machine=machine)}"
        place.rewrite(page, content)


def _places(page: Path) -> list[Place]:
    text = page.read_text(encoding="utf-8")
    found = [place for place in _PARTS if place.begin in text]
    for place in found:
        place.require_in(page)
    return found


def _headlines(texts: tuple[str, ...], sections: Mapping[str, Section], machine: str) -> str:
    head, *labels, source = texts
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
