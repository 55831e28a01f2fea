"""Rows about what is in the files: cut, missing, damaged, other formats, bombs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING

import torch

from tests.faults.case import Case, fails, in_time, loads, or_loads
from tests.faults.scene import payload_of, saved_bytes
from tests.faults.slices import Rows, rows_only

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.scene import Scene

__all__ = ["CASES"]

GROUP = "file content"
Arrange = "Callable[[Scene], None]"


# ---------------------------------------------------------------------------------- whole files


def cut(change: Callable[[int], int], *which: int) -> Arrange:
    def arrange(scene: Scene) -> None:
        for n in which:
            path = scene.files()[n]
            os.truncate(path, change(path.stat().st_size))
            scene.words += [path.name, "bytes ["]

    return arrange


def zeroed(scene: Scene) -> None:
    path = scene.files()[0]
    path.write_bytes(bytes(path.stat().st_size))
    scene.words += [path.name]


def without(*which: int) -> Arrange:
    def arrange(scene: Scene) -> None:
        paths = scene.files()
        for n in which:
            paths[n].unlink()
            scene.words.append(paths[n].name)

    return arrange


def several_broken(scene: Scene) -> None:
    missing, short, empty, folder, *_, last = scene.files()
    missing.unlink()
    os.truncate(short, short.stat().st_size - 1)
    os.truncate(empty, 0)
    folder.unlink()
    folder.mkdir()
    os.truncate(last, last.stat().st_size // 2)
    scene.words += [path.name for path in (missing, short, empty, folder, last)]


def swapped(scene: Scene) -> None:
    first, second, *_ = scene.files()
    scene.words += [first.name]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b.ljust(len(a), b"\0"))


# ---------------------------------------------------------------------------------- in a record

REGIONS = {
    "signature of the local header": lambda record: 0,
    "flags of the local header": lambda record: 6,
    "method of the local header": lambda record: 8,
    "length of the name": lambda record: 26,
    "length of the extra field": lambda record: 28,
    "name": lambda record: 31,
    "data.pkl": lambda record: record.index(b"_rebuild_tensor_v2") + 3,
    "storage offset in data.pkl": lambda record: record.index(b"QK") + 2,
    "shape in data.pkl": lambda record: record.index(b"QK") + 4,
    "byteorder": lambda record: record.index(b"little") + 1,
    "data descriptor's signature": lambda record: payload_of(record)[1] + 1,
    "CRC in the data descriptor": lambda record: payload_of(record)[1] + 5,
    "size in the data descriptor": lambda record: payload_of(record)[1] + 8,
    "central directory": lambda record: record.index(b"PK\x01\x02") + 20,
    "name in the central directory": lambda record: record.index(b"PK\x01\x02") + 47,
    "zip64 end": lambda record: record.rindex(b"PK\x06\x06") + 30,
    "end of central directory": lambda record: record.rindex(b"PK\x05\x06") + 12,
    "last byte": lambda record: len(record) - 1,
}


def damaged(fqn: str, at: Callable[[bytes], int], nbytes: int = 1) -> Arrange:
    """Flip a byte of a record, or zero a page."""

    def arrange(scene: Scene) -> None:
        place = scene.place(fqn)
        record = place.read()
        offset = place.start + at(record)
        data = bytearray(place.path.read_bytes())
        if nbytes == 1:
            data[offset] ^= 1
        else:
            data[offset : offset + nbytes] = bytes(nbytes)
        place.path.write_bytes(data)
        scene.must_name(fqn)

    return arrange


def middle(record: bytes) -> int:
    start, end = payload_of(record)
    return (start + end) // 2


def in_pickle(record: bytes) -> int:
    with zipfile.ZipFile(io.BytesIO(record)) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data.pkl"))
        content = archive.read(info)
    return record.index(content) + len(content) // 2


def damaged_row(*, wanted: bool) -> Arrange:
    """Damage in row 10 of a slice that begins at row 0 or 100."""

    def arrange(scene: Scene) -> None:
        damaged("big.0", lambda record: payload_of(record)[0] + 10 * 700 * 4)(scene)
        scene.words.clear()
        if wanted:
            scene.planner = Rows(5, 100)
            rows_only(scene, 5, 100)
            place = scene.place("big.0")
            row = place.read()[payload_of(place.read())[0] + 28_000 :][:4]
            # Damage that cannot be detected is loaded, and counted as unverified.
            scene.expected["big.0"][10, 0] = struct.unpack("<f", row)[0]
        else:
            scene.planner = Rows(100, 200)
            rows_only(scene, 100, 200)

    return arrange


# ------------------------------------------------------------------------- records of other kinds


def rewritten(fqn: str, make: Callable[[torch.Tensor], bytes]) -> Arrange:
    def arrange(scene: Scene) -> None:
        scene.put_record(fqn, make(scene.expected[fqn]))
        scene.words.append(repr(fqn))

    return arrange


def rezipped(record: bytes, change: Callable[[str, bytes], bytes], *, deflate: bool) -> bytes:
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(record)) as old, zipfile.ZipFile(out, "w", method) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
    return out.getvalue()


def deflated(tensor: torch.Tensor) -> bytes:
    return rezipped(saved_bytes(tensor), lambda _, data: data, deflate=True)


def deflated_bomb(tensor: torch.Tensor) -> bytes:
    """Its payload is said to be right, and inflates to half a GiB."""

    def change(name: str, data: bytes) -> bytes:
        return bytes(512 << 20) if name.endswith("data/0") else data

    return rezipped(saved_bytes(tensor), change, deflate=True)


def big_endian(tensor: torch.Tensor) -> bytes:
    def change(name: str, data: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        if name.endswith("data/0"):
            size = tensor.element_size()
            turned = [data[n : n + size][::-1] for n in range(0, len(data), size)]
            return b"".join(turned)
        return data

    return rezipped(saved_bytes(tensor), change, deflate=False)


def without_crc(record: bytes) -> bytes:
    """Zero in descriptors and directory, as from a writer with checksums turned off."""
    data = bytearray(record)
    with zipfile.ZipFile(io.BytesIO(record)) as archive:
        infos = archive.infolist()
    at = 0
    for signature, offset in ((b"PK\x07\x08", 4), (b"PK\x01\x02", 16), (b"PK\x03\x04", 14)):
        at = 0
        for info in infos:
            at = data.index(signature, at)
            # Never inside of a payload: what follows is that of the next entry.
            data[at + offset : at + offset + 4] = bytes(4)
            at += max(4, info.file_size if signature == b"PK\x03\x04" else 4)
    return bytes(data)


def offset_view(tensor: torch.Tensor) -> bytes:
    flat = torch.cat([torch.zeros(5, dtype=tensor.dtype), tensor.reshape(-1)])
    return saved_bytes(flat[5:].view(tensor.shape))


def strided(tensor: torch.Tensor) -> bytes:
    return saved_bytes(tensor.t().contiguous().t())


def claims(size: int) -> Callable[[torch.Tensor], bytes]:
    """The pickle claims a storage and a shape far larger than the bytes."""

    def make(tensor: torch.Tensor) -> bytes:
        record = saved_bytes(tensor)

        def change(name: str, data: bytes) -> bytes:
            if not name.endswith("data.pkl"):
                return data
            count = tensor.numel()
            old = b"J" + struct.pack("<i", count)
            if count < 1 << 16:
                old = b"M" + struct.pack("<H", count) if count > 255 else b"K" + bytes([count])
            assert old in data
            return data.replace(old, b"\x8a\x08" + struct.pack("<q", size))

        return rezipped(record, change, deflate=False)

    return make


def zstd_record(change: Callable[[bytes], bytes]) -> Arrange:
    """The frame of small.0, changed."""

    def arrange(scene: Scene) -> None:
        place = scene.place("small.0")
        frame = change(place.read())
        scene.put_record("small.0", frame)
        scene.words.append("'small.0'")

    return arrange


def inner(change: Callable[[bytearray], None]) -> Callable[[bytes], bytes]:
    """Damage below the compression, which zstd itself has no checksum against."""

    def apply(frame: bytes) -> bytes:
        import zstandard

        data = bytearray(zstandard.ZstdDecompressor().decompressobj().decompress(frame))
        change(data)
        return zstandard.ZstdCompressor().compress(bytes(data))

    return apply


def flip_payload(data: bytearray) -> None:
    data[middle(bytes(data))] ^= 1


def zstd_bomb(_: bytes) -> bytes:
    import zstandard

    out = zstandard.ZstdCompressor().compressobj()
    return b"".join(out.compress(bytes(1 << 20)) for _ in range(2048)) + out.flush()


def flip_frame(frame: bytes) -> bytes:
    data = bytearray(frame)
    data[len(data) // 2] ^= 1
    return bytes(data)


CRC = fails("ChecksumMismatchError")
DAMAGE = or_loads()


def _rows() -> list[tuple[str, object, object, str]]:
    half, one, gone = (lambda n: n // 2), (lambda n: n - 1), (lambda _: 0)
    short = in_time("ShortFileError")
    missing = in_time("MissingFileError")
    rows: list[tuple[str, object, object, str]] = [
        ("nothing wrong", lambda _: None, loads(), "plain"),
        ("nothing wrong, zstd", lambda _: None, loads(), "zstd"),
        ("nothing wrong, chunks", lambda _: None, loads(), "chunked"),
        ("shard cut in half", cut(half, 0), short, "plain"),
        ("last byte of a shard missing", cut(one, 0), short, "plain"),
        ("last byte of the last of 12 shards missing", cut(one, -1), short, "many"),
        ("all shards cut in half", cut(half, 0, 1, 2), short, "plain"),
        ("shard empty", cut(gone, 0), short, "plain"),
        ("all shards empty", cut(gone, 0, 1, 2), short, "plain"),
        ("shard filled with zeros", zeroed, fails("CheckpointReadError"), "plain"),
        ("shard has the bytes of another one", swapped, fails("CheckpointReadError"), "plain"),
        ("shard missing", without(0), missing, "plain"),
        ("last of 12 shards missing", without(-1), missing, "many"),
        ("several shards missing", without(0, 5, 11), missing, "many"),
        ("five shards broken, each in its own way", several_broken, missing, "many"),
    ]
    names = ("big.0", "small.0", "uint8", "bool", "complex", "float16", "float8", "int64")
    for name in (*names, "big.uint8"):
        rows.append((f"byte flipped in the data of {name}", damaged(name, middle), CRC, "plain"))  # noqa: PERF401 - a row a line
    first, last = (lambda r: payload_of(r)[0]), (lambda r: payload_of(r)[1] - 1)
    for name in ("big.1", "small.1"):
        rows += [
            (f"first byte of the data of {name} flipped", damaged(name, first), CRC, "plain"),
            (f"last byte of the data of {name} flipped", damaged(name, last), CRC, "plain"),
        ]
    page = damaged("big.0", lambda r: payload_of(r)[0] + 8192, 4096)
    rows += [
        ("page zeroed in the data of big.0", page, CRC, "plain"),
        ("byte flipped in a slice's rows", damaged_row(wanted=True), loads("unverified"), "plain"),
        ("byte flipped outside a slice's rows", damaged_row(wanted=False), loads(), "plain"),
        ("byte flipped in a chunk", damaged("w", middle), CRC, "chunked"),
        ("byte flipped in a bytes item", damaged("note", in_pickle), CRC, "plain"),
        ("byte flipped in a bytes item of a number", damaged("step", in_pickle), CRC, "plain"),
    ]
    for name in ("big.0", "small.0"):
        for region, at in REGIONS.items():
            rows.append((f"{region} of {name} flipped", damaged(name, at), DAMAGE, "plain"))
    return [*rows, *_other_records()]


def _other_records() -> list[tuple[str, object, object, str]]:
    rows: list[tuple[str, object, object, str]] = []
    for name in ("big.0", "small.0"):
        legacy = lambda t: saved_bytes(t, _use_new_zipfile_serialization=False)  # noqa: E731
        parameter = lambda t: saved_bytes(torch.nn.Parameter(t))  # noqa: E731
        uncounted = lambda t: without_crc(saved_bytes(t))  # noqa: E731
        rows += [
            (f"{name} in torch's format before 1.6", rewritten(name, legacy), loads(), "plain"),
            (f"{name} DEFLATEd", rewritten(name, deflated), loads(), "plain"),
            (f"{name} big-endian", rewritten(name, big_endian), loads(), "plain"),
            (f"{name} strided", rewritten(name, strided), loads(), "plain"),
            (f"{name} with a storage offset", rewritten(name, offset_view), loads(), "plain"),
            (f"{name} a Parameter", rewritten(name, parameter), loads(), "plain"),
            (f"{name} with CRCs of 0", rewritten(name, uncounted), loads("unverified"), "plain"),
            (
                f"{name} inflates to 512 MiB",
                rewritten(name, deflated_bomb),
                fails("CheckpointReadError"),
                "plain",
            ),
        ]
        for power in (40, 62):
            rows.append(
                (
                    f"{name} claims 2^{power} elements",
                    rewritten(name, claims(1 << power)),
                    fails("CheckpointReadError"),
                    "plain",
                )
            )
    rows += [
        ("zstd frame cut", zstd_record(lambda f: f[:-3]), fails("TransformError"), "zstd"),
        (
            "zstd frame cut in half",
            zstd_record(lambda f: f[: len(f) // 2]),
            fails("TransformError"),
            "zstd",
        ),
        (
            "zstd frame with a flipped byte",
            zstd_record(flip_frame),
            fails("TransformError", "ChecksumMismatchError", "FormatError"),
            "zstd",
        ),
        ("byte flipped before compression", zstd_record(inner(flip_payload)), CRC, "zstd"),
        ("no zstd frame", zstd_record(lambda f: b"\0" * len(f)), fails("TransformError"), "zstd"),
        (
            "zstd item inflates to 2 GiB",
            zstd_record(zstd_bomb),
            fails("CheckpointReadError"),
            "zstd",
        ),
        (
            "object in place of a tensor",
            rewritten("small.0", lambda t: saved_bytes([1])),
            fails("CheckpointReadError"),
            "plain",
        ),
        (
            "no archive in place of a tensor",
            rewritten("small.0", lambda t: b"x" * 1000),
            fails("CheckpointReadError"),
            "plain",
        ),
        (
            "pickle in place of a tensor",
            rewritten("small.0", lambda t: pickle.dumps(1)),
            fails("CheckpointReadError"),
            "plain",
        ),
    ]
    return rows


CASES = [
    Case(group=GROUP, name=name, arrange=arrange, expect=expect, sample=sample)
    for name, arrange, expect, sample in _rows()
]
