"""The files of a load: whether all are there before it, and still the same after it.

    specs --> seen_files: one look at each file --> {path: FileStat}      before the first byte
    {path: FileStat} --> changed_files: the same look, compared            after the last one

No torch. Files of a storage that only has streams are not looked at: their reads find out one by
one.
"""

from __future__ import annotations

import copy
import os
import posixpath
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from paraload._text import counted
from paraload.core.tasks import RecordSpec
from paraload.errors import ChangedFileError, ItemReadError, UnsafePathError, refuse_to_begin
from paraload.formats.record_checks import check_range
from paraload.runtime.daemon_threads import PATIENCE_WITH_STALLED_S, DaemonThreads
from paraload.sources import ByteSource, FileStat
from paraload.sources.retrying import is_transient, pauses, storage_error
from paraload.workers.read_context import item_error

Look = Callable[[str], FileStat]
Looks = dict[str, FileStat | Exception]


#: A look at a file of a network file system takes a millisecond, and there may be thousands. To a
#: disk it takes some microseconds, and handing it to a thread a hundred.
_LOOKERS: Final = 8
_QUICK_LOOK_S: Final = 1e-4
_ALONE_S: Final = 2e-3
_LOOKS_TOGETHER: Final = 256


def require_inside(specs: Sequence[RecordSpec], *, path: str) -> None:
    """Every path stays inside of ``path``, the checkpoint's folder, as far as its text tells.

    Raises:
        CheckpointReadError: with an :class:`UnsafePathError` for each item whose path does not.
    """
    if failures := path_failures(specs):
        raise refuse_to_begin(list(failures.values()), items=len(specs), path=path)


def path_failures(specs: Sequence[RecordSpec]) -> dict[int, ItemReadError]:
    """The errors of :func:`require_inside`, by item."""
    reasons = {path: _unsafe(path) for path in {spec.path for spec in specs}}
    return {
        spec.item: _of_item(UnsafePathError(f"the path {reason[0]}", hint=reason[1]), spec)
        for spec in specs
        if (reason := reasons[spec.path]) is not None
    }


_OUTSIDE: Final = (
    "The metadata is damaged, or crafted to read other files. If this layout is intended, pass"
    " allow_outside_paths=True"
)
_NO_NAME: Final = "The metadata is damaged, or was written on a system with other file names"


def _unsafe(path: str) -> tuple[str, str] | None:
    """What is wrong with the path, and what to do about it."""
    if "\0" in path:
        return "has a NUL in it", _NO_NAME
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        return f"cannot be the name of a file here ({error.encoding}: {error.reason})", _NO_NAME
    if posixpath.isabs(path):
        return "is absolute", _OUTSIDE
    if posixpath.normpath(path).split("/", 1)[0] == "..":
        return "leaves the folder of the checkpoint", _OUTSIDE
    return None


def seen_files(
    source: ByteSource,
    specs: Sequence[RecordSpec],
    thread: DaemonThreads,
    *,
    path: str,
    retries: int,
) -> dict[str, FileStat]:
    """What the files are now; nothing of a storage that only has streams.

    ``thread`` makes the calls, so that the caller's wait has a deadline.

    Raises:
        CheckpointReadError: with an error for each item whose file is missing, unreadable, or
            shorter than its range.
        StalledReadError: the storage has not answered in time.
    """
    seen, failures = look_at_files(source, specs, thread, retries=retries)
    if failures:
        raise refuse_to_begin(list(failures.values()), items=len(specs), path=path)
    return seen


def look_at_files(
    source: ByteSource, specs: Sequence[RecordSpec], thread: DaemonThreads, *, retries: int
) -> tuple[dict[str, FileStat], dict[int, ItemReadError]]:
    """What :func:`seen_files` returns, and its errors by item."""
    if source.limits.forward_only:
        return {}, {}
    by_file: defaultdict[str, list[RecordSpec]] = defaultdict(list)
    for spec in specs:
        by_file[spec.path].append(spec)
    looks, tries = _look_again(source, _first_look(source), by_file, thread, retries)
    failures: dict[int, ItemReadError] = {}
    seen: dict[str, FileStat] = {}
    for path, look in looks.items():
        if isinstance(look, Exception):
            known = _final_error(source, look, tries)
            failures |= {s.item: _of_item(copy.copy(known), s) for s in by_file[path]}
        else:
            seen[path] = look
            failures |= _outside(by_file[path], look.size)
    return seen, failures


def _first_look(source: ByteSource) -> Look:
    require_readable = getattr(source, "require_readable", None)

    def look(path: str) -> FileStat:
        stat = source.stat(path)
        if require_readable is not None:
            require_readable(path)
        return stat

    return look


