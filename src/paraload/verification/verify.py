"""``paraload.verify``: whether a checkpoint is what was written, without a model.

    .metadata --> CheckpointIndex --> paths and files --> audit by the engine --> VerifyReport
                        |                                                             ^
                        +--> faults of the index, orphans, manifest ------------------+

Only the metadata is unpickled, with stand-ins for all classes.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Final, Unpack

from paraload.adapters.dcp.reader_choice import metadata_of_all, reader_for, source_of
from paraload.adapters.dcp.reader_config import options_of
from paraload.engine.file_checks import look_at_files, path_failures
from paraload.errors import ItemReadError
from paraload.metadata.folder import FolderMetadata
from paraload.options import ReadOptions, ReadOptionsDict
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.runtime.gc_pause import collector_paused
from paraload.runtime.interrupts import stopped_by_signals
from paraload.verification.audit import audit, audit_specs
from paraload.verification.manifest import compare, relative_name
from paraload.verification.report import Finding, Part, VerifyReport

_BAD_INDEX: Final = "The metadata is damaged, or the checkpoint is incomplete"
_BAD_SAVE: Final = "The save did not finish on this rank; save again, or load another checkpoint"


@stopped_by_signals
def verify(
    path: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    key: bytes | None = None,
    options: ReadOptions | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **keywords: Unpack[ReadOptionsDict],
) -> VerifyReport:
    """Check every file and checksum of a checkpoint, and compare them with its metadata.

    Args:
        path: folder or URL of the checkpoint.
        manifest: also compare every file with this manifest; see :mod:`paraload.manifest`.
        key: the key of the manifest.
        options: a :class:`~paraload.ReadOptions`, instead of keywords.
        storage_options: options of the storage of a URL; see :func:`paraload.load`.
        **keywords: fields of :class:`~paraload.ReadOptions`. These have an effect: ``max_workers``,
            ``progress``, ``retries``, ``stall_timeout_s``, ``direct_io``, ``allow_globals``,
            ``allow_outside_paths``.

    Returns:
        The findings. Damage does not raise, except damage of the metadata itself.

    Raises:
        InvalidOptionError: an option, the manifest or its key is wrong.
        MetadataError: the ``.metadata`` is missing or damaged, or needs code that is not allowed.
        StalledReadError: the storage did not answer for ``stall_timeout_s``.

    >>> import tempfile, torch, paraload, torch.distributed.checkpoint as dcp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save({"w": torch.arange(4.0)}, checkpoint_id=folder, no_dist=True)
    ...     report = paraload.verify(folder)
    >>> report.ok, report.tensors
    (True, 1)
    """
    started_s = time.monotonic()
    reader = reader_for(path, options=options, storage_options=storage_options, **keywords)
    options, shown = options_of(reader), str(reader.path)
    found = metadata_of_all(reader)
    with collector_paused():
        records = sorted(found.index.records(), key=lambda record: record[1].name)
        specs = audit_specs(records)
        parts = [Part.of(chunk) for _, chunk in records]
        problems = [*_metadata_problems(found)]
    data_files = {spec.path for spec in specs}
    with closing(source_of(reader)) as source:
        failures = {} if options.allow_outside_paths else path_failures(specs)
        inside = [spec for spec in specs if spec.item not in failures]
        with DaemonThreads.for_looks(options.stall_timeout_s) as looker:
            files, missing = look_at_files(source, inside, looker, retries=options.retries)
            doing, files_of = f"{shown!r} was being listed", getattr(source, "list_files", tuple)
            present = looker.call(lambda: doing, lambda: sorted(files_of()))
        readable = [spec for spec in inside if spec.item not in missing]
        read, statistics, damaged = audit(source, readable, files, options, path=shown)
    problems += _file_problems(failures | missing, parts)
    for item, error in damaged.items():
        start, end = specs[item].start, specs[item].end
        problems.append(replace(Finding.of(error, (parts[item],)), start=start, end=end))
    known = {*found.files, *data_files}
    as_listed = None
    if manifest is not None:
        timeout_s = options.stall_timeout_s
        with closing(source_of(reader)) as source:
            differing, as_listed = compare(source, manifest, key=key, stall_timeout_s=timeout_s)
        problems += differing
        known.add(relative_name(manifest, source))
    sizes = {name: file.size for name, file in files.items()}
    orphan_files = [name for name in present if name not in known]
    tensors = {part.name for part in parts if part.lengths is not None}
    return VerifyReport(
        path=shown,
        tensors=len(tensors),
        objects=len({part.name for part in parts} - tensors),
        records=len(records),
        files=len(data_files),
        has_checksums=found.is_dcp,
        files_as_in_manifest=as_listed,
        bytes_checked=read.bytes_verified,
        bytes_unverifiable=statistics.bytes_unverifiable,
        uncompared=statistics.uncompared,
        bytes_direct=read.bytes_direct,
        retries=read.retries,
        fallback="; ".join(read.fallbacks),
        seconds=time.monotonic() - started_s,
        problems=tuple(problems),
        remarks=tuple(_remarks(found, sizes, orphan_files)),
    )


def _metadata_problems(found: FolderMetadata) -> Iterator[Finding]:
    for fault in found.index.faults():
        yield Finding.of_fault(fault, hint=_BAD_INDEX)
    for rank in found.missing:
        yield Finding(
            kind="missing-metadata",
            problem=f"what rank {rank} saved cannot be loaded without its metadata",
            path=f"__{rank}.metadata",
            hint=_BAD_SAVE,
        )


def _file_problems(
    failures: Mapping[int, ItemReadError], parts: Sequence[Part]
) -> Iterator[Finding]:
    """One finding for each file, with all that it affects."""
    groups: dict[tuple[str | None, type, str], list[int]] = {}
    for item, error in failures.items():
        groups.setdefault((error.path, type(error), error.problem), []).append(item)
    for items in groups.values():
        yield Finding.of(failures[items[0]], tuple(parts[item] for item in items))


def _remarks(
    found: FolderMetadata, file_bytes: Mapping[str, int], orphan_files: Iterable[str]
) -> Iterator[Finding]:
    if found.is_dcp:  # other files may lie beside safetensors, which have headers
        yield from map(Finding.of_fault, found.index.orphan_bytes(file_bytes))
        for name in orphan_files:
            yield Finding(kind="orphan-file", problem="no record is in this file", path=name)
    if found.starts_late:
        yield Finding(kind="ranks-elsewhere", problem=found.starts_late)
