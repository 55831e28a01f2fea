"""Rows about `.metadata`: what it says of tensors and files, and what is in it besides."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    TensorProperties,
)

from paraload import SafeLoadPlanner
from tests.faults.case import Case, fails, in_time, loads, or_loads
from tests.faults.scene import saved_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.scene import Scene

__all__ = ["CASES"]

GROUP = "metadata"
Arrange = "Callable[[Scene], None]"


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({self.path!r}, 'w').close()",)


class HiddenTrap(Trap):
    """The same through a class that metadata may name."""

    def __reduce__(self) -> Any:
        return getattr, (dict, "fromkeys")


def content(change: Callable[[bytes], bytes | None]) -> Arrange:
    def arrange(scene: Scene) -> None:
        path = scene.folder / ".metadata"
        data = change(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)
        scene.words.append(".metadata")

    return arrange


def entry(fqn: str, **change: Callable[[Any, int], Any]) -> Arrange:
    """Change fields of a storage entry: ``old value, file size -> new value``."""

    def arrange(scene: Scene) -> None:
        scene.must_name(fqn)
        place = scene.place(fqn)
        old = {"offset": place.start, "length": place.length, "relative_path": place.path.name}
        size = place.path.stat().st_size
        scene.edit_entry(fqn, **{name: make(old[name], size) for name, make in change.items()})

    return arrange


def path_of(fqn: str, path: str) -> Arrange:
    def arrange(scene: Scene) -> None:
        secret = scene.folder.parent / f"{scene.folder.name}-outside"
        secret.write_bytes(scene.place(fqn).path.read_bytes())
        named = path.format(outside=secret, name=secret.name)
        scene.edit_entry(fqn, relative_path=named)
        scene.words += [repr(fqn)]

    return arrange


def allowed_path(scene: Scene) -> None:
    path_of("big.0", "../{name}")(scene)
    scene.options["allow_outside_paths"] = True


def chunks(fqn: str, change: Callable[[Any, Any], None]) -> Arrange:
    def arrange(scene: Scene) -> None:
        scene.edit_metadata(lambda m: change(m, m.state_dict_metadata[fqn]))
        scene.words.append(repr(fqn))

    return arrange


def without_chunk(number: int) -> Callable[[Any, Any], None]:
    return lambda _, tensor: tensor.chunks.pop(number) and None


def no_chunks(_: Any, tensor: Any) -> None:
    tensor.chunks.clear()


def moved(number: int, rows: int) -> Callable[[Any, Any], None]:
    """The chunk lies some rows away from where it should."""

    def change(metadata: Any, tensor: Any) -> None:
        old = tensor.chunks[number]
        offsets = torch.Size((old.offsets[0] + rows, *old.offsets[1:]))
        tensor.chunks[number] = ChunkStorageMetadata(offsets, old.sizes)
        for index in list(metadata.storage_data):
            if index.offset == old.offsets and index.index == number:
                info = metadata.storage_data.pop(index)
                metadata.storage_data[dataclasses.replace(index, offset=offsets)] = info

    return change


def resized(number: int, rows: int) -> Callable[[Any, Any], None]:
    def change(_: Any, tensor: Any) -> None:
        old = tensor.chunks[number]
        sizes = torch.Size((old.sizes[0] + rows, *old.sizes[1:]))
        tensor.chunks[number] = ChunkStorageMetadata(old.offsets, sizes)

    return change


def doubled(_: Any, tensor: Any) -> None:
    tensor.chunks.append(tensor.chunks[1])


def no_entry(*names: str) -> Arrange:
    def arrange(scene: Scene) -> None:
        def change(metadata: Any) -> None:
            for index in [i for i in metadata.storage_data if i.fqn in names]:
                del metadata.storage_data[index]

        scene.edit_metadata(change)
        scene.words += [repr(name) for name in names]

    return arrange


def no_tensor(scene: Scene) -> None:
    scene.edit_metadata(lambda m: m.state_dict_metadata.pop("small.0"))
    scene.words.append("small.0")


def bytes_for_tensor(scene: Scene) -> None:
    def change(metadata: Any) -> None:
        metadata.state_dict_metadata["small.0"] = BytesStorageMetadata()

    scene.edit_metadata(change)
    scene.words.append("small.0")


def described(fqn: str, **values: Any) -> Arrange:
    """The metadata has another dtype or shape than the file."""

    def arrange(scene: Scene) -> None:
        def change(metadata: Any) -> None:
            tensor = metadata.state_dict_metadata[fqn]
            if "dtype" in values:
                tensor.properties = TensorProperties(dtype=values["dtype"])
            if "shape" in values:
                tensor.size = torch.Size(values["shape"])
                tensor.chunks = [ChunkStorageMetadata(torch.Size((0, 0)), tensor.size)]

        scene.edit_metadata(change)
        if "shape" in values:
            scene.targets[fqn] = torch.full(values["shape"], 7).to(scene.targets[fqn].dtype)
        scene.must_name(fqn)

    return arrange


def swapped_tensors(first: str, second: str) -> Arrange:
    """The places of two tensors are swapped."""

    def arrange(scene: Scene) -> None:
        def change(metadata: Any) -> None:
            by_name = {index.fqn: index for index in metadata.storage_data}
            a, b = by_name[first], by_name[second]
            data = metadata.storage_data
            data[a], data[b] = data[b], data[a]

        scene.edit_metadata(change)
        # An object may be anything, a tensor too, so that one says nothing.
        scene.words += [repr(first)] if second == "step" else [repr(first), repr(second)]

    return arrange


def trapped(where: str) -> Arrange:
    def arrange(scene: Scene) -> None:
        trap = Trap(str(scene.folder.parent / "executed"))

        def change(metadata: Any) -> None:
            if where == "planner data":
                metadata.planner_data = trap
            elif where == "a storage entry":
                metadata.storage_data["x"] = trap
            elif where == "a chunk":
                metadata.state_dict_metadata["big.0"].chunks.append(trap)
            else:
                metadata.storage_meta = HiddenTrap("")

        if where == "place of the metadata":
            (scene.folder / ".metadata").write_bytes(pickle.dumps(trap))
        else:
            scene.edit_metadata(change)
        scene.words += [".metadata", "exec" if where != "storage_meta" else "getattr"]

    return arrange


def trapped_item(*, safe: bool) -> Arrange:
    def arrange(scene: Scene) -> None:
        trap = Trap(str(scene.folder.parent / "executed"))
        scene.put_record("note", saved_bytes(trap))
        scene.expected["note"] = None  # what exec() gives
        if safe:
            scene.planner = SafeLoadPlanner()
            scene.words.append("'note'")

    return arrange


def safe_planner(scene: Scene) -> None:
    scene.planner = SafeLoadPlanner()


def _rows() -> list[tuple[str, Any, Any, str]]:
    bad = in_time("MetadataError")
    rows: list[tuple[str, Any, Any, str]] = [
        (".metadata missing", content(lambda _: None), in_time("MissingMetadataError"), "plain"),
        (".metadata empty", content(lambda _: b""), bad, "plain"),
        (".metadata cut in half", content(lambda d: d[: len(d) // 2]), bad, "plain"),
        (".metadata without its last byte", content(lambda d: d[:-1]), bad, "plain"),
        (".metadata all zeros", content(lambda d: bytes(len(d))), bad, "plain"),
        (".metadata is a dict", content(lambda _: pickle.dumps({"a": 1})), bad, "plain"),
        (".metadata is a zip archive", content(lambda _: saved_bytes({"a": 1})), bad, "plain"),
        (".metadata is text", content(lambda _: b'{"weight_map": {}}'), bad, "plain"),
    ]
    ranges: dict[str, tuple[Any, tuple[str, ...]]] = {
        "offset one too small": ({"offset": lambda o, _: o - 1}, ()),
        "offset one too big": ({"offset": lambda o, _: o + 1}, ()),
        "length one too small": ({"length": lambda n, _: n - 1}, ()),
        "length zero": ({"length": lambda _, __: 0}, ()),
        "offset negative": ({"offset": lambda _, __: -1}, ("FormatError",)),
        "offset huge and negative": ({"offset": lambda _, __: -(1 << 62)}, ("FormatError",)),
        "length negative": ({"length": lambda _, __: -5}, ("FormatError",)),
        "offset at the end of the file": ({"offset": lambda _, n: n}, ("ShortFileError",)),
        "range one past the end": ({"length": lambda _, n: n + 1}, ("ShortFileError",)),
        "offset huge": ({"offset": lambda _, __: 1 << 62}, ("ShortFileError",)),
        "offset beyond 64 bits": ({"offset": lambda _, __: 1 << 70}, ("ShortFileError",)),
        "length huge": ({"length": lambda _, __: 1 << 62}, ("ShortFileError",)),
    }
    for fqn in ("big.1", "small.1", "note"):
        for name, (change, kinds) in ranges.items():
            # Off by one, the bytes are all there, and may even prove to be right.
            expect = in_time(*kinds) if kinds else or_loads()
            rows.append((f"{name}: {fqn}", entry(fqn, **change), expect, "plain"))
    for name, path in {
        "absolute": "{outside}",
        "leaving the folder": "../{name}",
        "leaving the folder by way of another": "x/../../{name}",
        "with a NUL": "a\0b",
        "that no file can have": "\ud800",
        "the folder itself": ".",
        "empty": "",
    }.items():
        kinds = ("FormatError",) if name in {"the folder itself", "empty"} else ("UnsafePathError",)
        rows.append((f"path {name}", path_of("big.0", path), in_time(*kinds), "plain"))
    rows.append(("path outside, allowed", allowed_path, loads(), "plain"))
    return [*rows, *_coverage(), *_code()]


def _coverage() -> list[tuple[str, Any, Any, str]]:
    torn = in_time("CoverageError")
    rows: list[tuple[str, Any, Any, str]] = []
    for fqn in ("w", "b"):
        for number, where in enumerate(("first", "middle", "last")):
            change = without_chunk(number)
            rows.append((f"{where} chunk of {fqn} missing", chunks(fqn, change), torn, "chunked"))
        for name, change in {
            "no chunks": no_chunks,
            "chunk one row too early": moved(1, -1),
            "chunk one row too late": moved(1, 1),
            "chunk outside": moved(2, 1),
            "chunk one row too short": resized(1, -1),
            "chunk one row too long": resized(1, 1),
            "chunk twice": doubled,
        }.items():
            rows.append((f"{name}: {fqn}", chunks(fqn, change), torn, "chunked"))
    gone = in_time("MissingEntryError")
    other = fails("ShapeMismatchError", "DtypeMismatchError")
    return [
        *rows,
        ("no storage entry: a tensor", no_entry("big.0"), gone, "plain"),
        ("no storage entry: an object", no_entry("note"), gone, "plain"),
        ("no storage entry: several", no_entry("big.0", "small.2", "note"), gone, "plain"),
        ("no storage entry: all chunks", no_entry("w"), gone, "chunked"),
        ("stored dtype differs: big", described("big.0", dtype=torch.int32), other, "plain"),
        ("stored dtype differs: small", described("small.0", dtype=torch.float16), other, "plain"),
        ("stored dtype is wider", described("small.0", dtype=torch.float32), other, "plain"),
        ("stored shape differs: big", described("big.0", shape=(299, 700)), other, "plain"),
        ("stored shape differs: small", described("small.0", shape=(3, 50)), other, "plain"),
        ("stored shape is bigger", described("small.0", shape=(49, 3)), other, "plain"),
        ("stored shape is smaller", described("small.0", shape=(51, 3)), other, "plain"),
        (
            "two tensors have each other's place",
            swapped_tensors("big.0", "small.0"),
            other,
            "plain",
        ),
        (
            "tensor has an object's place",
            swapped_tensors("small.0", "step"),
            fails("CheckpointReadError"),
            "plain",
        ),
    ]


def _code() -> list[tuple[str, Any, Any, str]]:
    refused = in_time("UnsafeMetadataError")
    places = ("planner data", "a storage entry", "a chunk", "storage_meta", "place of the metadata")
    return [
        *[(f"code in .metadata: {where}", trapped(where), refused, "plain") for where in places],
        ("code in a bytes item", trapped_item(safe=False), loads(), "plain"),
        (
            "code in a bytes item, SafeLoadPlanner",
            trapped_item(safe=True),
            fails("UnsafeObjectError"),
            "plain",
        ),
        ("nothing wrong, SafeLoadPlanner", safe_planner, loads(), "plain"),
    ]


CASES = [
    Case(
        group=GROUP,
        name=name,
        arrange=arrange,
        expect=expect,
        sample=sample,
        tells=("incomplete checkpoint?",) if name == ".metadata missing" else (),
    )
    for name, arrange, expect, sample in _rows()
]