def changed_files(
    source: ByteSource, seen: Mapping[str, FileStat], thread: DaemonThreads, *, retries: int
) -> ChangedFileError | None:
    """The error for files that are not what they were; ``None`` if all are."""
    changes = {}
    looks, _ = _look_again(source, source.stat, seen, thread, retries)
    for path, look in looks.items():
        if isinstance(look, Exception):
            changes[path] = f"cannot be looked at any more ({look})"
        elif _is_changed(seen[path], look):
            changes[path] = _change(source, seen[path], look)
    if not changes:
        return None
    return ChangedFileError(
        "files of the checkpoint changed while it was read, so the targets may hold a mixture of"
        " two checkpoints and must not be used: "
        + "; ".join(f"{path!r} {what}" for path, what in changes.items())
        + ". Load again when nothing is writing to this folder",
        tuple(changes),
    )


def _is_changed(before: FileStat, after: FileStat) -> bool:
    if before.size != after.size:
        return True
    # A storage that cannot tell says None.
    return before.version != after.version and None not in (before.version, after.version)


def _change(source: ByteSource, before: FileStat, after: FileStat) -> str:
    if (describe := getattr(source, "describe_change", None)) is not None:
        return str(describe(before, after))
    if before.size != after.size:
        return f"had {before.size} bytes and has {after.size}"
    return f"was replaced or written to (version {before.version}, now {after.version})"


def _look_again(
    source: ByteSource, look: Look, paths: Iterable[str], thread: DaemonThreads, retries: int
) -> tuple[Looks, int]:
    """Looks at each file, again where that failed for the moment; and the most looks at one."""
    looks = _look(look, paths, thread)
    tries, waits = 1, pauses(retries)
    while again := [
        path
        for path, found in looks.items()
        if isinstance(found, Exception) and is_transient(source, found)
    ]:
        if not (number := next(waits, 0)):
            break
        looks |= _look(look, again, thread)
        tries = number
    return looks, tries


def _look(first: Look, paths: Iterable[str], thread: DaemonThreads) -> Looks:
    def look(path: str) -> FileStat | Exception:
        try:
            return first(path)
        except Exception as error:  # noqa: BLE001 - told together with those of the other files
            error.__traceback__ = None
            return error

    looks: Looks = {}
    left = deque(paths)

    def look_alone() -> None:
        started_s = time.monotonic()
        while left and time.monotonic() - started_s < max(_ALONE_S, len(looks) * _QUICK_LOOK_S):
            path = left[0]
            looks[path] = look(path)
            left.popleft()
            if not len(looks) % _LOOKS_TOGETHER:
                thread.goes_on()

    if left:
        thread.call(lambda: f"{left[0]!r} was being checked", look_alone)
    if left:  # this storage takes its time
        looks |= _look_together(look, left, thread.timeout_s)
    return looks


def _look_together(
    look: Callable[[str], FileStat | Exception],
    paths: Collection[str],
    timeout_s: float | None,
) -> Looks:
    waiting = dict.fromkeys(paths)
    looks: Looks = {}

    def what() -> str:
        return f"checking {counted(len(waiting), 'file')}, {next(iter(waiting))!r} among them"

    patience_s = PATIENCE_WITH_STALLED_S
    with DaemonThreads(
        _LOOKERS, "paraload-look", timeout_s=timeout_s, patience_s=patience_s
    ) as threads:
        for path in waiting:
            threads.submit(path, look, path)
        while waiting:
            answer = threads.next(what)
            looks[answer.key] = answer.result()
            del waiting[answer.key]
    return {path: looks[path] for path in paths}  # in order, whatever the order of the answers


def _final_error(source: ByteSource, error: Exception, tries: int) -> ItemReadError:
    transient = is_transient(source, error)
    known = item_error(storage_error(error, start=None, end=None, tries=tries, transient=transient))
    known.traceback_text = ""  # of a look at a file it says nothing more
    known.start = known.end = None
    return known


def _outside(specs: Iterable[RecordSpec], size_bytes: int) -> dict[int, ItemReadError]:
    failures = {}
    for spec in specs:
        if 0 <= spec.start <= spec.end <= size_bytes:
            continue
        try:
            check_range(spec, size_bytes)
        except ItemReadError as error:
            failures[spec.item] = _of_item(error.with_traceback(None), spec)
    return failures


def _of_item(error: ItemReadError, spec: RecordSpec) -> ItemReadError:
    error.locate(fqn=spec.fqn, path=spec.path, start=spec.start, end=spec.end)
    return error
