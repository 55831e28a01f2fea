"""The errors of ``paraload.load`` under a process group.

Each rank sends its error to the others, and all raise one with the failures of all ranks.
"""

import pickle
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from itertools import chain
from traceback import StackSummary, format_exception_only
from typing import Any, Final, ParamSpec, TypeVar

from torch.distributed.checkpoint.api import CheckpointException

from paraload._text import counted, printable_lines, ranks_text
from paraload.errors import CheckpointReadError, ItemReadError
from paraload.errors.causes import lines_of

P = ParamSpec("P")
T = TypeVar("T")

#: torch's form: errors by rank, with their tracebacks.
ByRank = dict[int, tuple[BaseException, StackSummary]]

#: At most this many errors without items, such as those of metadata, are listed in the text.
_LISTED_ERRORS: Final = 10


def raising_portable(step: Callable[P, T]) -> Callable[P, T]:
    """``step``, whose errors are :func:`portable`."""

    @wraps(step)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return step(*args, **kwargs)
        except BaseException as error:
            if (sent := portable(error)) is error:
                raise
            raise sent.with_traceback(error.__traceback__) from None

    return call


def portable(error: BaseException) -> BaseException:
    """``error``, or one with its text if it cannot be sent to another rank.

    Ranks pickle their errors for each other. One that cannot be pickled, or not unpickled, as where
    ``__init__`` takes two arguments and passes on one, would leave the other ranks waiting forever.
    """
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - pickling runs any code
        kind = RuntimeError if isinstance(error, Exception) else BaseException
        return kind("".join(format_exception_only(error)).rstrip())
    return error


class RankFailures(tuple[ItemReadError, ...]):  # noqa: SLOT001 - a tuple cannot have slots
    """The failed items of all ranks; ``keys``, ``values`` and ``items`` are those of torch's.

    The attribute ``failures`` is a tuple of items in :class:`~paraload.CheckpointReadError` and a
    dict of ranks in torch's ``CheckpointException``. Programs may have been written for either.
    """

    by_rank: ByRank

    def keys(self) -> Iterable[int]:
        return self.by_rank.keys()

    def values(self) -> Iterable[tuple[BaseException, StackSummary]]:
        return self.by_rank.values()

    def items(self) -> Iterable[tuple[int, tuple[BaseException, StackSummary]]]:
        return self.by_rank.items()


class RanksReadError(CheckpointReadError, CheckpointException):
    """A checkpoint could not be loaded by all ranks. Every rank raises it, with the same text.

    Attributes:
        failures: an error for each item that failed on any rank; its ``ranks`` says on which.
        by_rank: the error of each rank that failed.
    """

    # Hides torch's property of this name, which cannot be set.
    failures = RankFailures()  # type: ignore[assignment]

    def __init__(self, message: str, failures: RankFailures) -> None:
        CheckpointReadError.__init__(self, message, failures)

    def __str__(self) -> str:
        return printable_lines(str(self.args[0]))  # torch's has tracebacks of all ranks

    @property
    def by_rank(self) -> Mapping[int, BaseException]:
        """The error of each rank that failed."""
        return {rank: error for rank, (error, _) in self.failures.items()}


def ranks_error(by_rank: ByRank, *, path: str, world: int, before_reading: bool) -> RanksReadError:
    """Merge the errors of the ranks into one.

    ``world`` is the number of ranks; ``before_reading``: no rank had started to read.
    """
    errors = {rank: error for rank, (error, _) in sorted(by_rank.items())}
    is_untouched = before_reading or (
        len(errors) == world
        and all(getattr(error, "nothing_was_read", False) for error in errors.values())
    )
    state = (
        "nothing was read, and the targets are as they were"
        if is_untouched
        else "the targets are partly filled and must not be used"
    )
    which = ranks_text(errors) + (f" of {world}" if len(errors) < world else "")
    failures = _merged(errors)
    lines = [
        *lines_of(failures, ranks=errors),
        *_lines_without_items(errors),
    ]
    advised = (getattr(error, "advice", "").split("\n") for error in errors.values())
    advice = "\n".join(dict.fromkeys(chain.from_iterable(advised)))
    head = f"{which} could not load the checkpoint {path!r}; {state}:"
    text = "\n".join([head, *(f"  - {line}" for line in lines)])
    found = RankFailures(failures)
    found.by_rank = by_rank
    made = RanksReadError(f"{text}{advice}", found)
    made.nothing_was_read, made.advice = is_untouched, advice
    # One rank's notes are enough: they are tracebacks, and all ranks may have hundreds of them.
    noted = (getattr(error, "__notes__", None) for error in errors.values())
    for note in next(filter(None, noted), []):
        made.add_note(note)
    return made


def _merged(errors: Mapping[int, BaseException]) -> list[ItemReadError]:
    """The failed items of all ranks; one that failed in the same way on several is listed once."""
    merged: dict[Any, ItemReadError] = {}
    ranks: dict[Any, list[int]] = {}
    for rank, error in errors.items():
        for failure in error.failures if isinstance(error, CheckpointReadError) else ():
            place = failure.fqn, failure.path, failure.start, failure.end
            key = type(failure), failure.problem, place, failure.expected, failure.got
            merged.setdefault(key, failure)
            ranks.setdefault(key, []).append(rank)
    for key, failure in merged.items():
        failure.ranks = tuple(ranks[key])
    return list(merged.values())


def _lines_without_items(errors: Mapping[int, BaseException]) -> list[str]:
    grouped: dict[str, list[int]] = {}
    for rank, error in errors.items():
        if not getattr(error, "failures", ()):
            grouped.setdefault(f"{type(error).__name__}: {error}", []).append(rank)
    lines = [
        _indented(text if len(ranks) == len(errors) else f"{ranks_text(ranks)}: {text}")
        for text, ranks in grouped.items()
    ]
    if hidden := list(chain.from_iterable(list(grouped.values())[_LISTED_ERRORS:])):
        lines[_LISTED_ERRORS:] = [
            f"and {counted(len(hidden), 'other error')}; this error's `by_rank` has all"
        ]
    return lines


def _indented(text: str) -> str:
    return printable_lines(text).replace("\n", "\n    ")
