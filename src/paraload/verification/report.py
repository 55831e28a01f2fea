"""What a verification finds. No torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from paraload import errors
from paraload._text import counted, printable, with_hint
from paraload.errors import ItemReadError
from paraload.metadata.index import Chunk, IndexFault
from paraload.report import format_bytes

_KINDS: Final[Mapping[str, tuple[type[ItemReadError] | None, str]]] = {
    "missing-file": (errors.MissingFileError, "a file that the metadata names is not there"),
    "short-file": (errors.ShortFileError, "a file ends before the bytes that the metadata names"),
    "unreadable-file": (errors.StorageReadError, "the system could not read a file"),
    "unsafe-path": (errors.UnsafePathError, "the metadata names a file outside the checkpoint"),
    "checksum": (errors.ChecksumMismatchError, "bytes differ from the CRC-32 stored with them"),
    "format": (errors.FormatError, "bytes do not follow the format"),
    "shape": (errors.ShapeMismatchError, "a slice does not lie inside its tensor"),
    "dtype": (
        errors.DtypeMismatchError,
        "a stored tensor has another dtype than the metadata says",
    ),
    "transform": (errors.TransformError, "a record cannot be decoded"),
    "unsafe-object": (errors.UnsafeObjectError, "an object needs code that is not allowed"),
    "unexpected": (errors.ItemReadError, "anything else that reading a record raised"),
    "coverage": (errors.CoverageError, "the chunks of a tensor leave a hole, or overlap"),
    "missing-entry": (
        errors.MissingEntryError,
        "the metadata does not say where a tensor or object is stored",
    ),
    "missing-metadata": (None, "the metadata of a rank that saved alone is missing"),
    "unused-entry": (None, "the metadata says where something is stored, but not what it is"),
    "overlapping-records": (None, "two records have bytes in common"),
    "manifest": (None, "a file is not the one that the manifest lists"),
    "orphan-bytes": (None, "no record has these bytes (a remark)"),
    "orphan-file": (None, "no record is in this file (a remark)"),
    "ranks-elsewhere": (None, "lower ranks that saved alone have no metadata here (a remark)"),
}
#: What a finding's ``kind`` can be, and what it means.
KINDS: Final[Mapping[str, str]] = {kind: meaning for kind, (_, meaning) in _KINDS.items()}
_KIND_OF_ERROR: Final = {error: kind for kind, (error, _) in _KINDS.items()}
_LISTED_FINDINGS: Final = 20
_LISTED_PARTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor, a slice of one, or an object, which has neither ``offsets`` nor ``lengths``."""

    name: str
    offsets: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None

    @classmethod
    def of(cls, chunk: Chunk) -> Self:
        return cls(name=chunk.name, offsets=chunk.offsets, lengths=chunk.lengths)

    def __str__(self) -> str:
        name = printable(self.name)
        if not self.offsets or not self.lengths:
            return name
        pairs = zip(self.offsets, self.lengths, strict=True)
        return f"{name}[{', '.join(f'{start}:{start + n}' for start, n in pairs)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong or odd in a checkpoint.

    Attributes:
        kind: one of :data:`KINDS`, for programs; these words do not change.
        problem: a sentence for people.
        path: the file, relative to the checkpoint.
        start: first byte of the range in the file.
        end: one past the last byte.
        parts: affected tensors, slices of tensors, and objects.
        expected: what should be there.
        got: what is there.
        hint: the next step.
    """

    kind: str
    problem: str
    path: str | None = None
    start: int | None = None
    end: int | None = None
    parts: tuple[Part, ...] = ()
    expected: str | None = None
    got: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: ItemReadError, parts: tuple[Part, ...]) -> Self:
        """The finding for an error of reading ``parts``."""
        kind = next(_KIND_OF_ERROR[c] for c in type(error).__mro__ if c in _KIND_OF_ERROR)
        same = ("problem", "path", "expected", "got", "hint")
        return cls(kind=kind, parts=parts, **{name: getattr(error, name) for name in same})

    @classmethod
    def of_fault(cls, fault: IndexFault, hint: str | None = None) -> Self:
        """The finding for a fault of the index."""
        parts = tuple(map(Part.of, fault.chunks))
        finding = cls(kind=fault.kind, problem=fault.problem, parts=parts, hint=hint)
        if fault.place is None:
            return finding
        path, start, end, *_ = fault.place
        return dataclasses.replace(finding, path=path, start=start, end=end)

    def details(self) -> str:
        """The problem, and what was expected and found."""
        expected = f"; expected {self.expected}" if self.expected is not None else ""
        got = f", got {self.got}" if self.got is not None else ""
        return f"{self.problem}{expected}{got}"

    def affected(self) -> str:
        """The first few parts, and the number of the others."""
        shown = ", ".join(map(str, self.parts[:_LISTED_PARTS]))
        hidden = len(self.parts) - _LISTED_PARTS
        return f"{shown} and {hidden} more" if hidden > 0 else shown

    def __str__(self) -> str:
        text = f"{self.kind}: {self.details()}"
        if self.path is not None:
            where = f", bytes [{self.start}, {self.end})" if self.end is not None else ""
            text += f" (file {self.path!r}{where})"
        if self.parts:
            text += f"; affects {self.affected()}"
        return printable(with_hint(text, self.hint))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The state of a checkpoint. ``print(report)`` gives a summary.

    Attributes:
        path: folder of the checkpoint.
        tensors: number of tensors.
        objects: number of objects.
        records: number of stored pieces of tensors, and objects.
        files: number of data files.
        has_checksums: whether the format has any; safetensors has none.
        files_as_in_manifest: number of files with the digest of the manifest; ``None`` without one.
        bytes_checked: bytes whose CRC-32 was checked and correct.
        bytes_unverifiable: bytes that were written without a CRC-32.
        uncompared: tensors whose dtype and shape were not checked, as only torch can read them.
        bytes_direct: bytes that bypassed the page cache.
        retries: read requests that were repeated.
        fallback: why bytes took a slow path; "" if none did.
        seconds: duration of the verification.
        problems: findings that make the checkpoint bad.
        remarks: findings that are odd but harmless.
    """

    path: str
    tensors: int
    objects: int
    records: int
    files: int
    has_checksums: bool
    files_as_in_manifest: int | None
    bytes_checked: int
    bytes_unverifiable: int
    uncompared: int
    bytes_direct: int
    retries: int
    fallback: str
    seconds: float
    problems: tuple[Finding, ...]
    remarks: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain types for JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def summary(self) -> str:
        """What was checked, without the findings."""
        rate = self.bytes_checked / self.seconds if self.seconds > 0 else 0.0
        found = (
            f"{'good' if self.ok else 'BAD'}: {counted(self.tensors, 'tensor')},"
            f" {counted(self.objects, 'object')}, {counted(self.records, 'record')} in"
            f" {counted(self.files, 'file')}"
        )
        checked = (
            f"CRC-32 checked for {format_bytes(self.bytes_checked)} in {self.seconds:.3f} s"
            f" ({format_bytes(rate)}/s)"
        )
        same = self.files_as_in_manifest
        if not self.has_checksums:
            checked = (
                f"headers and sizes checked in {self.seconds:.3f} s: the format has no checksums"
            )
            checked += "; only a manifest can show damaged values" if same is None else ""
        if same is not None:
            checked += f"\n{counted(same, 'file')} as in the manifest"
        details = {
            "written without a CRC-32": _size(self.bytes_unverifiable * self.has_checksums),
            "tensors that only torch can read, not compared": self.uncompared,
            "read past the page cache": _size(self.bytes_direct),
            "slow path": printable(self.fallback),
            "retried requests": self.retries,
        }
        more = [f"{label}: {detail}" for label, detail in details.items() if detail]
        return "\n".join([found, checked, *more])

    def __str__(self) -> str:
        lines = [self.summary()]
        for title, findings in (("problems", self.problems), ("remarks", self.remarks)):
            if findings:
                lines.append(f"{title}: {len(findings)}")
                lines += [f"  - {finding}" for finding in findings[:_LISTED_FINDINGS]]
            if len(findings) > _LISTED_FINDINGS:
                lines.append(f"  - and {len(findings) - _LISTED_FINDINGS} more")
        return "\n".join(lines)


def _size(nbytes: int) -> str:
    return format_bytes(nbytes) if nbytes else ""
