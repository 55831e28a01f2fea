"""The course of ``paraload bench``: choose, check, measure warm, measure cold, recommend."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from paraload._resources import available_memory_bytes
from paraload.cli._bench_advice import advise
from paraload.cli._bench_arms import TORCH, Arm, make_arms
from paraload.cli._bench_case import Case, chosen, records_of
from paraload.cli._bench_contest import Contest
from paraload.cli._bench_result import Machine, Part, Plan, Result
from paraload.cli._errors import UsageError
from paraload.cli._memory import require_memory
from paraload.cli._page_cache import NoColdCacheError, cold_cache
from paraload.cli._status import StatusLine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch.distributed.checkpoint import Metadata

    from paraload.cli._bench_advice import Advice
    from paraload.cli._bench_case import Record
    from paraload.cli._bench_contest import Entry
    from paraload.cli._page_cache import ColdCache

__all__ = ["Prepared", "measure", "prepare"]

#: A tenth of a second at 20 GiB/s, and two at the speed of one disk.
_LIMIT_BYTES: Final = 2 << 30
#: The tensors, the same bytes in the page cache, and as much again for everybody else.
_FREE_PARTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything but the measurement."""

    plan: Plan
    case: Case
    arms: Sequence[Arm]
    with_cold: bool


def prepare(
    path: Path,
    metadata: Metadata,
    *,
    executors: Sequence[str],
    workers: Sequence[int],
    rounds: int,
    limit_bytes: int | None,
    with_cold: bool,
) -> Prepared:
    """Choose what is read, and who reads.

    Raises:
        UsageError: there is nothing to read, or no memory for it.
    """
    free_bytes = available_memory_bytes()
    limit_bytes = (
        min(_LIMIT_BYTES, free_bytes // _FREE_PARTS) if limit_bytes is None else limit_bytes
    )
    records = records_of(metadata)
    if not records:
        raise UsageError(f"{path}: the checkpoint is empty")
    part = chosen(records, limit_bytes)
    require_memory(_bytes_of(part), "the part to read")
    case = Case.of(path, metadata, part)
    arms = make_arms(case, executors=executors, workers=workers, with_cold=with_cold)
    plan = Plan(
        path=path,
        machine=Machine.here(path, torch=torch.__version__, free_memory_bytes=free_bytes),
        part=Part(
            nbytes=_bytes_of(part),
            tensors=len(case.targets),
            objects=len(part) - len(case.targets),
            files=len(case.ranges),
            whole_bytes=_bytes_of(records),
            limit_bytes=limit_bytes,
        ),
        arms=len(arms),
        rounds=rounds,
    )
    return Prepared(plan=plan, case=case, arms=arms, with_cold=with_cold)


def measure(prepared: Prepared) -> Result:
    """Check every arm, then run all of them in turn."""
    rounds = prepared.plan.rounds
    states = {"warm": "every arm has just read it"}
    not_cold = ""
    with _quiet(), StatusLine(sys.stderr) as status:
        contest = Contest(prepared.case, prepared.arms, status)
        contest.check()
        contest.measure("warm", rounds, lambda: None)
        try:
            cold = _cold_cache(prepared.case, contest, wanted=prepared.with_cold)
        except NoColdCacheError as error:
            not_cold = str(error)
        else:
            contest.measure("cold", rounds, cold.drop)
            states["cold"] = f"{cold.method} before every run; {cold.note}"
    return Result(
        plan=prepared.plan,
        states=states,
        not_cold=not_cold,
        entries=contest.entries,
        advice=_advice(contest.entries),
    )


def _cold_cache(case: Case, contest: Contest, *, wanted: bool) -> ColdCache:
    if not wanted:
        raise NoColdCacheError("--no-cold")
    if contest.is_over:
        raise NoColdCacheError("every arm had failed before")
    return cold_cache(case.ranges)


def _advice(entries: Sequence[Entry]) -> Advice | None:
    settings = {
        setting: entry.timings() for entry in entries if (setting := entry.setting()) is not None
    }
    (torch_entry,) = (entry for entry in entries if entry.arm.reader == TORCH)
    return advise(settings, torch_entry.timings())


def _bytes_of(records: Sequence[Record]) -> int:
    return sum(record.nbytes for record in records)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what readers say of every single run; the result says it once."""
    logger = logging.getLogger("paraload")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
            yield
    finally:
        logger.setLevel(level)
