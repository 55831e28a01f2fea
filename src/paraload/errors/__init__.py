"""The errors of paraload.

A load that fails raises one :class:`CheckpointReadError`. Its ``failures`` has an
:class:`ItemReadError` for each item that could not be read; its text has a line for each cause in
each file. A wrong call is an :class:`InvalidOptionError`, which is not a ``CheckpointReadError``.

All errors pickle, with every attribute: they travel between processes and ranks. Tracebacks of
workers travel as text.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, Self

from paraload._text import counted, printable, printable_lines, with_hint
from paraload.errors.causes import lines_of

#: The hint of errors about damaged bytes.
DAMAGED_HINT: Final = "The file changed after it was written; restore it or load another checkpoint"


class CheckpointReadError(Exception):
    """A checkpoint could not be read, or not completely.

    Args:
        message: what happened, for people.
        failures: an error for each item that failed; empty if the load failed as a whole.

    Attributes:
        nothing_was_read: whether the targets are known to be as they were before the load.
        advice: what to do about all failures together, on lines of its own at the end of the text.
    """

    nothing_was_read = False
    advice = ""

    @property
    def by_rank(self) -> Mapping[int, BaseException]:
        """The error of each rank that failed, if several ranks load together."""
        return {}

    def __init__(self, message: str, failures: tuple[ItemReadError, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures

    def __str__(self) -> str:
        return printable_lines(super().__str__())  # names in it may have control characters

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call cls(*args), but the constructors here take other arguments.
        state = {**vars(self), "args": self.args}
        if isinstance(self, OSError):
            state["errno"] = self.errno
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]  # typeshed


class ItemReadError(CheckpointReadError):
    """One item of the plan could not be read. All arguments are attributes, too.

    Args:
        problem: what is wrong, in a few words.
        fqn: fully qualified name of the tensor or object; ``None`` if it is not known.
        path: the file, relative to the checkpoint.
        start: first byte of the range in the file.
        end: one past its last byte.
        expected: what should be there.
        got: what is there.
        hint: the next step for the user.
        traceback_text: the traceback of the worker, if there is one.

    Attributes:
        ranks: the ranks that failed to read the item, if several load together.
    """

    ranks: tuple[int, ...] = ()

    def __init__(  # noqa: PLR0913 - the parts of a load, each made elsewhere
        self,
        problem: str,
        *,
        fqn: str | None = None,
        path: str | None = None,
        start: int | None = None,
        end: int | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
        traceback_text: str = "",
    ) -> None:
        super().__init__(problem)
        self.problem, self.fqn = problem, fqn
        self.path, self.start, self.end = path, start, end
        self.expected, self.got, self.hint = expected, got, hint
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        where = f"{self.fqn!r}: " if self.fqn is not None else ""
        text = f"{where}{self.problem}"
        if self.path is not None:
            has_range = self.start is not None and self.end is not None
            bytes_text = f", bytes [{self.start}, {self.end})" if has_range else ""
            text += f" (file {self.path!r}{bytes_text})"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.got is not None:
            text += f", got {self.got}"
        return printable(with_hint(text, self.hint))

    def locate(self, *, path: str, start: int, end: int, fqn: str | None = None) -> None:
        """Fill in the name, file and range where they are unknown."""
        self.fqn = fqn if self.fqn is None else self.fqn
        self.path = path if self.path is None else self.path
        if self.start is None or self.end is None:
            self.start, self.end = start, end


class MissingFileError(ItemReadError, FileNotFoundError):
    """A file that the metadata names does not exist."""


class AliasedTargetError(ItemReadError, ValueError):
    """Two targets share memory and were saved with different values (with ``strict=True``)."""


class MissingEntryError(ItemReadError, KeyError):
    """The metadata does not say where an item is stored."""


class MissingKeyError(ItemReadError, KeyError):
    """The state dict has a name that is not in the checkpoint."""


class KindMismatchError(ItemReadError, TypeError):
    """The checkpoint has a tensor where the state dict has another object."""


class CoverageError(ItemReadError, ValueError):
    """The stored chunks of a tensor leave a hole or overlap."""


class ShortFileError(ItemReadError, EOFError):
    """A file ends before the bytes that the metadata promises."""

    @classmethod
    def past_end(cls, path: str, start: int, end: int, size: int) -> Self:
        """The error of reading bytes ``[start, end)`` of a file of ``size`` bytes."""
        return cls(
            "file ends too early",
            path=path,
            start=start,
            end=end,
            expected=f"at least {end} bytes",
            got=f"{size} bytes",
            hint="The file was cut, or is still being written",
        )


class StorageReadError(ItemReadError, OSError):
    """The system could not read a file, even after ``retries``; ``errno`` has the reason."""


class UnsafePathError(ItemReadError, ValueError):
    """The metadata names a file outside of the checkpoint's folder; see ``allow_outside_paths``."""


