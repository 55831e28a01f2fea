"""``paraload.verify``: whether a checkpoint is what was written, without a model.

    .metadata --restricted--> Inventory --> files there? --> records, checked by threads --> report
                                 |             |                 |
                                 +-------------+------ findings -+

Nothing is unpickled but the metadata, and that by stand-ins. What is read is summed and forgotten:
a thread needs 1 MiB, whatever the size of a tensor.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraload._adapter import stock_decoders
from paraload._execution import progress_hook
from paraload._files import require_inside, seen_files
from paraload._resources import choose_ramp
from paraload._verify_plan import Inventory, inventory_of, misplaced, orphans
from paraload._verify_report import Finding, VerifyReport
from paraload._verify_run import VerifyRun
from paraload._work import Work
from paraload.errors import CheckpointReadError, ItemReadError
from paraload.manifest import compare_manifest
from paraload.metadata import read_metadata
from paraload.options import ReadOptions
from paraload.sources._local import LocalSource

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from paraload._task import RecordSpec
    from paraload.sources._base import FileIdentity

__all__ = ["verify"]

_METADATA = ".metadata"


def verify(
    path: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    key: bytes | None = None,
    options: ReadOptions | None = None,
    **keywords: Any,
) -> VerifyReport:
    """Check a checkpoint: every checksum, every file, and that they are what the metadata says.

    Args:
        path: folder of the checkpoint.
        manifest: compare every file with this one, too; see :mod:`paraload.manifest`.
        key: of the manifest.
        options: a whole :class:`~paraload.ReadOptions` instead of single keywords.
        **keywords: of its fields, these count: ``max_workers``, ``progress``, ``retries``,
            ``allow_globals``, ``allow_outside_paths``.

    Returns:
        What was found. Damage is no exception here, but for damage of the metadata itself.

    Raises:
        InvalidOptionError: an option, or the manifest, is none.
        MetadataError: the ``.metadata`` is missing, damaged, or asks for code.

    >>> import tempfile, torch, paraload, torch.distributed.checkpoint as dcp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save({"w": torch.arange(4.0)}, checkpoint_id=folder, no_dist=True)
    ...     report = paraload.verify(folder)
    >>> report.ok, report.tensors
    (True, 1)
    """
    started_s = time.monotonic()
    options = ReadOptions.resolve(options, keywords)
    folder = Path(path)
    metadata = read_metadata(folder / _METADATA, allow_globals=options.allow_globals)
    inventory = inventory_of(metadata)
    problems = [*inventory.findings, *misplaced(inventory.specs, inventory.parts)]
    source = LocalSource(folder)
    try:
        specs, files, missing = _present(source, inventory, options)
        problems += missing
        work = Work(
            source=source,
            verify=True,
            decoders=stock_decoders(spec.wanted.descriptors for spec in specs),
            retries=options.retries,
        )
        workers = options.max_workers or choose_ramp(str(folder)).start
        run = VerifyRun(work, specs, inventory.parts, workers)
        with progress_hook(options, None) as hook:
            problems += run.findings(hook)
    finally:
        source.close()
    remarks = [*orphans(inventory.specs, files), *_orphan_files(folder, inventory.specs, manifest)]
    if manifest is not None:
        problems += compare_manifest(folder, manifest, key=key)
    tensors = {part.name for part in inventory.parts if part.lengths is not None}
    return VerifyReport(
        path=str(folder),
        tensors=len(tensors),
        objects=len({part.name for part in inventory.parts} - tensors),
        records=len(inventory.specs),
        files=len({spec.path for spec in inventory.specs}),
        bytes_checked=run.verified_bytes,
        bytes_unverifiable=run.unverifiable_bytes,
        uncompared=run.uncompared,
        seconds=time.monotonic() - started_s,
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


def _present(
    source: LocalSource, inventory: Inventory, options: ReadOptions
) -> tuple[list[RecordSpec], dict[str, FileIdentity], list[Finding]]:
    """The records whose files are there, these files, and what is wrong with all others."""
    specs, findings = inventory.specs, list[Finding]()
    steps: list[Callable[[list[RecordSpec]], Any]] = [
        partial(seen_files, source, retries=options.retries)
    ]
    if not options.allow_outside_paths:
        steps.insert(0, require_inside)
    files: dict[str, FileIdentity] = {}
    for step in steps:
        try:
            files = step(specs) or {}
        except CheckpointReadError as error:
            findings += _by_file(error.failures, inventory)
            bad = {(failure.fqn, failure.path, failure.start) for failure in error.failures}
            specs = [spec for spec in specs if (spec.fqn, spec.path, spec.start) not in bad]
            files = seen_files(source, specs, retries=0) if step is not require_inside else {}
    return specs, files, findings


def _by_file(failures: Iterable[ItemReadError], inventory: Inventory) -> Iterator[Finding]:
    """One finding for each file, with all that it affects."""
    parts = {
        (spec.fqn, spec.path, spec.start): part
        for spec, part in zip(inventory.specs, inventory.parts, strict=True)
    }
    groups: dict[tuple[str | None, str], list[ItemReadError]] = {}
    for failure in failures:
        groups.setdefault((failure.path, failure.problem), []).append(failure)
    for group in groups.values():
        first = group[0]
        yield Finding(
            kind=first.problem,
            problem=type(first).__name__,
            path=first.path,
            parts=tuple(parts[f.fqn or "", f.path or "", f.start or 0] for f in group),
            expected=first.expected,
            got=first.got,
            hint=first.hint,
        )


def _orphan_files(
    folder: Path, specs: Iterable[RecordSpec], manifest: str | os.PathLike[str] | None
) -> Iterator[Finding]:
    apart = Path(manifest).resolve() if manifest is not None else None
    known = {_METADATA, *(spec.path for spec in specs)}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if name not in known and not file.is_dir() and file.resolve() != apart:
            yield Finding(kind="orphan file", problem="no record is in it", path=name)
