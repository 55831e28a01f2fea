"""Reads all records of a checkpoint with the engine, which checks them and keeps nothing.

A thread needs 1 MiB for this, whatever the size of a tensor.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from paraload.adapters.dcp.reader_config import stock_decoders
from paraload.core.tasks import ItemKind, RecordSpec, Stored, Wanted
from paraload.destinations.conversion import HostDestination
from paraload.destinations.targets import Targets
from paraload.engine.load import Load
from paraload.engine.setup import LoadSetup
from paraload.engine.statistics import Statistics
from paraload.errors import ItemReadError
from paraload.metadata.index import Chunk, Place
from paraload.options import ReadOptions
from paraload.planning.read_tasks import PlanKnobs, first_tasks
from paraload.progress import progress_hook
from paraload.report import ReadReport
from paraload.sources import ByteSource, FileStat
from paraload.workers.read_context import ReadContext

#: Smaller blocks than a load's: large ones gain nothing when their bytes are only summed.
KNOBS: Final = PlanKnobs(block_bytes=1 << 20)


def audit_specs(records: Sequence[tuple[Place, Chunk]]) -> list[RecordSpec]:
    shared: dict[Wanted, Wanted] = {}  # the layout cache knows equal layouts by identity
    specs = []
    for number, (place, chunk) in enumerate(records):
        lengths = chunk.lengths or ()
        stored = None if chunk.dtype is None else Stored(chunk.dtype, lengths)
        kind: ItemKind = "bytes" if stored is None else "tensor"
        offsets, descriptors = (0,) * len(lengths), place.descriptors
        wanted = Wanted(kind, offsets, lengths, descriptors, stored, place.layout)
        wanted = shared.setdefault(wanted, wanted)
        specs.append(RecordSpec(number, place.path, place.start, place.end, chunk.name, wanted))
    return specs


def audit(
    source: ByteSource,
    specs: Sequence[RecordSpec],
    files: Mapping[str, FileStat],
    options: ReadOptions,
    *,
    path: str,
) -> tuple[ReadReport, Statistics, dict[int, ItemReadError]]:
    """Read and check every byte of the records; returns the errors by item."""
    # From the front of each file to its back.
    specs = sorted(specs, key=lambda spec: (spec.path, spec.start))
    is_disk = source.limits.requests_in_flight is None
    knobs = KNOBS if is_disk else PlanKnobs.of(source.limits)
    setup = LoadSetup(
        path=path,
        options=replace(options, executor="threads"),
        specs=specs,
        make_tasks=partial(first_tasks, straight_through=is_disk, knobs=knobs),
        targets=Targets(),
        destination=HostDestination(strict=False),
        read_context=ReadContext(
            source=source,
            verify=True,
            audit=True,
            decoders=stock_decoders(spec.wanted.descriptors for spec in specs),
            retries=options.retries,
            stall_timeout_s=options.stall_timeout_s,
            file_sizes={name: file.size for name, file in files.items()},
        ),
        started_s=time.monotonic(),
    )
    with progress_hook(options.progress, None, doing="verifying") as hook:
        load = Load(setup, process=lambda _: None, on_progress=hook)
        load.prepare()
        report, failures = load.run()
    return report, load.statistics, failures
