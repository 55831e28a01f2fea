"""What ``paraload bench`` prints: what it is going to do, the tables, the recommendation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from paraload._text import counted
from paraload.cli._bench_arms import AUTO, RAW, TORCH
from paraload.cli._output import Table, say, show_tables
from paraload.report import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paraload.cli._bench_advice import Advice
    from paraload.cli._bench_result import Part, Plan, Result

__all__ = ["show_plan", "show_result"]

_GIB: Final = 1 << 30
_NOTHING: Final = "-"
#: Such a part is read before the workers of some arms have started.
_LITTLE_BYTES: Final = 64 << 20


def show_plan(plan: Plan) -> None:
    """Say what is going to happen, before it takes its time."""
    machine = plan.machine
    say(
        f"""\
paraload bench {plan.path}
  reads    {_part_text(plan.part)}
  times    read_data into tensors that are ready; not planning, not .metadata
  arms     {len(plan.arms)}, in turn, {counted(plan.rounds, "round")}: torch's FileSystemReader,\
 paraload,
           and the raw limit: preadv of as many bytes, and nothing else
  machine  {counted(machine.cores, "core")}, {format_bytes(machine.free_memory_bytes)} free,\
 {machine.file_system or "unknown file system"}, torch {machine.torch},\
 paraload {machine.paraload}"""
    )


def _part_text(part: Part) -> str:
    size, files = format_bytes(part.nbytes), counted(part.files, "file")
    objects = f" and {counted(part.objects, 'object')}" if part.objects else ""
    what = counted(part.tensors, "tensor") + objects
    if part.nbytes == part.whole_bytes:
        return f"{size}, all of it: {what} in {files}"
    limit = f"--limit-bytes is {format_bytes(part.limit_bytes)}"
    return f"""{size} of {format_bytes(part.whole_bytes)} ({limit}):
           {what}, the first ones in each of {files}"""


def show_result(result: Result) -> None:
    """Print everything that was found."""
    if any(arm.timings for arm in result.plan.arms):
        say()
        speeds = [_speed_table(result, state) for state in result.states]
        show_tables([*speeds, _cost_table(result)])
    failures = [f"{arm.name}: {arm.error}" for arm in result.failed]
    for title, lines in (("notes", list(_notes(result))), ("failed", failures)):
        if lines:
            say("\n".join([f"\n{title}:", *(f"  {line}" for line in lines)]))
    say("\n" + "\n".join(_advice_lines(result)))


def _speed_table(result: Result, state: str) -> Table:
    torch_s, raw_s = result.best_s(TORCH, state), result.best_s(RAW, state)
    rows = []
    for arm in result.plan.arms:
        cells = [_NOTHING if arm.error is None else "failed", *[_NOTHING] * 4]
        if (timing := arm.timings.get(state)) is not None:
            cells = [
                f"{result.plan.part.nbytes / timing.median_s / _GIB:.2f}",
                f"{timing.median_s:.3f}",
                timing.spread,
                _NOTHING if torch_s is None else f"{torch_s / timing.median_s:.2f}",
                _NOTHING if raw_s is None else f"{raw_s / timing.median_s:.0%}",
            ]
        rows.append([arm.reader, str(arm.workers(state) or _NOTHING), *cells])
    return Table(
        title=f"page cache {state}, medians of {counted(result.plan.rounds, 'round')}",
        head=("reader", "workers", "GiB/s", "seconds", "min..max", "x torch", "of raw"),
        rows=rows,
        numeric=frozenset(range(1, 7)),
    )


def _cost_table(result: Result) -> Table:
    needed = result.plan.part.nbytes
    rows = []
    for arm in result.plan.arms:
        peak, read = arm.peak_bytes, arm.bytes_read
        cells = [_NOTHING if nbytes is None else format_bytes(nbytes) for nbytes in (peak, read)]
        by_needed = f"{read / needed:.4f}" if read is not None and needed else _NOTHING
        rows.append([arm.reader, str(arm.workers() or _NOTHING), *cells, by_needed])
    return Table(
        title=f"memory above the tensors, and bytes read for {format_bytes(needed)} needed",
        head=("reader", "workers", "peak memory", "read", "by needed"),
        rows=rows,
        numeric=frozenset(range(1, 5)),
    )


def _notes(result: Result) -> Iterator[str]:
    yield from (f"{state}: {how}" for state, how in result.states.items())
    if result.not_cold:
        yield f"not measured cold: {result.not_cold}"
    if (nbytes := result.plan.part.nbytes) < _LITTLE_BYTES:
        yield f"{format_bytes(nbytes)} are little: this compares start-up more than reading"
    yield from result.notes


def _advice_lines(result: Result) -> list[str]:
    advice = result.advice
    if advice is None:
        return ["no recommendation: no setting of paraload could be measured"]
    path = repr(os.fspath(result.plan.path))
    speedups = _speedups(advice)
    if advice.torch_is_faster:
        closest = f"of paraload's settings {advice.setting} came closest ({speedups})"
        return [
            f"recommended: torch's own reader, which is faster here; {closest}",
            *_code(f"FileSystemReader({path})"),
        ]
    executor, workers, direct_io = advice.setting
    reason = "the fastest" if advice.is_fastest else "as fast as any, and the simplest"
    if executor == AUTO:
        what = "direct_io=True" if direct_io else "set nothing"
        first = f"recommended: {what}; {advice.setting} is {reason}"
        arguments = ", direct_io=True" * direct_io
        variables = "PARALOAD_DIRECT_IO=1" * direct_io
    else:
        first = f"recommended: {advice.setting}, {reason}"
        arguments = f", executor={executor!r}, max_workers={workers}"
        variables = f"PARALOAD_EXECUTOR={executor} PARALOAD_MAX_WORKERS={workers}"
    lines = [first, *([f"  {speedups}"] if speedups else [])]
    return lines + _code(f"ParallelFileSystemReader({path}{arguments})", variables)


def _code(reader: str, variables: str = "") -> list[str]:
    lines = ["", f"    dcp.load(state_dict, storage_reader={reader})"]
    if variables:
        lines += ["", "  or, for programs that pass no options:", "", f"    export {variables}"]
    return lines


def _speedups(advice: Advice) -> str:
    return ", ".join(
        f"{ratio:.2f} times " + ("" if number else "the speed of torch's reader ") + state
        for number, (state, ratio) in enumerate(advice.speedups.items())
    )
