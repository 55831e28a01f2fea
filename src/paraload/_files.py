"""The files of a load: whether all are there before it, and still the same after it.

    specs --> seen_files: one look at each file --> {path: FileIdentity}      before the first byte
    {path: FileIdentity} --> changed_files: the same look, compared            after the last one

No torch. A storage that cannot tell what a file is (streams) is not asked for more: its reads find
out one by one.
"""

from __future__ import annotations

import copy
import os
import posixpath
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final

from paraload._checks import check_range
from paraload._daemons import PATIENCE_WITH_STALLED_S, DaemonThreads
from paraload._retry import is_transient, pauses, storage_error
from paraload._text import counted
from paraload._work import item_error
from paraload.errors import (
    ChangedFileError,
    ItemReadError,
    UnsafePathError,
    refuse_to_begin,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Protocol

    from paraload._task import RecordSpec
    from paraload.sources._base import ByteSource, FileIdentity

    Looks = dict[str, FileIdentity | Exception | None]

    class _Looked(Protocol):
        def identify(self, path: str) -> FileIdentity | None: ...


__all__ = ["changed_files", "look_at_files", "path_failures", "require_inside", "seen_files"]

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
) -> dict[str, FileIdentity]:
    """What the files are now, of those that the storage can tell it of.

    Args:
        source: has them.
        specs: the records in them.
        thread: makes the system calls, so that the caller's wait has a deadline.
        path: of the checkpoint, for texts.
        retries: how often to look again at files that are not there: just after a write, a network
            file system may not show them yet.

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
) -> tuple[dict[str, FileIdentity], dict[int, ItemReadError]]:
    """What :func:`seen_files` returns, and its errors by item."""
    by_file: defaultdict[str, list[RecordSpec]] = defaultdict(list)
    for spec in specs:
        by_file[spec.path].append(spec)
    looks, tries = _look_again(_FirstLook(source), by_file, thread, retries)
    failures: dict[int, ItemReadError] = {}
    seen: dict[str, FileIdentity] = {}
    for path, look in looks.items():
        if isinstance(look, Exception):
            failures |= _all_failed(look, by_file[path], tries)
        elif look is not None:
            seen[path] = look
            failures |= _outside(by_file[path], look.size_bytes)
    return seen, failures


class _FirstLook:
    """Identifies files, and requires that they can be opened for reading."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._require_readable = getattr(source, "require_readable", None)

    def identify(self, path: str) -> FileIdentity | None:
        """As the source does.

        Raises:
            OSError: the file exists, but the system refuses to open it.
        """
        identity = self._source.identify(path)
        if identity is not None and self._require_readable is not None:
            self._require_readable(path)
        return identity


def changed_files(
    source: ByteSource, seen: Mapping[str, FileIdentity], thread: DaemonThreads, *, retries: int
) -> ChangedFileError | None:
    """The error for files that are not what they were; ``None`` if all are."""
    changes = {}
    looks, _ = _look_again(source, seen, thread, retries)
    for path, look in looks.items():
        if isinstance(look, Exception):
            changes[path] = f"cannot be looked at any more ({look})"
        elif look is not None and (what := seen[path].changes_to(look)):
            changes[path] = what
    if not changes:
        return None
    return ChangedFileError(
        "files of the checkpoint changed while it was read, so the targets may hold a mixture of"
        " two checkpoints and must not be used: "
        + "; ".join(f"{path!r} {what}" for path, what in changes.items())
        + ". Load again when nothing is writing to this folder",
        tuple(changes),
    )


def _look_again(
    source: _Looked, paths: Iterable[str], thread: DaemonThreads, retries: int
) -> tuple[Looks, int]:
    """Looks at each file, more of them where one failed for the moment; and how many there were."""
    looks = _look(source, paths, thread)
    tries, waits = 1, pauses(retries)
    while again := [path for path, look in looks.items() if _is_worth_a_look(look)]:
        if not (number := next(waits, 0)):
            break
        looks |= _look(source, again, thread)
        tries = number
    return looks, tries


def _look(source: _Looked, paths: Iterable[str], thread: DaemonThreads) -> Looks:
    def look(path: str) -> FileIdentity | Exception | None:
        try:
            return source.identify(path)
        except Exception as error:  # noqa: BLE001 - told together with those of the other files
            return item_error(error) if not isinstance(error, OSError) else error

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
    look: Callable[[str], FileIdentity | Exception | None],
    paths: Iterable[str],
    timeout_s: float | None,
) -> Looks:
    looks: Looks = dict.fromkeys(paths)  # fixes the order: answers come in any
    waiting = dict.fromkeys(looks)

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
    return looks


def _is_worth_a_look(look: object) -> bool:
    return isinstance(look, OSError) and is_transient(look)


def _all_failed(
    error: Exception, specs: Iterable[RecordSpec], tries: int
) -> dict[int, ItemReadError]:
    if isinstance(error, OSError):
        error = storage_error(error, start=None, end=None, tries=tries)
    known = item_error(error)
    known.traceback_text = ""  # of a look at a file it says nothing more
    known.start = known.end = None
    return {spec.item: _of_item(copy.copy(known), spec) for spec in specs}


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
