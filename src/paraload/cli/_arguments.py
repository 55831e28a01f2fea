"""Arguments of several commands. argparse checks their values, by ``type``, before any work."""

import argparse
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Final

from paraload.errors import InvalidOptionError
from paraload.options import ReadOptions, parse_bytes
from paraload.progress import is_terminal

STANDARD_OUTPUT: Final = "-"
#: Checkpoints that are a file.
_SINGLE_FILES: Final = (".safetensors", ".safetensors.index.json")


class UsageError(Exception):
    """The call is wrong, not the checkpoint. It passes through argparse to ``main``."""


def add_path(parser: argparse.ArgumentParser) -> None:
    about = "folder or URL of the checkpoint"
    parser.add_argument("path", metavar="PATH", type=folder_or_url, help=about)
    parser.add_argument(
        "--storage",
        metavar="NAME=VALUE",
        type=_name_and_value,
        action="append",
        default=[],
        help="option of a URL's storage, such as region=eu-west-1; may be given several times",
    )


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Options that are fields of ``ReadOptions``, under the names of these."""
    add, about = parser.add_argument, "bypass the page cache for uncached ranges (O_DIRECT)"
    add("--workers", dest="max_workers", type=int, metavar="N", help="concurrent readers")
    add("--direct-io", action="store_true", default=None, help=about)


def reading_options(arguments: argparse.Namespace) -> ReadOptions:
    """The options that were given, with a progress bar on a terminal."""
    given: dict[str, Any] = {"progress": is_terminal(sys.stderr)}  # elsewhere, tqdm stays unloaded
    for field in fields(ReadOptions):
        if (value := getattr(arguments, field.name, None)) is not None:
            given[field.name] = value
    return ReadOptions.resolve(overrides=given)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    check = partial(target_file, "--json", or_output=True)
    about = "write the result as JSON; - writes only JSON, to standard output"
    parser.add_argument("--json", metavar="FILE", type=check, help=about)


def add_trace_option(parser: argparse.ArgumentParser, what: str) -> None:
    check = partial(target_file, "--trace")
    about = f"write {what} as a trace for https://ui.perfetto.dev"
    parser.add_argument("--trace", metavar="FILE", type=check, help=about)


def folder_or_url(text: str) -> str | Path:
    if text.lower().startswith("file://"):
        from paraload.adapters.dcp.urls import local_path  # noqa: PLC0415 - imports torch

        text = str(local_path(text))
    if "://" in text:
        return text
    if text.endswith(_SINGLE_FILES) and Path(text).is_file():
        return Path(text)
    return _existing_folder(text)


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError("--storage: expected NAME=VALUE")  # the text may be a secret
    return name, value


def _existing_folder(text: str) -> Path:
    path = Path(text)
    try:
        is_folder = S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise UsageError(f"{text}: no such folder") from None
    except OSError as error:
        raise UsageError(f"{text}: {error.strerror}") from error
    if not is_folder:
        raise UsageError(
            f"{text}: neither a folder nor a safetensors file. Of files of torch.save, the only"
            " reader here is paraload.read"
        )
    return path


def target_file(option: str, text: str, *, or_output: bool = False) -> str:
    """The name of a file that the command writes at its end."""
    if text == STANDARD_OUTPUT:
        if or_output:
            return text
        raise UsageError(f"{option} {text}: name a file; only JSON goes to standard output")
    if Path(text).is_dir():
        raise UsageError(f"{option} {text}: is a folder")
    if not Path(text).absolute().parent.is_dir():
        raise UsageError(f"{option} {text}: its folder does not exist")
    return text


def number_of_bytes(option: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except InvalidOptionError as error:  # a ValueError, whose text argparse would hide
        raise UsageError(f"{option}: {error}") from None
