"""The measurement: torch's reader and paraload with each setting, in turn, warm and cold.

Each reader with a setting is an arm. An arm that fails is left out from then on; its error is kept.
"""

import gc
import logging
import random
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from paraload import __version__
from paraload._text import counted
from paraload.cli._arguments import UsageError
from paraload.cli._checkpoint import require_memory
from paraload.cli.bench.advice import AUTO, Advice, Setting, advise
from paraload.cli.bench.case import Case, chosen, pieces_of
from paraload.cli.bench.others import Others
from paraload.cli.bench.page_cache import drop, try_drop
from paraload.cli.bench.subject import Subject
from paraload.errors import CheckpointReadError
from paraload.metadata.index import CheckpointIndex
from paraload.options import ReadOptions
from paraload.progress import is_terminal
from paraload.report import ReadReport
from paraload.runtime.resources import available_memory_bytes, file_system_of, usable_cores

TORCH: Final = "torch's reader"
#: The only state of a checkpoint on a server.
REMOTE: Final = "remote"
_EXECUTORS: Final = ("threads", "processes")
_WORKERS: Final = (1, 2, 4, 8, 16)
_REMOTE_EXECUTORS: Final = ("threads",)
_REMOTE_WORKERS: Final = (4, 8, 16, 32, 64)
#: Takes a tenth of a second at 20 GiB/s, and two seconds on one disk.
_LIMIT_BYTES: Final = 2 << 30
#: Tensors and the page cache of their files take a quarter each; half stays free for others.
_FREE_PARTS: Final = 4


@dataclass(slots=True, eq=False)
class Arm:
    """A reader with its setting, and its measurements by state of the page cache."""

    reader: str  # the name in tables
    make_reader: Callable[[], Any]
    executor: str | None  # None for torch's reader
    asked_workers: int | None  # None if paraload chooses
    direct_io: bool = False
    error: str | None = None  # why it is left out
    is_damaged: bool = False  # the error says that the checkpoint is damaged
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of all runs
    reports: dict[str, ReadReport] = field(default_factory=dict)  # of the fastest run

    @property
    def name(self) -> str:
        workers = self.asked_workers
        return f"{self.reader}, {counted(workers, 'worker')}" if workers else self.reader

    def workers(self, state: str | None = None) -> int | None:
        """Concurrent readers; where paraload chose, the most in this state or in any."""
        found = [it.workers for key, it in self.reports.items() if state in {None, key}]
        return self.asked_workers or max(found, default=None)

    @property
    def setting(self) -> Setting | None:
        """The setting to recommend; ``None`` for torch's, and where direct_io has no effect."""
        workers = self.workers()
        is_effective = not self.direct_io or any(it.bytes_direct for it in self.reports.values())
        if self.executor is None or workers is None or not is_effective:
            return None
        return Setting(self.executor, workers, self.direct_io)


