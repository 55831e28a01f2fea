"""What ``paraload bench`` prints: plan, tables and recommendation, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from paraload._text import counted
from paraload.cli._output import Table, say, show_tables
from paraload.cli.bench.advice import AUTO
from paraload.cli.bench.measure import REMOTE
from paraload.report import format_bytes

if TYPE_CHECKING:
    from paraload.cli.bench.measure import Arm, Bench

_GIB: Final = 1 << 30
_NOTHING: Final = "-"
#: Fewer bytes are read before the workers of some arms have started.
_LITTLE_BYTES: Final = 64 << 20
#: Less than this is the system itself.
_BUSY_CORES: Final = 0.2


def show_plan(bench: Bench) -> None:
    """Print what is going to be measured."""
    part, machine = bench.part, bench.machine
    whole, limit = format_bytes(part["whole_bytes"]), format_bytes(part["limit_bytes"])
    is_whole = part["nbytes"] == part["whole_bytes"]
    much = ", all of it" if is_whole else f" of {whole} (--limit-bytes is {limit})"
    torch = f"torch's {name}, " if (name := bench.subject.torch_reader) else ""
    objects = f" and {counted(part['objects'], 'object')}" if part["objects"] else ""
    say(
        f"paraload bench {bench.subject.name}\n"
        f"  reads    {format_bytes(part['nbytes'])}{much}:"
        f" {counted(part['tensors'], 'tensor')}{objects} in {counted(part['files'], 'file')}\n"
        "  times    read_data into tensors that are ready; not planning, not .metadata\n"
        f"  arms     {len(bench.arms)}, in turn, {counted(bench.rounds, 'round')}:"
        f" {torch}paraload with each setting\n"
        f"  machine  {counted(machine['cores'], 'core')},"
        f" {format_bytes(machine['free_memory_bytes'])} free,"
        f" {machine['file_system'] or 'unknown file system'}, torch {machine['torch']} with"
        f" {counted(machine['torch_threads'], 'thread')}, paraload {machine['paraload']}"
    )


def show_result(bench: Bench) -> None:
    if any(arm.seconds for arm in bench.arms):
        say()
        show_tables(*(_table(bench, state) for state in bench.states))
    failed = [f"{arm.name}: {arm.error}" for arm in bench.arms if arm.error is not None]
    for title, lines in (("notes", [*_notes(bench), *_surprises(bench)]), ("failed", failed)):
        if lines:
            say("\n".join([f"\n{title}:", *(f"  {line}" for line in lines)]))
    say("\n" + "\n".join(_advice_lines(bench)))


def _table(bench: Bench, state: str) -> Table:
    torch_runs = bench.torch_seconds.get(state)
    rows = []
    for arm in bench.arms:
        cells = [_NOTHING if arm.error is None else "failed", *[_NOTHING] * 3]
        if runs := arm.seconds.get(state):
            cells = [
                f"{bench.case.nbytes / median(runs) / _GIB:.2f}",
                f"{median(runs):.3f}",
                f"{min(runs):.3f}..{max(runs):.3f}",
                f"{median(torch_runs) / median(runs):.2f}" if torch_runs else _NOTHING,
            ]
        rows.append([arm.reader, str(arm.workers(state) or _NOTHING), *cells])
    return Table(
        title=f"{title_of(state)}, medians of {counted(bench.rounds, 'round')}",
        head=("reader", "workers", "GiB/s", "seconds", "min..max", "x torch"),
        rows=rows,
        numeric=frozenset(range(1, 6)),
    )


def title_of(state: str) -> str:
    return "from the server" if state == REMOTE else f"page cache {state}"


def _notes(bench: Bench) -> Iterator[str]:
    yield from (f"{state}: {how}" for state, how in bench.states.items())
    if bench.not_cold:
        yield f"not measured cold: {bench.not_cold}"
    if bench.subject.not_torch:
        yield f"torch's reader is not measured: {bench.subject.not_torch}"
    if bench.others_cores >= _BUSY_CORES:
        yield (
            f"other programs kept {bench.others_cores:.1f} of {bench.machine['cores']} cores busy:"
            " run this again on a quiet machine"
        )
    if bench.subject.make_torch is not None:
        yield (
            f"torch's reader copies with {counted(bench.machine['torch_threads'], 'thread')}:"
            " set OMP_NUM_THREADS as your job does (torchrun sets it to 1)"
        )
    if (nbytes := bench.case.nbytes) < _LITTLE_BYTES:
        yield f"{format_bytes(nbytes)} are little: this compares start-up more than reading"


def _surprises(bench: Bench) -> list[str]:
    """Everything that did not run as asked, each once."""
    found: list[str] = []
    for arm in bench.arms:
        for report in arm.reports.values():
            ran = report.executor, report.workers
            if arm.asked_workers and ran != (arm.executor, arm.asked_workers):
                found.append(f"{arm.name}: ran as {ran[0]} with {ran[1]}")
            found += [f"slow path: {why} ({n})" for why, n in report.fallbacks.items()]
            found += [f"CRC-32 not checked: {why} ({n})" for why, n in report.unverified.items()]
    return list(dict.fromkeys(found))


def _advice_lines(bench: Bench) -> list[str]:
    if (advice := bench.advice) is None:
        return ["no recommendation: no setting of paraload could be measured"]
    subject, setting = bench.subject, advice.setting
    speedups = ", ".join(
        f"{ratio:.2f} times the speed of torch's reader" + f" {state}" * (state != REMOTE)
        for state, ratio in advice.speedups.items()
    )
    if advice.torch_is_faster:
        closest = f"of paraload's settings {setting} came closest ({speedups})"
        return [
            f"recommended: torch's own reader, which is faster here; {closest}",
            f"\n    dcp.load(state_dict, storage_reader={subject.torch_reader}({subject.name!r}))",
        ]
    reason = "the fastest" if advice.is_fastest else "as fast as any, and the simplest"
    if setting.executor != AUTO:
        first = f"recommended: {setting}, {reason}"
        arguments = f", executor={setting.executor!r}, max_workers={setting.workers}"
        variables = f"PARALOAD_EXECUTOR={setting.executor} PARALOAD_MAX_WORKERS={setting.workers}"
    else:
        what = "direct_io=True" if setting.direct_io else "set nothing"
        first = f"recommended: {what}; {setting} is {reason}"
        arguments = ", direct_io=True" * setting.direct_io
        variables = "PARALOAD_DIRECT_IO=1" * setting.direct_io
    if subject.storage:
        values = ", ".join(f"{name!r}: ..." for name in subject.storage)
        arguments += f", storage_options={{{values}}}"
    reader = f"{subject.reader}({subject.name!r}{arguments})"
    lines = [first, *([f"  {speedups}"] if speedups else [])]
    lines += [f"\n    dcp.load(state_dict, storage_reader={reader})"]
    if variables:
        lines += ["\n  or, for programs that pass no options:", f"\n    export {variables}"]
    return lines


def to_dict(bench: Bench) -> dict[str, Any]:
    recommended = None
    if (advice := bench.advice) is not None:
        executor, workers, direct_io = advice.setting
        recommended = {
            "executor": executor,
            "direct_io": direct_io,
            "max_workers": None if executor == AUTO else workers,
            "speedup_over_torch": advice.speedups,
            "torch_is_faster": advice.torch_is_faster,
        }
    same = ("machine", "part", "rounds", "states", "not_cold", "others_cores")
    return {
        "ok": all(arm.error is None for arm in bench.arms),
        "path": bench.subject.name,
        **{name: getattr(bench, name) for name in same},
        "arms": [_arm_dict(arm, bench.case.nbytes) for arm in bench.arms],
        "notes": _surprises(bench),
        "recommended": recommended,
    }


def _arm_dict(arm: Arm, nbytes: int) -> dict[str, Any]:
    timings = {
        state: {
            "median_s": median(runs),
            "seconds": runs,
            "bytes_per_second": nbytes / median(runs),
            "workers": arm.workers(state),
        }
        for state, runs in arm.seconds.items()
    }
    same = {name: getattr(arm, name) for name in ("reader", "executor", "direct_io", "error")}
    return {**same, "workers": arm.workers(), "timings": timings}
