"""Text for people: counted nouns, hints after sentences, names that are safe for a terminal."""

from collections.abc import Iterable


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ranks_text(ranks: Iterable[int]) -> str:
    """``ranks`` in words, with ranges for those that follow each other.

    >>> ranks_text([7, 0, 1, 2]), ranks_text([1])
    ('ranks 0-2, 7', 'rank 1')
    """
    ordered = sorted(set(ranks))
    runs: list[list[int]] = []
    for rank in ordered:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    shown = ", ".join("-".join(map(str, run)) for run in runs)
    return f"rank {shown}" if len(ordered) == 1 else f"ranks {shown}"


def with_hint(text: str, hint: str | None) -> str:
    return f"{sentence(text)} {hint}" if hint else text


def sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def printable(text: str) -> str:
    r"""``text`` on one line, with control and other unprintable characters as escapes.

    Names come from files that an attacker may have written.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
