"""What a case gets: a checkpoint of its own, targets, and how they will be loaded.

sample (saved once) --copy--> Scene --case.arrange--> damaged files, odd targets, armed faults
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import shutil
import zipfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

import tests.old_torch  # noqa: F401 - before torch is used
from paraload.core.compat import ZStandard

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Place", "Scene", "prepare"]

FILL = 7  # fits every dtype; no sample holds it everywhere
_FLOAT8 = torch.float8_e4m3fn


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record is."""

    path: Path
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    def read(self) -> bytes:
        return self.path.read_bytes()[self.start : self.end]


@dataclasses.dataclass(slots=True, kw_only=True)
class Scene:
    """The surroundings of a case; ``arrange`` changes them."""

    folder: Path
    #: A file that is there when the fault came about.
    met: Path
    expected: dict[str, Any]
    targets: dict[str, Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    planner: Any = None
    #: Wraps the byte source: ``inner -> source``. torch's reader has none and sits such out.
    source: Any = None
    #: The instruction of the shim: "call:first:errno:times:short_bytes".
    shim: str = ""
    #: Must be in the error's text.
    words: list[str] = dataclasses.field(default_factory=list)
    #: Entered around the load.
    around: ExitStack = dataclasses.field(default_factory=ExitStack)
    executor: str = "threads"

    def place(self, fqn: str) -> Place:
        """Where ``fqn`` is stored; with several chunks, its first."""
        infos = self.metadata().storage_data
        info = next(info for index, info in infos.items() if index.fqn == fqn)
        return Place(path=self.folder / info.relative_path, start=info.offset, length=info.length)

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.distcp"))

    def metadata(self) -> Any:
        return pickle.loads((self.folder / ".metadata").read_bytes())

    def edit_metadata(self, change: Any) -> None:
        metadata = self.metadata()
        change(metadata)
        (self.folder / ".metadata").write_bytes(pickle.dumps(metadata))

    def edit_entry(self, fqn: str, **values: Any) -> None:
        """Change fields of the storage entry of ``fqn``."""

        def change(metadata: Any) -> None:
            for index, info in metadata.storage_data.items():
                if index.fqn == fqn:
                    metadata.storage_data[index] = dataclasses.replace(info, **values)
                    return

        self.edit_metadata(change)

    def put_record(self, fqn: str, record: bytes) -> None:
        """Store ``record`` at the end of the file, and say so."""
        place = self.place(fqn)
        offset = place.path.stat().st_size
        with place.path.open("ab") as file:
            file.write(record)
        self.edit_entry(fqn, offset=offset, length=len(record))

    def must_name(self, fqn: str) -> None:
        """The error names the tensor, its file and the bytes."""
        self.words += [repr(fqn), self.place(fqn).path.name, "bytes ["]


def payload_of(record: bytes) -> tuple[int, int]:
    """Where the tensor's bytes are in its record."""
    with zipfile.ZipFile(io.BytesIO(record)) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("/data/0"))
    at = info.header_offset
    names = int.from_bytes(record[at + 26 : at + 28], "little")
    extras = int.from_bytes(record[at + 28 : at + 30], "little")
    start = at + 30 + names + extras
    return start, start + info.file_size


def saved_bytes(value: Any, **keywords: Any) -> bytes:
    """``torch.save`` of it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **keywords)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------- samples


def _plain() -> dict[str, Any]:
    state: dict[str, Any] = {f"big.{n}": torch.randn(300, 700) for n in range(3)}
    state |= {f"small.{n}": torch.randn(50, 3).to(torch.bfloat16) for n in range(3)}
    state |= {
        "uint8": torch.arange(250, dtype=torch.uint8),
        "bool": torch.rand(333) > 0.5,
        "complex": torch.randn(40, dtype=torch.complex64),
        "float16": torch.randn(60).half(),
        "float8": torch.randn(64).to(_FLOAT8),
        "int64": torch.tensor(41),
        "empty": torch.empty(0, 3),
        "big.uint8": torch.randint(0, 255, (300_000,), dtype=torch.uint8),
        "step": 1234,
        "note": "text" * 100,
    }
    return state


def _many() -> dict[str, Any]:
    return {f"w.{n}": torch.randn(200) for n in range(40)}


def _chunked() -> dict[str, Any]:
    return {f"w.{n}": torch.randn(100, 700) for n in range(3)} | {
        f"b.{n}": torch.randn(10, 4) for n in range(3)
    }


def _join_chunks(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Three tensors become the chunks of one, as ranks would have saved it."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    whole = {}
    for name in ("w", "b"):
        rows = state[f"{name}.0"].shape[0]
        whole[name] = torch.cat([state[f"{name}.{n}"] for n in range(3)])
        entry = metadata.state_dict_metadata[f"{name}.0"]
        chunks = []
        for n in range(3):
            metadata.state_dict_metadata.pop(f"{name}.{n}")
            old = next(i for i in metadata.storage_data if i.fqn == f"{name}.{n}")
            info = metadata.storage_data.pop(old)
            offsets = torch.Size((n * rows, 0))
            metadata.storage_data[MetadataIndex(name, offsets, n)] = info
            chunks.append(ChunkStorageMetadata(offsets, state[f"{name}.{n}"].shape))
        entry.size, entry.chunks = whole[name].shape, chunks
        metadata.state_dict_metadata[name] = entry
    path.write_bytes(pickle.dumps(metadata))
    return whole


_STATES = {"plain": _plain, "zstd": _plain, "many": _many, "chunked": _chunked}
_FILES = {"many": 12}


def _save(sample: str, folder: Path) -> dict[str, Any]:
    state = _STATES[sample]()
    writer = FileSystemWriter(
        folder,
        thread_count=_FILES.get(sample, 3),
        single_file_per_rank=True,
        _extensions=[ZStandard()] if sample == "zstd" else None,
    )
    dcp.save(state, storage_writer=writer, no_dist=True)
    return _join_chunks(folder, state) if sample == "chunked" else state


def prepare(sample: str, base: Path, name: str) -> Scene:
    """A fresh copy of ``sample`` under ``base``, with empty targets."""
    pristine = base / f"pristine-{sample}"
    kept = base / f"{sample}.expected"
    if not kept.exists():
        torch.manual_seed(7)
        torch.save(_save(sample, pristine), kept)
    folder = base / name
    shutil.copytree(pristine, folder)
    expected = torch.load(kept, weights_only=True)
    return Scene(folder=folder, met=base / "met", expected=expected, targets=blank(expected))


def blank(state: dict[str, Any]) -> dict[str, Any]:
    """Targets that hold none of it."""
    return {
        name: torch.full(value.shape, FILL, dtype=torch.float32).to(value.dtype)
        if isinstance(value, torch.Tensor)
        else None
        for name, value in state.items()
    }


def same(got: Any, wanted: Any) -> bool:
    """Bit for bit, NaNs too."""
    if isinstance(wanted, torch.Tensor):
        return (
            isinstance(got, torch.Tensor)
            and got.dtype == wanted.dtype
            and got.shape == wanted.shape
            and _bits(got) == _bits(wanted)
        )
    return type(got) is type(wanted) and got == wanted


def _bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""
