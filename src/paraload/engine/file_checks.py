"""The files of a load: whether all are there before it, and unchanged after it.

    specs --> seen_files: one look at each file --> {path: FileStat}      before the first byte
    {path: FileStat} --> changed_files: the same look, compared            after the last one

Files of a storage that only has streams are not checked; their reads fail one by one. Files of a
storage that checks the version with each read need no second look.
"""

import copy
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Final

from paraload._text import counted
from paraload.core.safe_paths import unsafe_path
from paraload.core.tasks import RecordSpec
from paraload.engine.items import error_of
from paraload.errors import ChangedFileError, ItemReadError, UnsafePathError, refuse_to_begin
from paraload.formats.record_checks import check_range
from paraload.runtime.daemon_threads import PATIENCE_WITH_STALLED_S, DaemonThreads
from paraload.sources import ByteSource, FileStat
from paraload.sources.retrying import is_transient, pauses, storage_error
from paraload.workers.read_context import item_error

Stat = Callable[[str], FileStat]
Answers = dict[str, FileStat | Exception]

#: ``stat`` takes a millisecond on a network file system, and there may be thousands of files. On a
#: disk it takes a few microseconds, and handing it to a thread a hundred. So one thread begins, and
#: several share the rest if that is slow.
_THREADS: Final = 8  # where the storage does not say how many requests it wants in flight
_QUICK_LOOK_S: Final = 1e-4
_ALONE_S: Final = 2e-3
_FILES_A_SIGN_OF_LIFE: Final = 256


def require_inside(specs: Sequence[RecordSpec], *, path: str) -> None:
    """Refuse paths that lead out of ``path``, the checkpoint's folder, by their text alone."""
    if failures := path_failures(specs):
        raise refuse_to_begin(list(failures.values()), items=len(specs), path=path)


def path_failures(specs: Sequence[RecordSpec]) -> dict[int, ItemReadError]:
    """The errors of :func:`require_inside`, by item."""
    reasons = {path: unsafe_path(path) for path in {spec.path for spec in specs}}
    return {
        spec.item: error_of(spec, UnsafePathError(f"the path {reason[0]}", hint=reason[1]))
        for spec in specs
        if (reason := reasons[spec.path]) is not None
    }


def seen_files(
    source: ByteSource,
    specs: Sequence[RecordSpec],
    thread: DaemonThreads,
    *,
    path: str,
    retries: int | None,
) -> dict[str, FileStat]:
    """Size and version of each file. Refuse files that are missing, unreadable or too short.

    ``thread`` makes the calls, so that they have a deadline.
    """
    seen, failures = look_at_files(source, specs, thread, retries=retries)
    if failures:
        raise refuse_to_begin(list(failures.values()), items=len(specs), path=path)
    return seen


def look_at_files(
    source: ByteSource, specs: Sequence[RecordSpec], thread: DaemonThreads, *, retries: int | None
) -> tuple[dict[str, FileStat], dict[int, ItemReadError]]:
    """What :func:`seen_files` returns, and its errors by item."""
    if source.limits.forward_only:
        return {}, {}
    by_file: defaultdict[str, list[RecordSpec]] = defaultdict(list)
    for spec in specs:
        by_file[spec.path].append(spec)
    require_readable = getattr(source, "require_readable", None)

    def stat(path: str) -> FileStat:
        found = source.stat(path)
        if require_readable is not None:
            require_readable(path)
        return found

    answers, tries = _answers(source, stat, by_file, thread, retries)
    seen: dict[str, FileStat] = {}
    failures: dict[int, ItemReadError] = {}
    for path, answer in answers.items():
        if isinstance(answer, Exception):
            transient = is_transient(source, answer)
            known = item_error(
                storage_error(answer, start=None, end=None, tries=tries, transient=transient)
            )
            known.traceback_text = ""  # it says nothing more about a call of stat
            known.start = known.end = None
            failures |= {spec.item: error_of(spec, copy.copy(known)) for spec in by_file[path]}
            continue
        seen[path] = answer
        for spec in by_file[path]:
            if 0 <= spec.start <= spec.end <= answer.size:  # a call for each item takes longer
                continue
            try:
                check_range(spec, answer.size)
            except ItemReadError as error:
                failures[spec.item] = error_of(spec, error.with_traceback(None))
    return seen, failures


