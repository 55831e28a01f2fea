"""The errors of paraload, each of them picklable with everything it says.

A load that fails raises one :class:`CheckpointReadError`. Its ``failures`` hold an
:class:`ItemReadError` for every item that could not be read; its text has a line for each cause in
each file. A wrong call is an :class:`InvalidOptionError`, unrelated to the checkpoint. Errors
cross process and rank borders by pickle, so none of them keeps a lock, a tensor or a live
traceback: the traceback of the worker travels as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from paraload._causes import lines_of
from paraload._text import counted, printable, printable_lines, with_hint

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AliasedTargetError",
    "ChangedFileError",
    "CheckpointReadError",
    "ChecksumMismatchError",
    "CoverageError",
    "DtypeMismatchError",
    "FormatError",
    "HookNotPicklableError",
    "InvalidOptionError",
    "ItemReadError",
    "KindMismatchError",
    "MetadataError",
    "MissingEntryError",
    "MissingFileError",
    "MissingKeyError",
    "MissingMetadataError",
    "ShapeMismatchError",
    "ShortFileError",
    "StalledReadError",
    "StorageReadError",
    "TargetMemoryError",
    "TransformError",
    "UnsafeMetadataError",
    "UnsafeObjectError",
    "UnsafePathError",
    "WorkerDiedError",
]

#: What to do about bytes that are not those that were written.
DAMAGED_HINT: Final = "The file changed after it was written; restore it or load another checkpoint"


class CheckpointReadError(Exception):
    """A checkpoint could not be read completely.

    Args:
        message: what happened, as one text for a person.
        failures: one error for each item that failed; empty when the load failed as a whole.
    """

    def __init__(self, message: str, failures: tuple[ItemReadError, ...] = ()) -> None:
        super().__init__(message)
        self.failures = failures

    def __str__(self) -> str:
        """The message, with escapes for control characters in names."""
        return printable_lines(super().__str__())

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException would call cls(*args) alone; a frozen rebuild keeps every attribute and the
        # notes without asking subclasses to repeat their constructor's signature here.
        state = self.__dict__.copy()
        if isinstance(self, OSError):
            state["errno"] = self.errno  # which is in no __dict__
        return _rebuild, (type(self), self.args, state)


def _rebuild(
    cls: type[CheckpointReadError], args: tuple[Any, ...], state: dict[str, Any]
) -> CheckpointReadError:
    error = cls.__new__(cls, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class ItemReadError(CheckpointReadError):
    """One item of the plan could not be read.

    Args:
        problem: what is wrong, in a few words.
        fqn: fully qualified name of the tensor or object; ``None`` where it is not known yet.
        path: the file, relative to the checkpoint.
        start: first byte of the range in question, in the file.
        end: one past the last byte.
        expected: what should have been there.
        got: what was there.
        hint: the next step for the user.
        traceback_text: the traceback of the worker that met the problem.
    """

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
        self.problem = problem
        self.fqn = fqn
        self.path = path
        self.start = start
        self.end = end
        self.expected = expected
        self.got = got
        self.hint = hint
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        """Everything that is known, on one line."""
        where = f"{self.fqn!r}: " if self.fqn is not None else ""
        text = f"{where}{self.problem}"
        if self.path is not None:
            text += f" (file {self.path!r}"
            if self.start is not None and self.end is not None:
                text += f", bytes [{self.start}, {self.end})"
            text += ")"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.got is not None:
            text += f", got {self.got}"
        return printable(with_hint(text, self.hint))

    def locate(self, *, path: str, start: int, end: int, fqn: str | None = None) -> None:
        """Fill in the place of the error where the code that raised it did not know it."""
        self.fqn = fqn if self.fqn is None else self.fqn
        self.path = path if self.path is None else self.path
        if self.start is None or self.end is None:
            self.start, self.end = start, end


class MissingFileError(ItemReadError, FileNotFoundError):
    """A file that the metadata names is not there."""


class AliasedTargetError(ItemReadError, ValueError):
    """Two targets share memory and were saved with different values."""


class MissingEntryError(ItemReadError, KeyError):
    """The metadata does not say where an item is stored."""


class MissingKeyError(ItemReadError, KeyError):
    """The state dict has a name that the checkpoint does not have."""


class KindMismatchError(ItemReadError, TypeError):
    """The checkpoint has a tensor where the state dict has another object."""


class CoverageError(ItemReadError, ValueError):
    """The chunks of a tensor leave some of its elements out, or have some of them twice."""


class ShortFileError(ItemReadError, EOFError):
    """A file ends before the bytes that the metadata promises."""


class StorageReadError(ItemReadError, OSError):
    """The system could not read a file, however often it was asked; ``errno`` says why."""


class UnsafePathError(ItemReadError, ValueError):
    """The metadata names a file that is not inside of the checkpoint's folder."""


