"""Arguments that several commands take, and the checks of their values.

Values are checked before any work: argparse calls the ``type`` functions, whose ``UsageError``
passes through it to ``main``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Final

from paraload.errors import InvalidOptionError
from paraload.options import ReadOptions, parse_bytes
from paraload.progress import is_terminal

STANDARD_OUTPUT: Final = "-"


class UsageError(Exception):
    """The call is wrong, such as a folder that does not exist or a file that cannot be written."""


def add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", type=existing_folder, help="folder of the checkpoint"
    )


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Options that are fields of ``ReadOptions``, under the names of these."""
    parser.add_argument(
        "--workers", dest="max_workers", type=int, metavar="N", help="concurrent readers"
    )
    parser.add_argument(
        "--direct-io",
        action="store_true",
        default=None,
        help="bypass the page cache for uncached ranges (O_DIRECT)",
    )


def reading_options(arguments: argparse.Namespace) -> ReadOptions:
    """The options that were given, with a progress bar on a terminal."""
    names = {field.name for field in fields(ReadOptions)}
    given = {
        name: value
        for name, value in vars(arguments).items()
        if name in names and value is not None
    }
    # Elsewhere, tqdm need not even be imported.
    return ReadOptions.resolve(overrides={"progress": is_terminal(sys.stderr), **given})


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=lambda text: text if text == STANDARD_OUTPUT else target("--json")(text),
        help="write the result as JSON; - writes only JSON, to standard output",
    )


def add_trace_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--trace",
        metavar="FILE",
        type=target("--trace"),
        help=f"write {what} as a trace for https://ui.perfetto.dev",
    )


def existing_folder(text: str) -> Path:
    if "://" in text:
        raise UsageError(f"{text}: a URL; this version reads folders of a mounted file system")
    path = Path(text)
    try:
        path.stat()
    except FileNotFoundError:
        raise UsageError(f"{text}: no such folder") from None
    except OSError as error:
        raise UsageError(f"{text}: {error.strerror}") from error
    if not path.is_dir():
        raise UsageError(f"{text}: not a folder; name the folder that holds .metadata")
    return path


def target(option: str) -> Callable[[str], str]:
    """For the name of a file that the command writes at its end."""

    def check(text: str) -> str:
        path = Path(text)
        problem = None
        if text == STANDARD_OUTPUT:
            problem = "name a file; only JSON goes to standard output"
        elif path.is_dir():
            problem = "is a folder"
        elif not path.absolute().parent.is_dir():
            problem = "its folder does not exist"
        if problem is not None:
            raise UsageError(f"{option} {text}: {problem}")
        return text

    return check


def size(option: str) -> Callable[[str], int]:
    """For a number of bytes, such as "256MiB"."""

    def parse(text: str) -> int:
        try:
            return parse_bytes(text)
        except InvalidOptionError as error:  # a ValueError, which argparse would replace
            raise UsageError(f"{option}: {error}") from None

    return parse
