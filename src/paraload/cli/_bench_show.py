"""What ``paraload bench`` prints: what it is going to do, the tables, the recommendation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from paraload._text import counted
from paraload.cli._bench_arms import AUTO
from paraload.cli._output import Table, say, show_tables
from paraload.report import format_bytes

if TYPE_CHECKING:
    from paraload.cli._bench_advice import Advice
    from paraload.cli._bench_contest import Entry
    from paraload.cli._bench_result import Part, Plan, Result

__all__ = ["show_plan", "show_result"]

_GIB: Final = 1 << 30
_NOTHING: Final = "-"
_ARMS: Final = """torch's FileSystemReader, paraload,
           and the raw limit: preadv of the same bytes and nothing else"""
#: Less is read before the workers of some arms have started.
_LITTLE_BYTES: Final = 64 << 20


def show_plan(plan: Plan) -> None:
    """Say what is going to happen, before it takes its time."""
    machine = plan.machine
    say(f"paraload bench {plan.path}")
    say(f"  reads    {_part_text(plan.part)}")
    say("  times    read_data into tensors that are ready; not planning, not .metadata")
    say(f"  arms     {plan.arms}, in turn, {counted(plan.rounds, 'round')}: {_ARMS}")
    say(
        f"  machine  {counted(machine.cores, 'core')}, {format_bytes(machine.free_memory_bytes)}"
        f" free, {machine.file_system or 'unknown file system'}, torch {machine.torch},"
        f" paraload {machine.paraload}"
    )


def _part_text(part: Part) -> str:
    size = format_bytes(part.nbytes)
    what = counted(part.tensors, "tensor")
    if part.objects:
        what += f" and {counted(part.objects, 'object')}"
    files = counted(part.files, "file")
    if part.nbytes == part.whole_bytes:
        return f"{size}, all of it: {what} in {files}"
    limit = f"--limit-bytes is {format_bytes(part.limit_bytes)}"
    return f"""{size} of {format_bytes(part.whole_bytes)} ({limit}):
           {what}, the first ones in each of {files}"""


def show_result(result: Result) -> None:
    """Print everything that was found out."""
    say()
    show_tables([*(_speed_table(result, state) for state in result.states), _cost_table(result)])
    for title, lines in (("notes", _notes(result)), ("failed", _failures(result))):
        if lines:
            say(f"\n{title}:")
            say("\n".join(f"  {line}" for line in lines))
    say()
    say("\n".join(_advice_lines(result)))


def _speed_table(result: Result, state: str) -> Table:
    return Table(
        title=f"page cache {state}, medians of {counted(result.plan.rounds, 'round')}",
        head=("reader", "workers", "GiB/s", "seconds", "min..max", "x torch", "of raw"),
        rows=[_speed_row(result, entry, state) for entry in result.entries],
        numeric=frozenset(range(1, 7)),
    )


def _speed_row(result: Result, entry: Entry, state: str) -> tuple[str, ...]:
    start = (entry.arm.reader, str(entry.workers(state) or _NOTHING))
    timing = entry.timings().get(state)
    if timing is None:
        return (*start, "failed", *[_NOTHING] * 4)
    torch_s, raw_s = result.torch_s(state), result.raw_s(state)
    return (
        *start,
        f"{result.plan.part.nbytes / timing.median_s / _GIB:.2f}",
        f"{timing.median_s:.3f}",
        timing.spread,
        _NOTHING if torch_s is None else f"{torch_s / timing.median_s:.2f}",
        _NOTHING if raw_s is None else f"{raw_s / timing.median_s:.0%}",
    )


def _cost_table(result: Result) -> Table:
    needed_bytes = result.plan.part.nbytes
    return Table(
        title=f"memory above the tensors, and bytes read for {format_bytes(needed_bytes)} needed",
        head=("reader", "workers", "peak memory", "read", "by needed"),
        rows=[_cost_row(entry, needed_bytes) for entry in result.entries],
        numeric=frozenset(range(1, 5)),
    )


def _cost_row(entry: Entry, needed_bytes: int) -> tuple[str, ...]:
    peak_bytes, read_bytes = entry.peak_bytes, entry.bytes_read
    is_known = read_bytes is not None and needed_bytes > 0
    return (
        entry.arm.reader,
        str(entry.workers() or _NOTHING),
        _NOTHING if peak_bytes is None else format_bytes(peak_bytes),
        _NOTHING if read_bytes is None else format_bytes(read_bytes),
        f"{(read_bytes or 0) / needed_bytes:.4f}" if is_known else _NOTHING,
    )


def _notes(result: Result) -> list[str]:
    notes = [f"{state}: {how}" for state, how in result.states.items()]
    if result.not_cold:
        notes.append(f"not measured cold: {result.not_cold}")
    if result.plan.part.nbytes < _LITTLE_BYTES:
        size = format_bytes(result.plan.part.nbytes)
        notes.append(f"{size} are little: this compares start-up more than reading")
    return [*notes, *result.notes]


def _failures(result: Result) -> list[str]:
    return [f"{entry.arm.name}: {entry.error}" for entry in result.failed]


def _advice_lines(result: Result) -> list[str]:
    advice = result.advice
    if advice is None:
        return ["no recommendation: no setting of paraload could be measured"]
    path = os.fspath(result.plan.path)
    if advice.torch_is_faster:
        closest = f"of paraload's settings {advice.setting} came closest ({_speedups(advice)})"
        return [
            f"recommended: torch's own reader, which is faster here; {closest}",
            "",
            f"    dcp.load(state_dict, storage_reader=FileSystemReader({path!r}))",
        ]
    reason = "the fastest" if advice.is_fastest else "as fast as any, and the simplest"
    told = [f"  {_speedups(advice)}"] if advice.speedups else []
    executor, workers, direct_io = advice.setting
    if executor == AUTO and direct_io:
        return [
            f"recommended: direct_io=True; {advice.setting} is {reason}",
            *told,
            *_as_code(f"{path!r}, direct_io=True", "PARALOAD_DIRECT_IO=1"),
        ]
    if executor == AUTO:
        return [
            f"recommended: set nothing; {advice.setting} is {reason}",
            *told,
            "",
            f"    dcp.load(state_dict, storage_reader=ParallelFileSystemReader({path!r}))",
        ]
    arguments = f"{path!r}, executor={executor!r}, max_workers={workers}"
    return [
        f"recommended: {advice.setting}, {reason}",
        *told,
        *_as_code(arguments, f"PARALOAD_EXECUTOR={executor} PARALOAD_MAX_WORKERS={workers}"),
    ]


def _as_code(arguments: str, variables: str) -> list[str]:
    return [
        "",
        f"    dcp.load(state_dict, storage_reader=ParallelFileSystemReader({arguments}))",
        "",
        "  or, for programs that pass no options:",
        "",
        f"    export {variables}",
    ]


def _speedups(advice: Advice) -> str:
    (first, ratio), *others = advice.speedups.items()
    told = f"{ratio:.2f} times the speed of torch's reader {first}"
    return told + "".join(f", {ratio:.2f} times {state}" for state, ratio in others)