class ChecksumMismatchError(ItemReadError):
    """The bytes of a record do not have the CRC-32 that was written with them."""


class FormatError(ItemReadError, ValueError):
    """The bytes are not what the format prescribes."""


class ShapeMismatchError(ItemReadError, ValueError):
    """The stored tensor, the planned slice and the target do not fit each other."""


class TargetMemoryError(ItemReadError, ValueError):
    """A target has no memory: it is on the meta device, or its storage was freed or shrunk."""


class DtypeMismatchError(ItemReadError, TypeError):
    """The stored tensor would have to be converted to a dtype that cannot hold it, or must not."""


class UnsafeObjectError(ItemReadError):
    """An object in the checkpoint needs code that is not allowed; none of it was run."""


class TransformError(ItemReadError):
    """A stream transform (compression, encryption, a hook) is unknown or failed."""


class MetadataError(CheckpointReadError):
    """The ``.metadata`` of a checkpoint cannot be read, or is none.

    Args:
        problem: what is wrong with it, and what to do.
        path: the file.
    """

    def __init__(self, problem: str, path: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class MissingMetadataError(MetadataError, FileNotFoundError):
    """There is no ``.metadata``."""


class UnsafeMetadataError(MetadataError):
    """The ``.metadata`` asks for code that metadata has no need of; none of it was run.

    Args:
        problem: what it asks for, and how to allow it.
        path: the file.
        global_name: the class or function that it names, with its module.
    """

    def __init__(self, problem: str, path: str, global_name: str) -> None:
        super().__init__(problem, path)
        self.global_name = global_name


class ChangedFileError(CheckpointReadError):
    """Files of the checkpoint are not what they were when the load began.

    Args:
        message: which, and what changed.
        paths: the files.
    """

    def __init__(self, message: str, paths: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.paths = paths


class StalledReadError(CheckpointReadError, TimeoutError):
    """A read has not come back for ``stall_timeout_s``."""


class WorkerDiedError(CheckpointReadError):
    """A worker process ended without an answer."""


class InvalidOptionError(ValueError):
    """An option has an invalid value: the call is wrong, not the checkpoint."""


class HookNotPicklableError(InvalidOptionError, TypeError):
    """A hook cannot be sent to worker processes."""


#: Distinct worker tracebacks shown under the final error; each failure carries its own.
_NOTED_TRACEBACKS: Final = 3


def summarize(failures: list[ItemReadError], *, items: int, path: str) -> CheckpointReadError:
    """The one error that ends a load: every cause, its items, and unexpected tracebacks."""
    return _error_of(
        f"{len(failures)} of {counted(items, 'item')} of the checkpoint {path!r} could not be read;"
        " the targets are partly filled and must not be used:",
        failures,
    )


def refuse_to_begin(
    failures: Sequence[ItemReadError], *, items: int, path: str
) -> CheckpointReadError:
    """The one error of a load in which nothing was read, since it could not have ended well."""
    return _error_of(
        f"the checkpoint {path!r} cannot fill {len(failures)} of {counted(items, 'item')}; nothing"
        " was read, and the targets are as they were:",
        failures,
    )


def _error_of(head: str, failures: Sequence[ItemReadError]) -> CheckpointReadError:
    lines = [head, *(f"  - {line}" for line in lines_of(failures))]
    error = CheckpointReadError("\n".join(lines), tuple(failures))
    noted: set[str] = set()
    for failure in filter(_is_unexpected, failures):
        text = failure.traceback_text.strip()
        if text and text not in noted and len(noted) < _NOTED_TRACEBACKS:
            noted.add(text)
            error.add_note(f"in the worker that read {failure.fqn!r}:\n{printable_lines(text)}")
    return error


def _is_unexpected(failure: ItemReadError) -> bool:
    """Whether it wraps another exception: only then does its traceback say more than its text.

    A failure of the user's own transform has no hint; a failure of ours has one.
    """
    kind = type(failure)
    return kind is ItemReadError or (kind is TransformError and failure.hint is None)