class ChecksumMismatchError(ItemReadError):
    """The CRC-32 of a record differs from the one that was written with it."""


class FormatError(ItemReadError, ValueError):
    """The bytes of a record violate their format."""


class ShapeMismatchError(ItemReadError, ValueError):
    """The shapes of the stored tensor, the planned slice and the target do not match."""


class TargetMemoryError(ItemReadError, ValueError):
    """A target has no memory: it is on the meta device, or its storage was freed or shrunk."""


class DtypeMismatchError(ItemReadError, TypeError):
    """A stored tensor would lose its imaginary part, or be converted with ``strict=True``."""


class UnsafeObjectError(ItemReadError):
    """A tensor or object needs code that is not allowed. None of it was run."""


class TransformError(ItemReadError):
    """A stream transform (compression, encryption, a hook) is unknown or failed."""


class MetadataError(CheckpointReadError):
    """The ``.metadata`` of a checkpoint, ``path``, cannot be read, or is not metadata."""

    nothing_was_read = True

    def __init__(self, problem: str, path: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class MissingMetadataError(MetadataError, FileNotFoundError):
    """The checkpoint has no ``.metadata``."""


class UnsafeMetadataError(MetadataError):
    """The ``.metadata`` names a class or function that is not allowed. None of its code was run.

    ``global_name`` is the class or function with its module.
    """

    def __init__(self, problem: str, path: str, global_name: str) -> None:
        super().__init__(problem, path)
        self.global_name = global_name


class ChangedFileError(CheckpointReadError):
    """The files ``paths`` of the checkpoint changed during the load."""

    def __init__(self, message: str, paths: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.paths = paths


class StalledReadError(CheckpointReadError, TimeoutError):
    """A read did not return within ``stall_timeout_s``."""


class WorkerDiedError(CheckpointReadError):
    """A worker process ended without returning a result."""


class InvalidOptionError(ValueError):
    """An option has an invalid value: the call is wrong, not the checkpoint."""


class IncompatibleTorchError(RuntimeError):
    """This version of torch lacks something that paraload needs, or has changed it."""


class HookNotPicklableError(InvalidOptionError, TypeError):
    """A hook cannot be sent to worker processes because it does not pickle."""


class TorchVersionWarning(UserWarning):
    """The installed torch was never tested and lacks a private name; the text says what is lost."""


#: Most distinct worker tracebacks under the final error; each failure has its own.
_NOTED_TRACEBACKS: Final = 3


def summarize(failures: list[ItemReadError], *, items: int, path: str) -> CheckpointReadError:
    """The error that ends a load of ``items`` items, some of which failed."""
    return _error_of(
        f"{len(failures)} of {counted(items, 'item')} of the checkpoint {path!r} could not be read;"
        " the targets are partly filled and must not be used:",
        failures,
    )


def refuse_to_begin(
    failures: Sequence[ItemReadError], *, items: int, path: str, advice: str = ""
) -> CheckpointReadError:
    """The error of a load that cannot succeed, raised before the first read."""
    error = _error_of(
        f"the checkpoint {path!r} cannot fill {len(failures)} of {counted(items, 'item')}; nothing"
        " was read, and the targets are as they were:",
        failures,
        advice,
    )
    error.nothing_was_read, error.advice = True, advice
    return error


def _error_of(
    head: str, failures: Sequence[ItemReadError], advice: str = ""
) -> CheckpointReadError:
    lines = [head, *(f"  - {line}" for line in lines_of(failures))]
    error = CheckpointReadError("\n".join(lines) + advice, tuple(failures))
    noted: dict[str, str | None] = {}
    for failure in failures:
        if _wraps_another(failure) and (text := failure.traceback_text.strip()):
            noted.setdefault(text, failure.fqn)
    for text, fqn in islice(noted.items(), _NOTED_TRACEBACKS):
        error.add_note(f"in the worker that read {fqn!r}:\n{printable_lines(text)}")
    return error


def _wraps_another(failure: ItemReadError) -> bool:
    """Whether it wraps an exception: only then does the traceback say more than the text."""
    # Errors of the user's own transforms have no hint; ours have one.
    return type(failure) is ItemReadError or (
        type(failure) is TransformError and failure.hint is None
    )
