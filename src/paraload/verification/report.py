"""What a verification has found. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from paraload import errors
from paraload._text import counted, printable, with_hint
from paraload.errors import ItemReadError
from paraload.geometry.runs import Shape
from paraload.report import format_bytes

#: What a finding's ``kind`` can be.
KINDS: Final[Mapping[str, str]] = {
    "missing-file": "a file that the metadata names is not there",
    "short-file": "a file ends before the bytes that the metadata promises",
    "unreadable-file": "the system could not read a file",
    "unsafe-path": "the metadata names a file outside of the checkpoint",
    "checksum": "bytes do not have the CRC-32 that was written with them",
    "format": "bytes are not what the format prescribes",
    "shape": "a slice does not lie inside its tensor",
    "dtype": "a stored tensor has another dtype than the metadata says",
    "transform": "a record cannot be decoded",
    "unsafe-object": "an object needs code that is not allowed",
    "unexpected": "anything else that reading a record raised",
    "coverage": "the chunks of a tensor leave a hole, or overlap",
    "missing-entry": "the metadata does not say where a tensor or object is stored",
    "missing-metadata": "the metadata of a rank that saved alone is missing",
    "unused-entry": "the metadata says where something is stored, but not what it is",
    "overlapping-records": "two records are said to have the same bytes",
    "manifest": "a file is not the one that the manifest lists",
    "orphan-bytes": "no record has these bytes (a remark)",
    "orphan-file": "no record is in this file (a remark)",
    "ranks-elsewhere": "lower ranks that saved alone have no metadata here (a remark)",
}
_KIND_OF_ERROR: Final[Mapping[type[ItemReadError], str]] = {
    errors.MissingFileError: "missing-file",
    errors.ShortFileError: "short-file",
    errors.StorageReadError: "unreadable-file",
    errors.UnsafePathError: "unsafe-path",
    errors.ChecksumMismatchError: "checksum",
    errors.FormatError: "format",
    errors.ShapeMismatchError: "shape",
    errors.DtypeMismatchError: "dtype",
    errors.TransformError: "transform",
    errors.UnsafeObjectError: "unsafe-object",
    errors.CoverageError: "coverage",
    errors.MissingEntryError: "missing-entry",
    errors.ItemReadError: "unexpected",
}
_LISTED_FINDINGS: Final = 20
_LISTED_PARTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor or object, or the slice of a tensor that a record holds.

    Attributes:
        name: fully qualified.
        offsets: of the slice in its tensor; ``None`` for an object.
        lengths: of the slice; likewise.
    """

    name: str
    offsets: Shape | None = None
    lengths: Shape | None = None

    def __str__(self) -> str:
        """Name and slice, as Python would write it."""
        name = printable(self.name)
        if not self.offsets or not self.lengths:
            return name
        pairs = zip(self.offsets, self.lengths, strict=True)
        return f"{name}[{', '.join(f'{start}:{start + n}' for start, n in pairs)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: one of :data:`KINDS`, for programs; these words do not change.
        problem: what it is, in a sentence for people.
        path: the file, relative to the checkpoint.
        start: first byte in the file.
        end: one past the last.
        parts: tensors, slices of them, and objects that are affected.
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
    def of(
        cls,
        error: ItemReadError,
        parts: tuple[Part, ...],
        *,
        start: int | None = None,
        end: int | None = None,
    ) -> Self:
        """The finding for an error that reading ``parts`` raised."""
        return cls(
            kind=next(_KIND_OF_ERROR[c] for c in type(error).__mro__ if c in _KIND_OF_ERROR),
            problem=error.problem,
            path=error.path,
            start=start,
            end=end,
            parts=parts,
            expected=error.expected,
            got=error.got,
            hint=error.hint,
        )

    def affected(self) -> str:
        """The parts that are affected; a few of them, if they are many."""
        shown = ", ".join(map(str, self.parts[:_LISTED_PARTS]))
        hidden = len(self.parts) - _LISTED_PARTS
        return f"{shown} and {hidden} more" if hidden > 0 else shown

    def __str__(self) -> str:
        """Everything, on one line."""
        text = f"{self.kind}: {self.problem}"
        if self.path is not None:
            where = f", bytes [{self.start}, {self.end})" if self.end is not None else ""
            text += f" (file {self.path!r}{where})"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.got is not None:
            text += f", got {self.got}"
        if self.parts:
            text += f"; affects {self.affected()}"
        return printable(with_hint(text, self.hint))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The state of a checkpoint.

    Attributes:
        path: its folder.
        tensors: that it has.
        objects: that it has.
        records: pieces of tensors, and objects.
        files: that hold them.
        bytes_checked: whose CRC-32 was compared, and was right.
        bytes_unverifiable: that were written without one.
        uncompared: tensors that only torch can read: their dtype and shape were not looked at.
        bytes_direct: bytes that did not go through the page cache.
        retries: requests that the storage refused for the moment, and that were made again.
        fallback: why bytes were read in a slower way than was asked for; "" if none were.
        seconds: that it took.
        problems: what makes the checkpoint a bad one.
        remarks: what is odd, and harms nothing.
    """

    path: str
    tensors: int
    objects: int
    records: int
    files: int
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
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain types for JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def summary(self) -> str:
        """What was checked, without the findings."""
        rate = self.bytes_checked / self.seconds if self.seconds > 0 else 0.0
        lines = [
            (
                f"{'good' if self.ok else 'BAD'}: {counted(self.tensors, 'tensor')},"
                f" {counted(self.objects, 'object')}, {counted(self.records, 'record')} in"
                f" {counted(self.files, 'file')}"
            ),
            (
                f"CRC-32 checked for {format_bytes(self.bytes_checked)} in {self.seconds:.3f} s"
                f" ({format_bytes(rate)}/s)"
            ),
        ]
        if self.bytes_unverifiable:
            lines.append(f"written without a CRC-32: {format_bytes(self.bytes_unverifiable)}")
        if self.uncompared:
            lines.append(f"tensors that only torch can read, not compared: {self.uncompared}")
        if self.bytes_direct:
            lines.append(f"read past the page cache: {format_bytes(self.bytes_direct)}")
        if self.fallback:
            lines.append(f"slow path: {printable(self.fallback)}")
        if self.retries:
            lines.append(f"retried requests: {self.retries}")
        return "\n".join(lines)

    def __str__(self) -> str:
        """A few lines for a person."""
        lines = [self.summary()]
        for title, findings in (("problems", self.problems), ("remarks", self.remarks)):
            if findings:
                lines.append(f"{title}: {len(findings)}")
                lines += [f"  - {finding}" for finding in findings[:_LISTED_FINDINGS]]
            if len(findings) > _LISTED_FINDINGS:
                lines.append(f"  - and {len(findings) - _LISTED_FINDINGS} more")
        return "\n".join(lines)
