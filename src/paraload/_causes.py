"""Describes many failures in a few lines: one line for each cause in each file.

A missing file fails all of its items. A line for one item says everything about it; a line for
several items says what they have in common. Failures without a file, such as missing keys, have
little in common: a few get a line each, and for many we list the names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from paraload._text import counted, printable, with_hint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from paraload.errors import ItemReadError

    #: File, class of the error, problem.
    Cause = tuple[str | None, type[ItemReadError], str]

__all__ = ["lines_of"]

_LISTED_CAUSES: Final = 20
_LISTED_NAMES: Final = 3
#: Failures without a file: up to the first number get a line each; above it, one line lists as many
#: names as the second number.
_SPELLED_OUT: Final = 10
_LISTED_WITHOUT_FILE: Final = 100
_PUNCTUATION: Final = "'\"`.,:;()[]"
#: Numbers and tuples of numbers.
_NUMBERS: Final = re.compile(r"[\d,()\[\] ]+")


def lines_of(failures: Iterable[ItemReadError]) -> list[str]:
    """A bounded number of lines for ``failures``, in order."""
    groups: dict[Cause, list[ItemReadError]] = {}
    for failure in failures:
        groups.setdefault(_cause(failure), []).append(failure)
    shown = set(_one_of_each_file_first(groups)[:_LISTED_CAUSES])
    lines = [line for cause, group in groups.items() if cause in shown for line in _lines(group)]
    if hidden := [cause for cause in groups if cause not in shown]:
        items = sum(len(groups[cause]) for cause in hidden)
        files = len({path for path, *_ in hidden if path is not None})
        where = f" in {counted(files, 'file')}" if files else ""
        lines.append(f"and {counted(items, 'more item')}{where}; this error's `failures` has all")
    return lines


def _cause(failure: ItemReadError) -> Cause:
    """Equal for failures that differ only in their item: its name, its sizes, its offsets."""
    problem, name = failure.problem, failure.fqn
    if name and name in problem:
        words = problem.replace(repr(name), "").split(" ")
        problem = " ".join(word for word in words if word.strip(_PUNCTUATION) != name)
    return failure.path, type(failure), _NUMBERS.sub("", problem)


def _one_of_each_file_first(causes: Iterable[Cause]) -> list[Cause]:
    """Order causes so that a file with many causes does not hide the other files."""
    firsts: dict[str | None, Cause] = {}
    later = [cause for cause in causes if firsts.setdefault(cause[0], cause) is not cause]
    return [*firsts.values(), *later]


def _lines(group: Sequence[ItemReadError]) -> list[str]:
    """The lines for one cause: all about a single item, or what several have in common."""
    names = {failure.fqn for failure in group}
    is_few = group[0].path is None and len(group) == len(names) <= _SPELLED_OUT
    if len(group) == 1 or is_few:
        return [f"{type(failure).__name__}: {failure}" for failure in group]
    return [_line(group)]


def _line(group: Sequence[ItemReadError]) -> str:
    first = group[0]
    text = f"{type(first).__name__}: {first.problem} ({_where(group)}{_names(group)})"
    has_common = False
    for label, attribute in (("; expected", "expected"), (", got", "got")):
        values = {getattr(failure, attribute) for failure in group}
        if len(values) == 1 and None not in values:
            text += f"{label} {values.pop()}"
            has_common = True
    if not has_common and None not in (first.expected, first.got):
        text += f"; for {first.fqn!r}, expected {first.expected}, got {first.got}"
    hints = {failure.hint for failure in group}
    return printable(with_hint(text, hints.pop() if len(hints) == 1 else None))


def _where(group: Sequence[ItemReadError]) -> str:
    """The file and the range that covers all items; a missing file needs no range."""
    first = group[0]
    if first.path is None:
        return ""
    starts = [failure.start for failure in group if failure.start is not None]
    ends = [failure.end for failure in group if failure.end is not None]
    if not starts or not ends or isinstance(first, FileNotFoundError):
        return f"file {first.path!r}, "
    return f"file {first.path!r}, bytes [{min(starts)}, {max(ends)}), "


def _names(group: Sequence[ItemReadError]) -> str:
    names = list(dict.fromkeys(failure.fqn for failure in group if failure.fqn is not None))
    text = counted(len(group), "item")
    if not names:
        return text
    if len(names) < len(group):
        text += f" of {counted(len(names), 'tensor')}"
    listed = _LISTED_WITHOUT_FILE if group[0].path is None else _LISTED_NAMES
    more = len(names) - listed
    shown = ", ".join(map(repr, names[:listed]))
    return f"{text}: {shown}{f' and {more} more' if more > 0 else ''}"