def unpinned(
    source: ByteSource, seen: Mapping[str, FileStat], before: Mapping[str, FileStat]
) -> dict[str, FileStat]:
    """The files to look at again after the load.

    ``seen`` are those with data; ``before`` those whose metadata were read before.
    """
    looks = {**seen, **before}
    if (is_pinned := getattr(source, "is_pinned", None)) is None:
        return looks
    # Of a file that is in both, ``before`` is the first look.
    return {
        path: stat
        for path, stat in looks.items()
        if stat != seen.get(path) or not is_pinned(path, stat)
    }


def changed_files(
    source: ByteSource, seen: Mapping[str, FileStat], thread: DaemonThreads, *, retries: int | None
) -> ChangedFileError | None:
    """The error for files that differ from what was ``seen``; ``None`` if all are the same."""
    answers, _ = _answers(source, source.stat, seen, thread, retries)
    changes = {
        path: change
        for path, answer in answers.items()
        if (change := _change(source, seen[path], answer))
    }
    if not changes:
        return None
    return ChangedFileError(
        "files of the checkpoint changed while it was read, so the targets may hold a mixture of"
        " two checkpoints and must not be used: "
        + "; ".join(f"{path!r} {change}" for path, change in changes.items())
        + ". Load again when nothing is writing to this folder",
        tuple(changes),
    )


def _change(source: ByteSource, before: FileStat, after: FileStat | Exception) -> str:
    """What has happened to a file; "" if nothing has."""
    if isinstance(after, Exception):
        return f"cannot be looked at any more ({after})"
    # A storage without versions reports None.
    is_known = None not in (before.version, after.version)
    if before.size == after.size and (before.version == after.version or not is_known):
        return ""
    if (describe := getattr(source, "describe_change", None)) is not None:
        return str(describe(before, after))
    if before.size != after.size:
        return f"had {before.size} bytes and has {after.size}"
    return f"was replaced or written to (version {before.version}, now {after.version})"


def _answers(
    source: ByteSource,
    stat: Stat,
    paths: Collection[str],
    thread: DaemonThreads,
    retries: int | None,
) -> tuple[Answers, int]:
    """The answer for each file, after retries of transient errors; and the number of tries."""
    answers: Answers = {}
    tries = 0
    for _ in chain((1,), pauses(retries, policy=source.limits.retry)):
        tries += 1
        answers |= _ask(stat, paths, thread, source.limits.requests_in_flight or _THREADS)
        errors = {path: it for path, it in answers.items() if isinstance(it, Exception)}
        paths = [path for path, error in errors.items() if is_transient(source, error)]
        if not paths:
            break
    return answers, tries


def _ask(stat: Stat, paths: Collection[str], thread: DaemonThreads, most: int) -> Answers:
    answers: Answers = {}
    left = deque(paths)

    def ask(path: str) -> None:
        try:
            answers[path] = stat(path)
        except Exception as error:  # noqa: BLE001 - reported with the errors of the other files
            answers[path] = error.with_traceback(None)

    def ask_alone() -> None:
        started_s = time.monotonic()
        while left and time.monotonic() - started_s < max(_ALONE_S, len(answers) * _QUICK_LOOK_S):
            ask(left[0])
            left.popleft()
            if not len(answers) % _FILES_A_SIGN_OF_LIFE:
                thread.goes_on()

    if left:
        thread.call(lambda: f"{left[0]!r} was being checked", ask_alone)
    waiting = dict.fromkeys(left)
    patience_s = PATIENCE_WITH_STALLED_S
    with DaemonThreads(
        most, "paraload-look", timeout_s=thread.timeout_s, patience_s=patience_s
    ) as threads:
        for path in left:
            threads.submit(path, ask, path)
        while waiting:
            done = threads.next(
                lambda: (
                    f"checking {counted(len(waiting), 'file')}, {next(iter(waiting))!r} among them"
                )
            )
            done.result()
            del waiting[done.key]
    return {path: answers[path] for path in paths}  # in the order of the paths
