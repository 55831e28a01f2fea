"""The one loop of a load: submit tasks, take results, commit items, report.

    Scheduler --task--> submit(executor)ready --result--> Load --> Landed, Staged, Raw --> commit
        ^                                                  |
        +-------------- tasks <-- Assembly <-- Located ----+

All of it runs on the caller's thread. An item is *ordered* when the moment of its commit matters:
under a planner that is not torch's own (strict resolve, copy, commit), and where targets share
memory (the last of the plan must win). Ordered items are collected whole and committed in the order
of torch's reader; all others are committed as they complete. An audit keeps no bytes of its items.
"""

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from paraload._text import counted
from paraload.core.records import TensorRecord
from paraload.core.results import (
    Audited,
    Failed,
    Landed,
    LandedItems,
    Located,
    Outcome,
    Raw,
    Staged,
    TaskResult,
)
from paraload.core.tasks import RunsTask, SharedTask
from paraload.destinations.aliases import aliased_target
from paraload.destinations.targets import DirectTargets
from paraload.engine.assembly import Assembly, AssemblyContext
from paraload.engine.budget import MemoryBudget
from paraload.engine.commits import Commits, stuck_copies
from paraload.engine.items import CompletedItem, Item, Items, error_of
from paraload.engine.scheduler import Scheduler
from paraload.engine.setup import LoadSetup
from paraload.engine.statistics import Statistics
from paraload.errors import CheckpointReadError, ItemReadError, StalledReadError
from paraload.executors.base import ReadExecutor
from paraload.executors.choice import choose_execution
from paraload.planning.read_tasks import share_reads
from paraload.progress import ReadProgress
from paraload.report import ReadReport
from paraload.runtime.daemon_threads import PATIENCE_S, PATIENCE_WITH_STALLED_S, no_answer
from paraload.runtime.interrupts import stop_if_signalled
from paraload.workers.read_context import item_error

#: Executors and copies have nothing in common that could wake the engine, so it polls both.
_POLL_S: Final = 0.001


