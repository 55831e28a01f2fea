"""Describes many failures in a few lines: one line for each cause in each file.

A missing file fails all of its items. The line of a single item has everything about it; the line
of several items has what they have in common. Failures without a file, such as missing keys, have
little in common: a few get a line each, and many are listed by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

from paraload._text import counted, printable, with_hint

#: An ``ItemReadError``, which is defined in a module that imports this one.
Failure: TypeAlias = Any
#: File, class of the error, problem.
Cause: TypeAlias = tuple[str | None, type, str]

_LISTED_CAUSES: Final = 20
_LISTED_NAMES: Final = 3
#: Up to this many failures without a file get a line each ...
_SPELLED_OUT: Final = 10
#: ... and of more, one line lists this many names.
_LISTED_WITHOUT_FILE: Final = 100
_PUNCTUATION: Final = "'\"`.,:;()[]"
#: Numbers and tuples of numbers.
_NUMBERS: Final = re.compile(r"[\d,()\[\] ]+")


def lines_of(failures: Iterable[Failure]) -> list[str]:
    """A bounded number of lines for ``failures``, in order."""
    groups: dict[Cause, list[Failure]] = {}
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


def _cause(failure: Failure) -> Cause:
    """Equal for failures that differ only in their item's name, sizes and offsets."""
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


def _lines(group: Sequence[Failure]) -> list[str]:
    names = {failure.fqn for failure in group}
    is_few = group[0].path is None and len(group) == len(names) <= _SPELLED_OUT
    if len(group) == 1 or is_few:
        return [f"{type(failure).__name__}: {failure}" for failure in group]
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
    return [printable(with_hint(text, hints.pop() if len(hints) == 1 else None))]


def _where(group: Sequence[Failure]) -> str:
    first = group[0]
    if first.path is None:
        return ""
    starts = [failure.start for failure in group if failure.start is not None]
    ends = [failure.end for failure in group if failure.end is not None]
    has_range = starts and ends and not isinstance(first, FileNotFoundError)
    return f"file {first.path!r}, " + (f"bytes [{min(starts)}, {max(ends)}), " if has_range else "")


def _names(group: Sequence[Failure]) -> str:
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
