"""Text for people: counted nouns, hints after sentences, names that are safe for a terminal."""


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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
