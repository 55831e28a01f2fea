"""Text for people: counted nouns, hints after sentences, names that are safe for a terminal."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the singular or plural.

    >>> counted(1, "file"), counted(2, "file")
    ('1 file', '2 files')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def with_hint(text: str, hint: str | None) -> str:
    """``text``, followed by the next step as a sentence.

    >>> with_hint("file is missing", "Is the checkpoint complete?")
    'file is missing. Is the checkpoint complete?'
    """
    return f"{sentence(text)} {hint}" if hint else text


def sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def printable(text: str) -> str:
    r"""``text`` on one line, with escapes for characters that a terminal interprets or hides.

    Names come from files that anyone may have written. Escapes are those of ``repr``; printable
    letters outside ASCII stay.

    >>> printable("größe"), printable("a\x1b[31m")
    ('größe', 'a\\x1b[31m')
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def printable_lines(text: str) -> str:
    """Like :func:`printable`, but keeps line breaks."""
    return "\n".join(map(printable, text.split("\n")))
