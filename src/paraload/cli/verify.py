"""``paraload verify PATH``: whether every byte of a checkpoint is what was written."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from paraload._text import sentence
from paraload.cli._arguments import (
    STANDARD_OUTPUT,
    UsageError,
    add_json_option,
    add_path,
    add_reading_options,
    reading_options,
    target_file,
)
from paraload.cli._output import Table, file_errors, say, show_tables, warn, write_json
from paraload.errors import MetadataError
from paraload.sources.urls import without_credentials
from paraload.verification.report import Finding, VerifyReport

_LISTED: Final = 50


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="check every byte, without a model",
        description="Check a checkpoint: the CRC-32 of every record, headers against metadata, that"
        " every tensor is whole, and that all files exist. Nothing is unpickled.",
    )
    add_path(parser)
    add_reading_options(parser)
    writable = partial(target_file, "--write-manifest")
    for option, check, about in (
        ("--write-manifest", writable, "if the checkpoint is good, write a digest of every file"),
        ("--manifest", str, "also compare every file with this manifest"),
        ("--key-file", str, "key of the manifest; a manifest cannot be forged without its key"),
    ):
        parser.add_argument(option, metavar="FILE", type=check, help=about)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import paraload  # noqa: PLC0415 - imports torch
    from paraload.manifest import write_manifest  # noqa: PLC0415

    path, new_manifest = arguments.path, arguments.write_manifest
    if arguments.manifest is not None and new_manifest is not None:
        raise UsageError("--manifest and --write-manifest: compare with one, or write one")
    options, key, storage = reading_options(arguments), _key(arguments), dict(arguments.storage)
    if new_manifest is not None:
        # Written before the check and compared after it: it describes the bytes that were checked.
        try:
            write_manifest(path, new_manifest, key=key, **storage)
        except OSError as error:  # of any file of the checkpoint
            raise UsageError(f"--write-manifest {new_manifest}: {error}") from error
    is_good = False
    try:
        manifest = arguments.manifest or new_manifest
        report = paraload.verify(path, manifest=manifest, key=key, options=options, **storage)
        is_good = report.ok
    except MetadataError as error:
        shown = without_credentials(str(path))
        write_json({"ok": False, "path": shown, "error": str(error)}, arguments.json)
        raise
    finally:
        if new_manifest is not None and not is_good:
            Path(new_manifest).unlink()
    write_json(report.to_dict(), arguments.json)
    if arguments.json != STANDARD_OUTPUT:
        _show(report)
    if new_manifest is not None:
        bad = f"no manifest written to {new_manifest}: the checkpoint is bad"
        warn(f"manifest written to {new_manifest}" if is_good else bad)
    return int(not is_good)


def _key(arguments: argparse.Namespace) -> bytes | None:
    name = arguments.key_file
    if name is None:
        return None
    if arguments.manifest is None and arguments.write_manifest is None:
        raise UsageError("--key-file: needs --manifest or --write-manifest")
    with file_errors("--key-file", name):
        key = Path(name).read_bytes()
    if not key:
        raise UsageError(f"--key-file {name}: the file is empty")
    return key


def _show(report: VerifyReport) -> None:
    say(report.summary())
    found = (("problems", report.problems), ("remarks", report.remarks))
    if tables := [_table(title, findings) for title, findings in found if findings]:
        say()
        show_tables(*tables)
    for hint in dict.fromkeys(finding.hint for finding in report.problems if finding.hint):
        say(f"\n{sentence(hint)}")


def _table(title: str, findings: Sequence[Finding]) -> Table:
    rows = [
        (finding.kind, finding.details(), _place(finding), finding.affected())
        for finding in findings[:_LISTED]
    ]
    if len(rows) < len(findings):
        title += f", {len(rows)} of {len(findings)}; JSON has all"
    return Table(title=title, head=("kind", "problem", "file", "affects"), rows=rows, numeric=())


def _place(finding: Finding) -> str:
    if finding.end is None:
        return finding.path or ""
    return f"{finding.path} [{finding.start}, {finding.end})"