class Bench:
    """What to measure, and the results."""

    def __init__(self, subject: Subject, index: CheckpointIndex, given: Namespace) -> None:
        free_bytes = available_memory_bytes()
        limit_bytes = given.limit_bytes
        if limit_bytes is None:
            limit_bytes = min(_LIMIT_BYTES, free_bytes // _FREE_PARTS)
        if not (pieces := pieces_of(index)):
            raise UsageError(f"{subject.name}: the checkpoint is empty")
        part = chosen(pieces, limit_bytes)
        require_memory(sum(piece.nbytes for piece in part), "the part to read")
        self.subject = subject
        self.case = Case(part)
        self.part = {
            "nbytes": self.case.nbytes,
            "tensors": len(self.case.targets),
            "objects": len(part) - len(self.case.targets),
            "files": len(self.case.files),
            "whole_bytes": sum(piece.nbytes for piece in pieces),
            "limit_bytes": limit_bytes,
        }
        self.machine: dict[str, Any] = {
            "cores": usable_cores(),
            "free_memory_bytes": free_bytes,
            "file_system": file_system_of(str(subject.folder)) if subject.folder else REMOTE,
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
            "paraload": __version__,
        }
        self.arms = _arms(subject, given)  # torch's reader first, if there is one
        self.rounds: int = given.rounds
        self.states: dict[str, str] = {}  # of the page cache, or REMOTE; how each was produced
        self.others_cores = 0.0  # kept busy by other programs meanwhile
        self.not_cold = "--no-cold" if given.no_cold and subject.folder else ""
        self.advice: Advice | None = None  # None if no setting of paraload was measured

    @property
    def torch_seconds(self) -> Mapping[str, Sequence[float]]:
        """Of torch's reader, by state; empty if there is none or it failed."""
        return self.arms[0].seconds if self.arms[0].executor is None else {}

    @property
    def shown(self) -> tuple[str, ReadReport] | None:
        """State and report for the time line: the recommended setting in the coldest state."""
        state = list(self.states)[-1]
        reports = {arm.setting: arm.reports for arm in self.arms}
        return None if self.advice is None else (state, reports[self.advice.setting][state])


def _arms(subject: Subject, given: Namespace) -> list[Arm]:
    is_local = subject.folder is not None
    settings: list[tuple[str, int | None, bool]] = [(AUTO, None, False)]
    if is_local and not given.no_cold:
        settings += [(AUTO, None, True)]
    for executor in given.executors or (_EXECUTORS if is_local else _REMOTE_EXECUTORS):
        counts = given.workers or (_WORKERS if is_local else _REMOTE_WORKERS)
        for count in [1] if executor == "sequential" else counts:
            # One worker is the caller's own thread with every executor.
            settings += [(executor if count > 1 else "sequential", count, False)]
    arms = []
    if subject.make_torch is not None:
        arms += [Arm(TORCH, subject.make_torch, executor=None, asked_workers=1)]
    for executor, workers, direct_io in dict.fromkeys(settings):
        setting = {"executor": executor, "max_workers": workers, "direct_io": direct_io}
        # Other options come from the environment.
        options = ReadOptions.resolve(overrides=setting | {"progress": False})
        make_reader = partial(subject.make, options)
        name = ("by itself" if executor == AUTO else executor) + ", direct_io" * direct_io
        arms.append(Arm(f"paraload {name}", make_reader, executor, workers, direct_io))
    return arms


def measure(bench: Bench) -> None:
    """Check every arm, then run all in turn, first with a warm and then with a cold cache."""
    folder = bench.subject.folder
    with _quiet():
        if not _check_all(bench):
            reason = "no setting of paraload can read this checkpoint"
            bench.states[REMOTE if folder is None else "warm"] = reason
            if folder is not None:
                bench.not_cold = reason
            return
        others = Others()
        if folder is None:
            bench.states[REMOTE] = "the server may have parts of it in caches of its own"
            _run_all(bench, REMOTE, lambda: None)
        else:
            _run_warm_and_cold(bench, [folder / name for name in bench.case.files])
        bench.others_cores = others.cores()
    settings = {arm.setting: arm.seconds for arm in bench.arms if arm.setting is not None}
    bench.advice = advise(settings, bench.torch_seconds)


def _run_warm_and_cold(bench: Bench, files: Sequence[Path]) -> None:
    bench.states["warm"] = "every arm has just read it"
    _run_all(bench, "warm", lambda: None)
    is_cold, how = (False, bench.not_cold) if bench.not_cold else try_drop(files)
    if is_cold:
        bench.states["cold"] = f"{how}; before every run"
        _run_all(bench, "cold", partial(drop, files))
    else:
        bench.not_cold = how


def _check_all(bench: Bench) -> bool:
    """Run every arm once; ``False`` if no setting of paraload is left to recommend.

    The first arm that does not fail loads the expected values. A damaged checkpoint is damaged for
    all settings, so the check ends when paraload finds damage.
    """
    expected: dict[str, int] | None = None
    expected_of = ""
    for arm in _with_bar(bench.arms, "check"):
        with _failing(arm):
            run = bench.case.prepare(arm.make_reader())
            bench.case.poison()
            run()
            loaded = bench.case.checksums()
            if expected is None:
                expected, expected_of = loaded, arm.name
            if wrong := [name for name in loaded if loaded[name] != expected[name]]:
                raise ValueError(f"{wrong[0]!r} differs from what {expected_of} loaded")
        if arm.executor == AUTO and arm.is_damaged:
            return False
    return any(arm.executor is not None and arm.error is None for arm in bench.arms)


def _run_all(bench: Bench, state: str, before_run: Callable[[], object]) -> None:
    # The speed of a machine drifts, and arms that take turns see the same drift. Each round
    # shuffles them, so that none always follows the same arm and its heap and caches. The seed is
    # the round, so that the same command runs in the same order again.
    arms = [arm for arm in bench.arms if arm.error is None]
    rounds = [random.Random(number).sample(arms, len(arms)) for number in range(bench.rounds)]  # noqa: S311
    for arm in _with_bar([arm for one in rounds for arm in one], state):
        if arm.error is not None:
            continue
        with _failing(arm):
            run = bench.case.prepare(arm.make_reader())
            before_run()
            gc.collect()  # so that this run does not pay for earlier ones
            started = time.perf_counter()
            report = run()
            runs = arm.seconds.setdefault(state, [])
            runs.append(time.perf_counter() - started)
            if report is not None and runs[-1] == min(runs):
                arm.reports[state] = report


class _Bar(tqdm):  # type: ignore[type-arg]  # generic only for the type checker
    monitor_interval = 0  # the monitor is a thread that would outlive the command


def _with_bar(arms: Sequence[Arm], what: str) -> Iterator[Arm]:
    """Yield ``arms``, with a progress bar on a terminal that disappears at the end."""
    text = "{bar:20} {n_fmt}/{total_fmt}, {remaining} left, {desc}"
    hidden = not is_terminal(sys.stderr)
    with _Bar(
        arms,
        leave=False,
        disable=hidden,
        dynamic_ncols=True,
        bar_format=text,
        mininterval=0,  # so that quick runs are counted at once
        miniters=1,
    ) as bar:
        for arm in bar:
            bar.set_description_str(f"{what}: {arm.name}")
            yield arm


@contextmanager
def _failing(arm: Arm) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - readers raise anything; it is shown at the end
        # The text only: a traceback would keep buffers alive while other arms run.
        arm.error = f"{type(error).__name__}: {error}"
        arm.is_damaged = isinstance(error, CheckpointReadError)
        arm.seconds.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what readers log in every run; the notes say it once."""
    logger = logging.getLogger("paraload")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
            yield
    finally:
        logger.setLevel(level)
