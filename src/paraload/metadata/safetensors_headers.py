"""Headers and indexes of safetensors files, read in parallel, with retries and a deadline.

paths --submit--> daemon threads --stat, head, rest of the header--> Header, or the file's error

The first read takes as much as one more request would cost, and most headers need no second one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

from paraload.errors import CheckpointReadError, FormatError, ItemReadError
from paraload.errors.causes import lines_of
from paraload.formats.safetensors import (
    MAX_HEADER_BYTES,
    Header,
    header_end,
    other_file,
    parse_header,
    strict_json,
)
from paraload.runtime.daemon_threads import PATIENCE_WITH_STALLED_S, DaemonThreads
from paraload.sources import ByteSource, FileStat, Read
from paraload.sources.retrying import Retries, RetryingSource, again

#: Files read at once where the storage does not say how many requests suit it.
_THREADS: Final = 8


class FileReader:
    """Reads small parts of many files. Use as a context manager.

    Args:
        source: of the checkpoint's folder.
        path: of the checkpoint, for errors.
        retries: how often to retry transient read errors; ``None`` as often as suits the storage.
        stall_timeout_s: seconds without progress before a stalled read becomes an error.
        starts: by path, where the safetensors begin in files that hold something else in front.

    Attributes:
        seen: the stat of each file before it was read.
    """

    def __init__(
        self,
        source: ByteSource,
        *,
        path: str,
        retries: int | None,
        stall_timeout_s: float | None,
        starts: Mapping[str, int] | None = None,
    ) -> None:
        self.source = source
        self.path = path
        self.seen: dict[str, FileStat] = {}
        self._retries = Retries(source.limits.retry, retries, stall_timeout_s)
        self._starts = {} if starts is None else starts
        self._threads = DaemonThreads(
            source.limits.requests_in_flight or _THREADS,
            "paraload-header",
            timeout_s=stall_timeout_s,
            patience_s=PATIENCE_WITH_STALLED_S,
        )

    def __enter__(self) -> Self:
        self._threads.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._threads.__exit__(kind, error, traceback)

    def headers(self, paths: Sequence[str]) -> list[Header]:
        """The header of each file; ranges in it count from where the safetensors begin.

        Raises:
            CheckpointReadError: of the one file that has a fault, or of all that have one.
        """
        return self.whole(self.answers(paths, self.header))

    def weight_map(self, path: str) -> dict[str, str]:
        """The file of each tensor, by the index at ``path``."""
        found: dict[str, str] = self.whole(self.answers([path], self._index))[0]
        return found

    def names(self, listed: Callable[[Any], Iterable[str]]) -> set[str]:
        """The files of the folder, as ``listed`` returns them."""

        def names() -> set[str]:
            self._threads.goes_on()
            return set(listed(self.source))

        # RetryingSource does not retry listings.
        read = partial(again, self.source, names, self._retries.retries)
        found: set[str] = self.whole(self.answers([self.path], lambda *_: read()))[0]
        return found

    def answers(
        self, paths: Sequence[str], read: Callable[[ByteSource, str], Any]
    ) -> list[Any | ItemReadError]:
        """What ``read`` returns for each path, or the error that it raises."""
        answers: dict[int, Any] = {}

        def what() -> str:
            waiting = next(number for number in range(len(paths)) if number not in answers)
            return f"{paths[waiting]!r} was being read"

        for number, path in enumerate(paths):
            self._threads.submit(number, read, RetryingSource(self.source, self._retries), path)
        while len(answers) < len(paths):
            answer = self._threads.next(what)
            answers[answer.key] = (
                answer.value if answer.error is None else _located(answer.error, paths[answer.key])
            )
        return [answers[number] for number in range(len(paths))]

    def error_of(self, failures: list[ItemReadError]) -> CheckpointReadError:
        """The one failure, or an error that has all of them."""
        if len(failures) == 1:
            return failures[0]
        lines = "\n".join(f"  - {line}" for line in lines_of(failures))
        return CheckpointReadError(
            f"the checkpoint {self.path!r} cannot be read, and no tensor was:\n{lines}",
            tuple(failures),
        )

    def whole(self, answers: Iterable[Any]) -> list[Any]:
        """The answers, if none is an error."""
        answers = list(answers)
        if failures := [answer for answer in answers if isinstance(answer, ItemReadError)]:
            raise self.error_of(failures)
        return answers

    def header(self, source: ByteSource, path: str) -> Header:
        """The header of a file, read through ``source``."""
        head, file_bytes = self._head(source, path)
        end = header_end(head, file_bytes, path=path)
        if end > len(head):
            head += self._read(source, path, len(head), end)
        return parse_header(head, file_bytes, path=path)

    def _index(self, source: ByteSource, path: str) -> dict[str, str]:
        head, file_bytes = self._head(source, path)
        if file_bytes > MAX_HEADER_BYTES:
            raise _wrong_index(path, f"a file of {file_bytes} bytes")
        if (other := other_file(head, path)) is not None:
            raise other
        data = head + self._read(source, path, len(head), file_bytes)
        try:
            found = strict_json(data).get("weight_map")
        except ValueError as error:
            raise _wrong_index(path, str(error)) from None
        if (
            not isinstance(found, dict)
            or not found
            or not all(isinstance(it, str) for it in found.values())
        ):
            raise _wrong_index(path, "one that does not map names to files")
        return found

    def _head(self, source: ByteSource, path: str) -> tuple[bytes, int]:
        self.seen[path] = stat = source.stat(path)
        self._threads.goes_on()
        file_bytes = max(0, stat.size - self._starts.get(path, 0))
        limits = source.limits
        first_bytes = min(file_bytes, max(limits.head_bytes, limits.max_gap_bytes))
        return self._read(source, path, 0, first_bytes), file_bytes

    def _read(self, source: ByteSource, path: str, start: int, end: int) -> bytes:
        start, end = (at + self._starts.get(path, 0) for at in (start, end))
        data = bytearray(end - start)
        step = source.limits.max_request_bytes
        with memoryview(data) as memory:
            for at in range(0, len(data), step):
                source.read(path, (Read(start + at, (memory[at : at + step],)),))
                self._threads.goes_on()
        return bytes(data)


def _wrong_index(path: str, got: str) -> FormatError:
    return FormatError(
        "this is not the index of safetensors files",
        path=path,
        expected='JSON with a "weight_map"',
        got=got,
        hint="The file is damaged; download or save it again",
    )


def _located(error: BaseException, path: str) -> ItemReadError:
    """The error with its file. Anything but an ``Exception`` ends the program."""
    if isinstance(error, ItemReadError):
        error.path = path if error.path is None else error.path
        return error
    if not isinstance(error, Exception):
        raise error
    known = ItemReadError(f"cannot be read: {type(error).__name__}: {error}", path=path)
    known.__cause__ = error
    return known
