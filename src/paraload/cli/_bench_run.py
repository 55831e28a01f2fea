"""The course of ``paraload bench``: plan, check, measure warm, measure cold, advise.

    check     targets poisoned, memory watched, bits compared with those that torch's reader loaded
    measure   rounds: prepare, drop the page cache if the state is cold, run against the clock

An arm that fails takes no further part, and its error is kept; the others go on.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from paraload import __version__
from paraload._resources import available_memory_bytes, file_system_of, usable_cores
from paraload.cli._bench_advice import advise
from paraload.cli._bench_arms import AUTO, RAW, TORCH, make_arms
from paraload.cli._bench_case import Case, bytes_of, chosen, records_of
from paraload.cli._bench_result import Machine, Part, Plan, Result
from paraload.cli._errors import UsageError
from paraload.cli._memory import PeakMemory, require_memory
from paraload.cli._page_cache import NoColdCacheError, cold_cache
from paraload.cli._rounds import interleaved, timed
from paraload.cli._status import StatusLine
from paraload.errors import CheckpointReadError
from paraload.report import ReadReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.distributed.checkpoint import Metadata

    from paraload.cli._bench_arms import Arm
    from paraload.cli._page_cache import ColdCache

__all__ = ["make_plan", "measure"]

#: A tenth of a second at 20 GiB/s, and two at the speed of one disk.
_LIMIT_BYTES: Final = 2 << 30
#: The tensors, the same bytes in the page cache, and as much again for all other programs.
_FREE_PARTS: Final = 4


def make_plan(
    path: Path,
    metadata: Metadata,
    *,
    executors: Sequence[str],
    workers: Sequence[int],
    rounds: int,
    limit_bytes: int | None,
    with_cold: bool,
) -> Plan:
    """Choose what is read, and by which arms.

    Raises:
        UsageError: there is nothing to read, or not enough memory for it.
    """
    free_bytes = available_memory_bytes()
    if limit_bytes is None:
        limit_bytes = min(_LIMIT_BYTES, free_bytes // _FREE_PARTS)
    records = records_of(metadata)
    if not records:
        raise UsageError(f"{path}: the checkpoint is empty")
    part = chosen(records, limit_bytes)
    require_memory(bytes_of(part), "the part to read")
    case = Case.of(path, metadata, part)
    return Plan(
        path=path,
        machine=Machine(
            cores=usable_cores(),
            free_memory_bytes=free_bytes,
            file_system=file_system_of(os.fspath(path)),
            kernel=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            torch=torch.__version__,
            paraload=__version__,
        ),
        part=Part(
            nbytes=bytes_of(part),
            tensors=len(case.targets),
            objects=len(part) - len(case.targets),
            files=len(case.ranges),
            whole_bytes=bytes_of(records),
            limit_bytes=limit_bytes,
        ),
        case=case,
        arms=make_arms(case, executors=executors, workers=workers, with_cold=with_cold),
        rounds=rounds,
        with_cold=with_cold,
    )


def measure(plan: Plan) -> Result:
    """Check every arm, then run all of them in turn, first warm and then cold."""
    states = {"warm": "every arm has just read it"}
    not_cold = ""
    with _quiet(), StatusLine(sys.stderr) as status:
        if _check_all(plan, status):
            _measure_all(plan, "warm", lambda: None, status)
            try:
                cold = _cold_cache(plan)
            except NoColdCacheError as error:
                not_cold = str(error)
            else:
                _measure_all(plan, "cold", cold.drop, status)
                states["cold"] = f"{cold.method} before every run; {cold.note}"
        else:
            states["warm"] = not_cold = "no setting of paraload can read this checkpoint"
    settings = {arm.setting: arm.timings for arm in plan.arms if arm.setting is not None}
    (torch_arm,) = (arm for arm in plan.arms if arm.reader == TORCH)
    advice = advise(settings, torch_arm.timings)
    return Result(plan=plan, states=states, not_cold=not_cold, advice=advice)


def _cold_cache(plan: Plan) -> ColdCache:
    if not plan.with_cold:
        raise NoColdCacheError("--no-cold")
    return cold_cache(plan.case.ranges)


def _check_all(plan: Plan, status: StatusLine) -> bool:
    """Run every arm once; ``False`` if no setting of paraload is left to recommend.

    The bits of the first arm that does not fail are the right ones. A bad checkpoint is bad for all
    settings: the first one that says so is the last one that runs.
    """
    expected: list[int] = []
    expected_of = ""
    for number, arm in enumerate(plan.arms, start=1):
        status.show(f"check {number} of {len(plan.arms)}: {arm.name}")
        with _failing(arm):
            run = arm.prepare()
            plan.case.poison()
            with PeakMemory() as memory:
                run()
            arm.peak_bytes = memory.peak_bytes
            if arm.reader == RAW:
                continue  # it does not load the bytes of tensors alone
            loaded = plan.case.checksums()
            if not expected_of:
                expected, expected_of = loaded, arm.name
            for record, right, got in zip(plan.case.records, expected, loaded, strict=True):
                if got != right:
                    raise ValueError(f"{record.index.fqn!r} differs from what {expected_of} loaded")
        if arm.executor == AUTO and arm.is_damaged:
            return False
    return any(arm.executor is not None and arm.error is None for arm in plan.arms)


def _measure_all(
    plan: Plan, state: str, before_run: Callable[[], object], status: StatusLine
) -> None:
    """Run every arm in every round; ``before_run`` makes the state."""
    arms = {arm.name: arm for arm in plan.arms if arm.error is None}
    runs = plan.rounds * len(arms)
    started = time.monotonic()
    for done, (number, name) in enumerate(interleaved(list(arms), rounds=plan.rounds)):
        left = (time.monotonic() - started) / done * (runs - done) if done else None
        status.show(
            f"{state}, round {number + 1} of {plan.rounds}: {name}"
            + (f" (about {left:.0f} s left)" if left is not None else "")
        )
        if arms[name].error is None:
            with _failing(arms[name]):
                _measure_one(arms[name], state, before_run)


def _measure_one(arm: Arm, state: str, before_run: Callable[[], object]) -> None:
    run = arm.prepare()
    answers: list[object] = []
    before_run()
    read_before = _bytes_read_by_system()
    seconds = timed(lambda: answers.append(run()))
    all_s = arm.seconds.setdefault(state, [])
    if isinstance(report := answers[0], ReadReport):
        arm.bytes_read = report.bytes_read
        if seconds < min(all_s, default=math.inf):
            arm.reports[state] = report
    elif read_before is not None:
        arm.bytes_read = (_bytes_read_by_system() or read_before) - read_before
    all_s.append(seconds)


def _bytes_read_by_system() -> int | None:
    """What this process has read until now, if the system counts it."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return None
    return int(dict(line.split(": ") for line in text.splitlines())["rchar"])


@contextmanager
def _failing(arm: Arm) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - readers raise anything; it is shown at the end
        # Not the exception: its traceback would keep buffers alive, which later arms are charged.
        arm.error = f"{type(error).__name__}: {error}"
        arm.is_damaged = isinstance(error, CheckpointReadError)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what readers log in every run; the result says it once."""
    logger = logging.getLogger("paraload")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
            yield
    finally:
        logger.setLevel(level)
