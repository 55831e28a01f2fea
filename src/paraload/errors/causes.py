"""Describes many failures in a few lines: one line for each cause in each file.

A missing file fails all of its items. The line of a single item has everything about it; the line
of several items has what they have in common. Failures without a file, such as missing keys, have
little in common: up to 10 get a line each, and more are listed by name.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, TypeAlias

from paraload._text import counted, printable, ranks_text, with_hint

#: An ``ItemReadError``, which is defined in a module that imports this one.
Failure: TypeAlias = Any
#: File, class of the error, problem.
Cause: TypeAlias = tuple[str | None, type, str]

_LISTED_CAUSES: Final = 20
_LISTED_NAMES: Final = 3
_LISTED_NAMES_WITHOUT_FILE: Final = 100
_LINES_WITHOUT_FILE: Final = 10
_PUNCTUATION: Final = "'\"`.,:;()[]"
#: Numbers and tuples of numbers.
_NUMBERS: Final = re.compile(r"[\d,()\[\] ]+")


def lines_of(failures: Iterable[Failure], *, ranks: Collection[int] = ()) -> list[str]:
    """A bounded number of lines for ``failures``, in order.

    ``ranks`` are those that the reader of the lines knows to have failed. A line names its own
    ranks if they are others.
    """
    groups: dict[Cause, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(_cause(failure), []).append(failure)
    # One cause of each file comes first, so that a file with many causes does not hide the others.
    firsts: dict[str | None, Cause] = {}
    for cause in groups:
        firsts.setdefault(cause[0], cause)
    shown = set(list(dict.fromkeys([*firsts.values(), *groups]))[:_LISTED_CAUSES])
    lines = [
        line for cause, group in groups.items() if cause in shown for line in _lines(group, ranks)
    ]
    if hidden := groups.keys() - shown:
        items = sum(len(groups[cause]) for cause in hidden)
        files = len({path for path, *_ in hidden} - {None})
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


def _lines(group: Sequence[Failure], ranks: Collection[int]) -> list[str]:
    first = group[0]
    names = list(dict.fromkeys(failure.fqn for failure in group if failure.fqn is not None))
    is_few = first.path is None and len(group) == len(names) <= _LINES_WITHOUT_FILE
    if len(group) == 1 or is_few:
        return [
            f"{_on(failure.ranks, ranks)}{type(failure).__name__}: {failure}" for failure in group
        ]
    own = [rank for failure in group for rank in failure.ranks]
    text = f"{_on(own, ranks)}{type(first).__name__}: {first.problem}"
    text += f" ({_where(group)}{_items(group, names)})"
    expected, got, hint = (_common(group, name) for name in ("expected", "got", "hint"))
    if expected is not None:
        text += f"; expected {expected}"
    if got is not None:
        text += f", got {got}"
    if expected is None and got is None and None not in (first.expected, first.got):
        text += f"; for {first.fqn!r}, expected {first.expected}, got {first.got}"
    return [printable(with_hint(text, hint))]


def _on(own: Collection[int], ranks: Collection[int]) -> str:
    return f"{ranks_text(own)}: " if {*own} != {*ranks} else ""


def _common(group: Sequence[Failure], attribute: str) -> str | None:
    """The value that all failures have."""
    values = {getattr(failure, attribute) for failure in group}
    return values.pop() if len(values) == 1 else None


def _where(group: Sequence[Failure]) -> str:
    first = group[0]
    if first.path is None:
        return ""
    ranges = [(it.start, it.end) for it in group if None not in (it.start, it.end)]
    if not ranges or isinstance(first, FileNotFoundError):
        return f"file {first.path!r}, "
    start, end = min(start for start, _ in ranges), max(end for _, end in ranges)
    return f"file {first.path!r}, bytes [{start}, {end}), "


def _items(group: Sequence[Failure], names: Sequence[str]) -> str:
    text = counted(len(group), "item")
    if not names:
        return text
    if len(names) < len(group):
        text += f" of {counted(len(names), 'tensor')}"
    listed = _LISTED_NAMES_WITHOUT_FILE if group[0].path is None else _LISTED_NAMES
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    return f"{text}: {', '.join(map(repr, names[:listed]))}{more}"