class Load:
    """One load, from its first tasks to its report; ``statistics`` counts.

    ``process`` hands completed items to the planner; ``on_progress`` is called after every result.
    """

    def __init__(
        self,
        setup: LoadSetup,
        *,
        process: Callable[[list[CompletedItem]], None],
        on_progress: Callable[[ReadProgress], object] | None,
    ) -> None:
        self._setup = setup
        self._process = process
        self._on_progress = on_progress

    def prepare(self) -> None:
        """Choose the executor, and make everything that the loop needs; reads nothing."""
        setup = self._setup
        execution = choose_execution(
            setup.options,
            source=setup.read_context.source,
            total_bytes=sum([spec.end - spec.start for spec in setup.specs]),
            not_in_processes=setup.not_in_processes,
        )
        self._executor = execution.executor
        self._task_limit_bytes = execution.task_limit_bytes
        self._sizes = execution.sizes
        self._budget = budget = MemoryBudget(execution.staging_bytes)
        self._items = Items(setup.specs, setup.targets, setup.ordered)
        items_by_file = Counter([spec.path for spec in setup.specs])
        file_rank = {path: rank for rank, path in enumerate(items_by_file)}  # as the plan has them

        def rank(item: int) -> tuple[int, int]:
            return file_rank[self._items.spec(item).path], item

        self._turns = deque(sorted(setup.ordered, key=rank))
        self._scheduler = Scheduler(budget, rank=rank if self._turns else None)
        tasks = setup.tasks
        if tasks is None or setup.ordered:
            tasks = setup.make_tasks(setup.specs, in_plan_order=bool(setup.ordered))
        self._scheduler.start(tasks)
        has_checksum = setup.read_context.format.has_checksum
        unverified = "no CRC-32 in the file" if has_checksum else "format has no checksum"
        self.statistics = Statistics(
            items_by_file,
            bytes_total=sum(map(self._items.planned_bytes, setup.specs)),
            unverified=unverified if setup.read_context.verify else "verify=False",
            started_s=setup.started_s,
        )
        for reason in filter(None, (setup.not_in_processes, execution.downgrade)):
            self.statistics.fall_back(reason, len(setup.specs))
        self._commits = Commits(setup, self._process, self.statistics.fall_back)
        self._context = AssemblyContext(
            setup=setup,
            scheduler=self._scheduler,
            targets=DirectTargets(setup.targets, setup.ordered),
            unit_names=itertools.count(setup.specs[-1].item + 1 if setup.specs else 0),
            verify=setup.read_context.verify and has_checksum,
            split_bytes=self._sizes.next_split_bytes,
        )
        self._assemblies: dict[int, Assembly] = {}
        self._done: set[int] = set()
        self._failures: dict[int, ItemReadError] = {}
        self._downgrades_seen = 0

    def run(self) -> tuple[ReadReport, dict[int, ItemReadError]]:
        """Return the report, and the errors of the items that failed, by item.

        What planner and progress hook raise passes through unchanged.
        """
        executor, patience_s = self._executor, PATIENCE_S
        copies = self._context.copies
        try:
            executor.start(self._setup.read_context, self._context.targets)
            while True:
                while executor.capacity() > 0 and (task := self._scheduler.next_task()) is not None:
                    executor.submit(task)
                if not self._scheduler.in_flight and not copies:
                    break
                self._take_results(self._wait(executor), executor)
        except StalledReadError:
            patience_s = PATIENCE_WITH_STALLED_S
            stuck_copies.extend(copies.values())
            copies.clear()
            raise
        finally:
            executor.close(patience_s)
            for copy, _ in copies.values():  # there are some after an error only
                with suppress(Exception):
                    copy.wait(PATIENCE_S)
        self._require_everything()
        report = self.statistics.report(
            workers=executor.workers,
            executor=executor.name,
            peak_bytes=self._budget.peak_bytes,
            conversions=dict(self._setup.destination.conversions()),
        )
        return report, dict(sorted(self._failures.items()))

    def _wait(self, executor: ReadExecutor) -> Sequence[TaskResult]:
        """The next results, or none after a copy. Nothing else waits, so here is the deadline."""
        timeout_s = self._setup.read_context.stall_timeout_s
        until_s = time.monotonic() + (timeout_s or 0)
        while not self._end_copies():
            is_polling = bool(self._context.copies)
            if not self._scheduler.in_flight:
                time.sleep(_POLL_S)
            elif results := executor.ready(_POLL_S if is_polling else timeout_s):
                return results
            if timeout_s is not None and (not is_polling or time.monotonic() > until_s):
                raise self._stalled(executor, timeout_s)
        return ()

    def _end_copies(self) -> bool:
        """Finish the items whose copies are done; return whether any copy was."""
        copies = self._context.copies
        is_any_done = False
        for unit, (copy, assembly) in list(copies.items()):
            try:
                if not copy.wait(0):
                    continue
            except Exception as error:  # noqa: BLE001 - a copy may fail in any way
                self._fail(assembly.item, item_error(error))
            is_any_done = True
            del copies[unit]
            assembly.end_copy(unit)
            self._attempt(assembly.item, self._finish, assembly)
        return is_any_done

    def _stalled(self, executor: ReadExecutor, timeout_s: float) -> StalledReadError:
        running = [f"{t.path!r} bytes [{t.start}, {t.end})" for t in executor.running()]
        what = f"these were being read: {'; '.join(running)}"
        if not running and (copies := self._context.copies):
            names = {repr(assembly.item.spec.fqn) for _, assembly in copies.values()}
            what = f"these were being copied into their targets: {', '.join(sorted(names))}"
        hint = "" if self._setup.read_context.audit else executor.stuck_hint
        return no_answer(timeout_s, what, hint)

    def _take_results(self, results: Iterable[TaskResult], executor: ReadExecutor) -> None:
        for reason in executor.downgrades[self._downgrades_seen :]:
            self.statistics.fall_back(reason, len(self._setup.specs))
            self._downgrades_seen += 1
        for result in results:
            self._scheduler.returned(result)
            self._handle(result)
            if self._on_progress is not None:
                self._on_progress(self.statistics.snapshot())
            stop_if_signalled()

    def _require_everything(self) -> None:
        for spec, by in self._commits.aliases.overwritten():
            if self._setup.options.strict:
                self._failures[spec.item] = error_of(spec, aliased_target(by))
            else:
                self.statistics.overwritten[spec.fqn] = by.fqn
        known = self._done | self._failures.keys()
        if missing := [spec.fqn for spec in self._setup.specs if spec.item not in known]:
            raise CheckpointReadError(
                f"{counted(len(missing), 'item')} left unread, {missing[0]!r} among them; this is a"
                " bug in paraload, please report it"
            )

    def _handle(self, result: TaskResult) -> None:
        task = result.task
        self.statistics.count(result)
        parts = task.parts if isinstance(task, SharedTask) else itertools.repeat(task)
        for outcome, part in zip(result.outcomes, parts, strict=False):
            if isinstance(outcome, LandedItems):
                self._take_landed(outcome, task.path)
                continue
            item = self._items[outcome.item]
            self._attempt(item, self._handle_outcome, item, outcome)
            if isinstance(part, RunsTask):
                assembly = self._assemblies[outcome.item]
                self._attempt(item, assembly.end_task, part)
                self._attempt(item, self._finish, assembly)
        if located := self._context.located:
            limit, split = self._task_limit_bytes, self._sizes.split_bytes
            self._scheduler.ready(share_reads(located, limit_bytes=limit, split_bytes=split))
            located.clear()
        self._take_turns()  # others may have waited for an item that has failed

    def _attempt(self, item: Item, step: Callable[..., None], *args: Any) -> None:
        """Take a step of an item, which fails if the step does."""
        try:
            step(*args)
        except ItemReadError as error:
            self._fail(item, error)

    def _handle_outcome(self, item: Item, outcome: Outcome) -> None:
        match outcome:
            case Located():
                self._assemble(item, outcome.record, outcome.reason)
            case Landed():
                more = self._assemblies[outcome.item].land(outcome)
                self.statistics.bytes_done += 0 if item.is_failed else more
            case Audited():
                self.statistics.bytes_verified += outcome.verified_bytes
                self.statistics.bytes_unverifiable += outcome.unverifiable_bytes
                self.statistics.uncompared += not outcome.is_compared
                if outcome.payload is not None:
                    self._assemble(item, outcome.payload)
                else:
                    self.statistics.bytes_done += item.planned_bytes
                    self._in_turn(item, partial(self._commits.commit, item, None))
            case Staged() | Raw():
                self._take(item, outcome)
            case Failed(error=error):
                raise error
            case _:
                raise TypeError(f"unknown outcome: {type(outcome).__name__}")

    def _take_landed(self, landed: LandedItems, path: str) -> None:
        self.statistics.bytes_done += landed.nbytes
        unverified, reason = landed.unverified, landed.reason
        self.statistics.checked(landed.verified_bytes, unverified=unverified, reason=reason)
        self._commits.landed_together(landed.items)
        self._done.update(landed.items)
        self.statistics.left(path, len(landed.items))

    def _take(self, item: Item, content: Staged | Raw) -> None:
        """Bytes of a small record, which are valid only until the next result."""
        nbytes = content.needed_bytes
        self._replan(item, nbytes)
        self.statistics.bytes_done += nbytes
        verified_bytes = content.verified_bytes
        self.statistics.checked(verified_bytes, unverified=nbytes > 0 and not verified_bytes)
        if item.ordered and self._turns[0] != item.spec.item:
            content = replace(content, data=memoryview(bytearray(content.data)))
        self._in_turn(item, partial(self._commits.commit, item, content))

    def _assemble(self, item: Item, record: TensorRecord | None, reason: str = "") -> None:
        assembly = Assembly(item, record, reason, self._context)
        self._assemblies[item.spec.item] = assembly
        self._replan(item, assembly.needed_bytes)
        self._finish(assembly)

    def _replan(self, item: Item, nbytes: int) -> None:
        self.statistics.bytes_total += nbytes - item.planned_bytes
        item.planned_bytes = nbytes

    def _finish(self, assembly: Assembly) -> None:
        """If all parts of the record are there, check it and commit its item in its turn."""
        item = assembly.item
        if assembly.tasks_left or item.is_failed:
            return

        def commit() -> None:
            try:
                verified_bytes, reason = assembly.check()
                is_unverified = assembly.needed_bytes > 0 and not verified_bytes
                self.statistics.checked(verified_bytes, unverified=is_unverified, reason=reason)
                self._commits.commit(item, assembly.content)
            finally:
                assembly.release()

        self._in_turn(item, commit)

    def _in_turn(self, item: Item, commit: Callable[[], None]) -> None:
        """Commit now, or when all earlier ordered items are done."""
        item.commit = commit
        if item.ordered:
            self._take_turns()
        else:
            self._commit(item)

    def _take_turns(self) -> None:
        """Commit the ordered items that are next; skip those that have failed."""
        while self._turns:
            item = self._items[self._turns[0]]
            if item.commit is None and not item.is_failed:
                return
            self._turns.popleft()
            self._attempt(item, self._commit, item)

    def _commit(self, item: Item) -> None:
        commit, item.commit = item.commit, None
        if commit is not None:
            commit()
            self._done.add(item.spec.item)
            self._leave(item)

    def _fail(self, item: Item, error: ItemReadError) -> None:
        if item.is_failed:
            return
        item.is_failed = True
        self._failures[item.spec.item] = error_of(item.spec, error)
        if self._setup.read_context.audit:  # progress counts bad bytes too
            assembly = self._assemblies.get(item.spec.item)
            landed_bytes = 0 if assembly is None else assembly.landed_bytes
            self.statistics.bytes_done += item.planned_bytes - landed_bytes
        self._leave(item)

    def _leave(self, item: Item) -> None:
        self.statistics.left(item.spec.path, 1)
        self._scheduler.item_left(item.spec.item)
