"""What a verification has found. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from paraload.report import format_bytes

if TYPE_CHECKING:
    from paraload._geometry import Shape

__all__ = ["Finding", "Part", "VerifyReport"]

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
        if not self.offsets or not self.lengths:
            return self.name
        pairs = zip(self.offsets, self.lengths, strict=True)
        return f"{self.name}[{', '.join(f'{start}:{start + n}' for start, n in pairs)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: in a word or two.
        problem: what it is.
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
        return f"{text}. {self.hint}" if self.hint else text


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
                f"{'good' if self.ok else 'BAD'}: {self.tensors} tensors, {self.objects} objects,"
                f" {self.records} records in {self.files} file{'s' * (self.files != 1)}"
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
            lines.append(f"slow path: {self.fallback}")
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
