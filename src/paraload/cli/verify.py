"""``paraload verify PATH``: whether every byte of a checkpoint is what was written."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paraload._text import sentence
from paraload.cli import _checkpoint as checkpoint
from paraload.cli._errors import UsageError
from paraload.cli._output import (
    STANDARD_OUTPUT,
    Table,
    add_json_option,
    add_reading_options,
    check_file_target,
    check_json_target,
    reading_options,
    say,
    warn,
    write_json,
)
from paraload.errors import MetadataError
from paraload.options import ReadOptions
from paraload.verification.report import Finding, VerifyReport

_DEFAULT_LIMIT = 50


def add_parser(commands: Any) -> None:
    """Add the command to the parser of all."""
    parser = commands.add_parser(
        "verify",
        help="check every byte, without a model",
        description="Check a checkpoint: the CRC-32 of every record, headers against metadata, that"
        " every tensor is whole, and that all files are there. Nothing is unpickled.",
    )
    add_reading_options(parser)
    parser.add_argument(
        "--write-manifest",
        metavar="FILE",
        help="after a good check, write the digest of every file, to know them by later",
    )
    parser.add_argument(
        "--manifest", metavar="FILE", help="compare every file with this manifest, too"
    )
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        help="key of the manifest; without it, a manifest for other files cannot be forged",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify, print what was found; 1 if the checkpoint is bad."""
    check_json_target(arguments.json)
    check_file_target("--write-manifest", arguments.write_manifest)
    if arguments.manifest is not None and arguments.write_manifest is not None:
        raise UsageError("--manifest and --write-manifest: compare with one, or write one")
    path = checkpoint.existing_folder(arguments.path)
    key = _key(arguments)
    target = arguments.write_manifest
    if target is not None:
        # Before the check, and compared after it: its digests are those of bytes that were checked.
        _write_manifest(path, target, key)
    try:
        report = _verify(path, arguments, key)
    except MetadataError as error:
        write_json({"ok": False, "path": str(path), "error": str(error)}, arguments.json)
        raise
    write_json(report.to_dict(), arguments.json)
    if arguments.json != STANDARD_OUTPUT:
        _show(report)
    if target is not None:
        _keep_manifest(target, is_good=report.ok)
    return 0 if report.ok else 1


def _verify(path: Path, arguments: argparse.Namespace, key: bytes | None) -> VerifyReport:
    import paraload  # noqa: PLC0415 - imports torch

    options = ReadOptions.resolve(overrides=reading_options(arguments))
    manifest = arguments.manifest or arguments.write_manifest
    return paraload.verify(path, manifest=manifest, key=key, options=options)


def _write_manifest(path: Path, target: str, key: bytes | None) -> None:
    from paraload.manifest import write_manifest  # noqa: PLC0415 - only for those who want one

    try:
        write_manifest(path, target, key=key)
    except OSError as error:
        raise UsageError(f"--write-manifest {target}: {error}") from error


def _keep_manifest(target: str, *, is_good: bool) -> None:
    if is_good:
        warn(f"manifest written to {target}")
    else:
        Path(target).unlink()
        warn(f"no manifest written to {target}: the checkpoint is bad")


def _key(arguments: argparse.Namespace) -> bytes | None:
    name = arguments.key_file
    if name is None:
        return None
    if arguments.manifest is None and arguments.write_manifest is None:
        raise UsageError("--key-file: needs --manifest or --write-manifest")
    try:
        with open(name, "rb") as file:
            key = file.read()
    except OSError as error:
        raise UsageError(f"--key-file {name}: {error.strerror}") from error
    if not key:
        raise UsageError(f"--key-file {name}: the file is empty")
    return key


def _show(report: VerifyReport) -> None:
    say(report.summary())
    for title, findings in (("problems", report.problems), ("remarks", report.remarks)):
        if findings:
            say()
            _table(title, findings).show()
    hints = dict.fromkeys(finding.hint for finding in report.problems if finding.hint)
    for hint in hints:
        say(f"\n{sentence(hint)}")


def _table(title: str, findings: Sequence[Finding]) -> Table:
    rows = [
        (
            finding.kind,
            finding.problem,
            finding.path or "",
            "" if finding.end is None else f"[{finding.start}, {finding.end})",
            finding.affected(),
            finding.expected or "",
            finding.got or "",
        )
        for finding in findings[:_DEFAULT_LIMIT]
    ]
    if len(rows) < len(findings):
        title += f", {len(rows)} of {len(findings)}; JSON has all"
    head = ("kind", "problem", "file", "bytes", "affects", "expected", "got")
    return Table(title=title, head=head, rows=rows, numeric=frozenset())
