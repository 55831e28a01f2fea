"""``paraload.verify``: whether a checkpoint is what was written, without a model.

    .metadata --restricted--> CheckpointIndex --> files there? --> an audit by the engine
                                  |                    |               |
                                  +---- findings ------+---------------+--> report

Only the metadata is unpickled, with stand-ins for all classes. Payloads are summed and dropped: a
thread needs 1 MiB, whatever the size of a tensor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from paraload.adapters.dcp.reader_config import stock_decoders
from paraload.core.tasks import ItemKind, RecordSpec, Stored, Wanted
from paraload.destinations.conversion import HostDestination
from paraload.destinations.host import Destinations
from paraload.engine.budget import MemoryBudget
from paraload.engine.file_checks import look_at_files, path_failures
from paraload.engine.load import Load
from paraload.engine.setup import Job
from paraload.errors import ItemReadError
from paraload.executors.choice import Execution, choose_execution, progress_hook
from paraload.metadata.folder import folder_metadata
from paraload.metadata.index import Chunk, IndexFault, Place
from paraload.options import ReadOptions
from paraload.planning.read_tasks import PlanKnobs, first_tasks
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.runtime.gc_pause import collector_paused
from paraload.runtime.interrupts import stopped_by_signals
from paraload.sources import FileStat
from paraload.sources.local import LocalSource
from paraload.verification.manifest import compare_manifest
from paraload.verification.report import Finding, Part, VerifyReport
from paraload.workers.read_context import Work

#: Smaller blocks than a load's: nothing is gained from a few big ones that are only looked at.
_KNOBS: Final = PlanKnobs(block_bytes=1 << 20)


@stopped_by_signals
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
            ``stall_timeout_s``, ``direct_io``, ``allow_globals``, ``allow_outside_paths``.

    Returns:
        What was found. Damage is no exception here, but for damage of the metadata itself.

    Raises:
        InvalidOptionError: an option, the manifest or its key is wrong.
        MetadataError: the ``.metadata`` is missing, damaged, or asks for code.
        StalledReadError: the storage did not answer for ``stall_timeout_s``.

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
    found = folder_metadata(
        folder,
        allow_globals=options.allow_globals,
        retries=options.retries,
        stall_timeout_s=options.stall_timeout_s,
    )
    with collector_paused():
        records = sorted(found.index.records(), key=lambda record: record[1].name)
        all_specs = [_spec(number, *record) for number, record in enumerate(records)]
        parts = [_part(chunk) for _, chunk in records]
        hint = "The metadata is damaged, or the checkpoint is incomplete"
        problems = [_finding(fault, hint) for fault in found.index.faults()]
    problems += map(_missing_rank, found.missing)
    source = LocalSource(folder, direct_io=options.direct_io)
    try:
        specs, files, missing = _present(source, all_specs, parts, options)
        problems += missing
        execution = choose_execution(
            replace(options, executor="threads"),
            source=source,
            total_bytes=sum(spec.length for spec in specs),
            stays_here="",
        )
        with progress_hook(options, None) as hook:
            load = Load(
                _audit(str(folder), specs, source, options, execution),
                budget=MemoryBudget(execution.staging_bytes),
                process=lambda _: None,
                on_progress=hook,
            )
            read, failures = load.run(execution.executor)
    finally:
        source.close()
    for item, failure in failures.items():
        spec = all_specs[item]
        problems.append(Finding.of(failure, (parts[item],), start=spec.start, end=spec.end))
    data_files = {spec.path for spec in all_specs}
    known = {*found.files, *data_files}
    with DaemonThreads.for_looks(options.stall_timeout_s) as looker:
        unknown = looker.call(
            lambda: f"{str(folder)!r} was being listed",
            list,
            _orphan_files(folder, known, manifest),
        )
    sizes = {path: file.size for path, file in files.items()}
    remarks = [*map(_finding, found.index.orphan_bytes(sizes)), *unknown]
    if found.starts_late:
        remarks.append(Finding(kind="ranks-elsewhere", problem=found.starts_late))
    if manifest is not None:
        problems += compare_manifest(
            folder, manifest, key=key, stall_timeout_s=options.stall_timeout_s
        )
    tensors = {part.name for part in parts if part.lengths is not None}
    return VerifyReport(
        path=str(folder),
        tensors=len(tensors),
        objects=len({part.name for part in parts} - tensors),
        records=len(records),
        files=len(data_files),
        bytes_checked=read.bytes_verified,
        bytes_unverifiable=load.ledger.bytes_unverifiable,
        uncompared=load.ledger.uncompared,
        bytes_direct=read.bytes_direct,
        retries=read.retries,
        fallback="; ".join(read.fallbacks),
        seconds=time.monotonic() - started_s,
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


def _spec(number: int, place: Place, chunk: Chunk) -> RecordSpec:
    lengths = chunk.lengths or ()
    stored = None if chunk.dtype is None else Stored(chunk.dtype, lengths)
    kind: ItemKind = "bytes" if stored is None else "tensor"
    wanted = Wanted(kind, (0,) * len(lengths), lengths, place.descriptors, stored)
    return RecordSpec(number, place.path, place.start, place.end, chunk.name, wanted)


def _part(chunk: Chunk) -> Part:
    return Part(name=chunk.name, offsets=chunk.offsets, lengths=chunk.lengths)


def _finding(fault: IndexFault, hint: str | None = None) -> Finding:
    path, start, end, *_ = fault.place or (None, None, None)
    return Finding(
        kind=fault.kind,
        problem=fault.problem,
        path=path,
        start=start,
        end=end,
        parts=tuple(map(_part, fault.chunks)),
        hint=hint,
    )


def _present(
    source: LocalSource, specs: Sequence[RecordSpec], parts: Sequence[Part], options: ReadOptions
) -> tuple[list[RecordSpec], dict[str, FileStat], list[Finding]]:
    """The records whose files are there, these files, and what is wrong with all others."""
    outside = {} if options.allow_outside_paths else path_failures(specs)
    inside = [spec for spec in specs if spec.item not in outside]
    with DaemonThreads.for_looks(options.stall_timeout_s) as looker:
        files, missing = look_at_files(source, inside, looker, retries=options.retries)
    present = [spec for spec in inside if spec.item not in missing]
    return present, files, list(_by_file(outside | missing, parts))


def _audit(
    path: str,
    specs: list[RecordSpec],
    source: LocalSource,
    options: ReadOptions,
    execution: Execution,
) -> Job:
    """Check every entry of the records, from the front of each file to its back."""
    alike: dict[Wanted, Wanted] = {}  # records of one layout are known by it
    specs = [spec._replace(wanted=alike.setdefault(spec.wanted, spec.wanted)) for spec in specs]
    specs.sort(key=attrgetter("path", "start"))
    return Job(
        path=path,
        specs=specs,
        first=first_tasks(specs, straight_through=True, knobs=_KNOBS),
        destinations=Destinations(),
        destination=HostDestination(strict=False),
        ordered=(),
        work=Work(
            source=source,
            verify=True,
            audit=True,
            decoders=stock_decoders(wanted.descriptors for wanted in alike),
            retries=options.retries,
            stall_timeout_s=options.stall_timeout_s,
        ),
        split_bytes=execution.sizes.next_split_bytes,
        max_gap_bytes=_KNOBS.max_gap_bytes,
        started_s=time.monotonic(),
    )


def _by_file(failures: Mapping[int, ItemReadError], parts: Sequence[Part]) -> Iterator[Finding]:
    """One finding for each file, with all that it affects."""
    groups: dict[tuple[str | None, type, str], list[int]] = {}
    for item, failure in failures.items():
        groups.setdefault((failure.path, type(failure), failure.problem), []).append(item)
    for items in groups.values():
        yield Finding.of(failures[items[0]], tuple(parts[item] for item in items))


def _missing_rank(rank: int) -> Finding:
    return Finding(
        kind="missing-metadata",
        problem=f"what rank {rank} saved cannot be loaded without its metadata",
        path=f"__{rank}.metadata",
        hint="The save did not finish on this rank; save again, or load another checkpoint",
    )


def _orphan_files(
    folder: Path, known: Container[str], manifest: str | os.PathLike[str] | None
) -> Iterator[Finding]:
    apart = Path(manifest).resolve() if manifest is not None else None
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if name not in known and not file.is_dir() and file.resolve() != apart:
            yield Finding(kind="orphan-file", problem="no record is in this file", path=name)
