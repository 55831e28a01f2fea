"""What the metadata of a checkpoint says must be there, and what is wrong with it by itself.

Metadata --> a RecordSpec for each record, the place of its chunk in its tensor
         --> findings: holes, overlaps, chunks without a place, places without a chunk
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from paraload._coverage import coverage_fault
from paraload._destination import dtype_name
from paraload._task import RecordSpec, Stored, Wanted
from paraload._verify_report import Finding, Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch.distributed.checkpoint import Metadata

    from paraload.sources._base import FileIdentity

__all__ = ["Inventory", "inventory_of", "misplaced", "orphans"]

_DAMAGED = "The metadata is damaged, or the checkpoint is incomplete"


@dataclass(slots=True)
class Inventory:
    """The records of a checkpoint, by number, and what was found wrong on the way.

    Attributes:
        specs: every record that has a place.
        parts: what each of them is a part of.
        findings: what is wrong.
    """

    specs: list[RecordSpec] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, info: Any, part: Part, stored: Stored | None) -> None:
        """A record at the place that ``info`` tells."""
        lengths = part.lengths or ()
        descriptors = tuple(getattr(info, "transform_descriptors", None) or ())
        wanted = Wanted(
            "bytes" if part.lengths is None else "tensor",
            (0,) * len(lengths),
            lengths,
            descriptors,
            stored,
        )
        end = info.offset + info.length
        number = len(self.specs)
        path = info.relative_path
        self.specs.append(RecordSpec(number, path, info.offset, end, part.name, wanted))
        self.parts.append(part)


def inventory_of(metadata: Metadata) -> Inventory:
    """Everything that ``metadata`` promises."""
    inventory = Inventory()
    places = {(index.fqn, index.offset): info for index, info in metadata.storage_data.items()}
    for name, entry in sorted(metadata.state_dict_metadata.items()):
        if not isinstance(entry, TensorStorageMetadata):
            _take(inventory, places, (name, None), Part(name=name), None)
            continue
        dtype = dtype_name(entry.properties.dtype)
        chunks = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.chunks]
        if (fault := coverage_fault(tuple(entry.size), chunks)) is not None:
            part = Part(name=name, offsets=(0,) * len(entry.size), lengths=tuple(entry.size))
            text = f"the chunks do not make up the tensor: {fault}"
            inventory.findings.append(
                Finding(kind="coverage", problem=text, parts=(part,), hint=_DAMAGED)
            )
        for chunk, (offsets, lengths) in zip(entry.chunks, chunks, strict=True):
            part = Part(name=name, offsets=offsets, lengths=lengths)
            _take(inventory, places, (name, chunk.offsets), part, Stored(dtype, lengths))
    for (name, offset), info in places.items():
        part = Part(name=name, offsets=None if offset is None else tuple(offset))
        inventory.findings.append(
            Finding(
                kind="unused-entry",
                problem="the metadata says where this is stored, but not what it is",
                path=info.relative_path,
                start=info.offset,
                end=info.offset + info.length,
                parts=(part,),
                hint=_DAMAGED,
            )
        )
    return inventory


def _take(
    inventory: Inventory,
    places: dict[tuple[str, Any], Any],
    key: tuple[str, Any],
    part: Part,
    stored: Stored | None,
) -> None:
    info = places.pop(key, None)
    if info is None and part.lengths is not None and not any(part.offsets or ()):
        info = places.pop((key[0], None), None)  # whole tensors of some writers have no offset
    if info is not None:
        inventory.add(info, part, stored)
    elif part.lengths is None or 0 not in part.lengths:
        text = "the metadata does not say where this is stored"
        inventory.findings.append(
            Finding(kind="missing-entry", problem=text, parts=(part,), hint=_DAMAGED)
        )


def misplaced(specs: Iterable[RecordSpec], parts: list[Part]) -> Iterator[Finding]:
    """Records that share bytes of a file."""
    previous: RecordSpec | None = None
    for spec in sorted(specs, key=attrgetter("path", "start", "end")):
        if previous is not None and previous.path == spec.path and spec.start < previous.end:
            yield Finding(
                kind="overlapping-records",
                problem="two records are said to have the same bytes",
                path=spec.path,
                start=spec.start,
                end=min(spec.end, previous.end),
                parts=(parts[previous.item], parts[spec.item]),
                hint=_DAMAGED,
            )
        if previous is None or previous.path != spec.path or spec.end > previous.end:
            previous = spec


def orphans(specs: Iterable[RecordSpec], files: Mapping[str, FileIdentity]) -> Iterator[Finding]:
    """Bytes of the files that no record has: harmless, but unexpected."""
    ends = dict.fromkeys(files, 0)

    def gap(path: str, start: int, end: int) -> Finding:
        return Finding(
            kind="orphan-bytes",
            problem="no record has these bytes",
            path=path,
            start=start,
            end=end,
        )

    for spec in sorted(specs, key=attrgetter("path", "start")):
        if spec.path in ends:
            if spec.start > ends[spec.path]:
                yield gap(spec.path, ends[spec.path], spec.start)
            ends[spec.path] = max(ends[spec.path], spec.end)
    for path, end in ends.items():
        if files[path].size_bytes > end:
            yield gap(path, end, files[path].size_bytes)
