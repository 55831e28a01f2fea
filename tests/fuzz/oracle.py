"""What must hold of a reader that is given any bytes: the truth or a typed error, soon, no code.

bytes --> reader, watched --> the source's bytes | CheckpointReadError
              |
              `-- an import, a file outside, much memory, many seconds: Broken
"""

from __future__ import annotations

import encodings.cp437  # noqa: F401 - zipfile reads odd names with it
import resource
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch

from paraload import CheckpointReadError, ParallelFileSystemReader, SafeLoadPlanner
from paraload.core.records import TensorRecord
from paraload.errors import FormatError, ShortFileError
from paraload.formats import NeedBytes
from paraload.formats.archive import check_archive
from paraload.formats.safetensors import header_end, parse_header
from paraload.formats.torch_load import load_tensor
from paraload.formats.torch_zip import TorchZipFormat
from paraload.metadata import reading as metadata
from paraload.metadata.unpickler import unpickle
from paraload.workers.run_task import run_task  # noqa: F401 - imported now, not while audited
from tests.fuzz import seeds

__all__ = [
    "Broken",
    "check_checkpoint",
    "check_metadata",
    "check_record",
    "check_safetensors",
    "check_unpickler",
]

SECONDS = 5.0
#: Of address space beyond what is there: far more than any seed needs.
MEMORY_BYTES = 256 << 20

#: The audit events of code that runs.
_FORBIDDEN = (
    *("import", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "shutil."),
    *("pickle.find_class", "code.", "sys.", "webbrowser."),
)
_HARMLESS = ("sys._getframe", "os.listdir", "os.scandir", "sys.unraisablehook")
_SYSTEM = ("/proc/", "/sys/", "/dev/shm")


class Broken(AssertionError):  # noqa: N818 - what a fuzzer reports
    """The contract does not hold."""


class _Watch:
    """An audit hook cannot be removed, so it is switched."""

    def __init__(self):
        self.folder = None
        self.seen = []
        self._is_there = False

    def start(self, folder):
        if not self._is_there:
            sys.addaudithook(self._look)
            self._is_there = True
        self.seen = []
        self.folder = str(folder)

    def stop(self):
        self.folder = None

    def _look(self, event, arguments):
        if self.folder is None:
            return
        # The text of a traceback needs the lines of our sources, and parses them for its carets.
        if event == "compile" and arguments[1] == "<unknown>":
            return
        if event == "open" and isinstance(arguments[0], str):
            if arguments[0].endswith(".py") and arguments[1] == "r":
                return
            if not arguments[0].startswith((self.folder, *_SYSTEM)):
                self.seen.append((event, arguments))
        elif event.startswith(_FORBIDDEN) and event not in _HARMLESS:
            self.seen.append((event, arguments))


_watch = _Watch()


def _own_bytes():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextmanager
def watched(folder="/nowhere"):
    """Check time, memory, and what runs."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_own_bytes() + MEMORY_BYTES, before[1]))
    began = time.monotonic()
    _watch.start(folder)
    try:
        yield
    except CheckpointReadError as error:
        _look_for_memory(error)
    finally:
        _watch.stop()
        resource.setrlimit(resource.RLIMIT_AS, before)
    if _watch.seen:
        raise Broken(f"ran or opened {_watch.seen[:3]}")
    if (seconds := time.monotonic() - began) > SECONDS:
        raise Broken(f"took {seconds:.1f} s")


def _look_for_memory(error):
    """A MemoryError means that too much was asked for."""
    texts = [failure.traceback_text for failure in error.failures] + [str(error)]
    cause = error
    while cause is not None:
        texts.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if about := [text for text in texts if "MemoryError" in text or "allocate" in text]:
        raise Broken(f"asked for much memory: {about[0][-2000:]}") from error


# ------------------------------------------------------------------------------------ metadata


@contextmanager
def _folder():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def check_metadata(data):
    """``read_metadata`` of any bytes."""
    with _folder() as folder:
        path = folder / ".metadata"
        path.write_bytes(data)
        with watched(folder):
            found = metadata.read_metadata(path, load_id="a load")
            if not isinstance(found.state_dict_metadata, dict):
                raise Broken("state_dict_metadata is not a dict")


def check_unpickler(data):
    """The restricted unpickler: an error of any kind, but nothing else happens."""
    with watched():
        try:
            unpickle(data)
        except MemoryError as error:
            raise Broken("asked for much memory") from error
        except Exception:  # noqa: BLE001 - as it says
            pass


# --------------------------------------------------------------------------------- safetensors

#: What the library accepts and paraload refuses: a name twice and a space in front, which the
#: format forbids; dtypes and rows that torch cannot have; lists in the place of objects.
_STRICTER = (
    *("occurs twice", "not a safetensors file", "torch has no such dtype", "whole bytes"),
    *("does not say where it is", "the shape is impossible", "Exceeds the limit"),
)
#: What the library refuses and paraload accepts, since JSON has it: -0, and in fields that neither
#: of them knows, deep nesting and huge numbers.
_LAXER = ("floating point `-0.0`", "recursion limit exceeded", "number out of range")


def check_safetensors(data):
    """Headers are read as the safetensors library reads them."""
    found = refusal = None
    with watched():
        try:
            end = header_end(data[:8], len(data), path="x")
            found = parse_header(data[:end], len(data), path="x")
        except (FormatError, ShortFileError) as error:
            refusal = error
    if found is None and refusal is None:
        raise Broken("neither tensors nor one of the two errors")
    try:
        expected = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        if found is not None and not any(text in str(error) for text in _LAXER):
            raise Broken(f"accepts what the library refuses: {error}") from error
        return "refused"
    if refusal is not None:
        if not any(text in str(refusal) for text in _STRICTER):
            raise Broken(f"refuses what the library accepts: {refusal}") from refusal
        return "refused"
    _compare(found, dict(expected), data)
    return "accepted"


def _compare(found, expected, data):
    if {it.name for it in found.tensors} != set(expected):
        raise Broken("other names than the library's")
    for name, start, end, layout in found.tensors:
        shape = expected[name]["shape"]
        if expected[name]["dtype"] == "F4":
            shape = [*shape[:-1], shape[-1] // 2]
        if list(layout.shape) != shape or not layout.is_sound():
            raise Broken(f"{name!r} has shape {layout.shape}, in the library {shape}")
        if data[start:end] != bytes(expected[name]["data"]):
            raise Broken(f"{name!r} has other bytes than in the library")


# ------------------------------------------------------------------------------------- records


def check_record(data):
    """The format agrees with torch, and never points at bytes that are not there."""
    fmt = TorchZipFormat()
    with watched():
        try:
            archive_bytes = check_archive(memoryview(data), 1 << 20, verify=True)
        except CheckpointReadError:
            archive_bytes = None
        found, want = _located(fmt, data)
        if not isinstance(found, TensorRecord):
            return
        if not 0 <= found.start <= found.end <= len(data):
            raise Broken(f"payload [{found.start}, {found.end}) of {len(data)} bytes")
        if fmt.locate(data[:want], len(data)) != found:
            raise Broken("another answer from what it remembers")
        trailer = data[slice(*found.trailer)] if found.trailer is not None else b""
        fmt.read_trailer(trailer, found.payload_bytes)
    _compare(found, data, archive_bytes)


def _located(fmt, data):
    want = min(1024, len(data))
    for _ in range(64):
        found = fmt.locate(data[:want], len(data))
        if not isinstance(found, NeedBytes):
            return found, want
        if not want < found.nbytes <= len(data):
            raise Broken(f"needs {found.nbytes} of {len(data)} bytes after {want}")
        want = found.nbytes
    raise Broken("asks for ever")


def _compare(found, data, archive_bytes):
    """Where torch reads a whole, proved archive, it reads the same layout."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor = load_tensor(memoryview(data))
    except Exception:  # noqa: BLE001 - torch refuses it
        return
    if not archive_bytes or not isinstance(tensor, torch.Tensor):
        return
    got = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if got != (found.dtype, found.shape):
        raise Broken(f"torch reads {got}, here {found.dtype} {found.shape}")


# --------------------------------------------------------------------------------- checkpoints


def _targets():
    return {
        name: torch.full_like(value, seeds.POISON) if isinstance(value, torch.Tensor) else None
        for name, value in seeds.state().items()
    }


def check_checkpoint(files):
    """A whole load of ``name -> bytes``: every number that arrives was saved. How it ended."""
    with _folder() as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        targets = _targets()
        reader = ParallelFileSystemReader(folder, executor="sequential")
        with watched(folder):
            plan = _plan(reader, targets)
            if plan is None:
                return "not planned"
            reader.read_data(*plan)
            _look_at(targets, reader.last_report)
            return "loaded"
    return "refused"


def _plan(reader, targets):
    planner = SafeLoadPlanner()
    found = reader.read_metadata()
    try:
        planner.set_up_planner(targets, found, is_coordinator=True)
        reader.set_up_storage_reader(found, is_coordinator=True)
        plan = planner.create_local_plan()
    except CheckpointReadError:
        raise
    except MemoryError:
        raise Broken("planning asked for much memory") from None
    except Exception:  # noqa: BLE001 - torch's planner has errors of its own, before any read
        return None
    return planner.finish_plan(plan), planner


def _look_at(targets, report):
    if report.unverified:
        return  # nothing proves these bytes; the report says so
    saved = seeds.state()
    for name, target in targets.items():
        if not isinstance(target, torch.Tensor):
            if target is not None and target != saved[name]:
                raise Broken(f"{name} is {target!r}")
            continue
        known = torch.cat(
            [v.double().flatten() for v in saved.values() if isinstance(v, torch.Tensor)]
        )
        if not torch.isin(target.double(), known).all():
            raise Broken(f"{name} has numbers that were not saved: {target}")


def warm_up():
    """Everything that is imported or made once, before checks begin."""
    for data in seeds.metadata():
        check_quietly(check_metadata, data)
    for data in seeds.records():
        check_quietly(check_record, data)
        check_quietly(check_record, data[:-40])
    for zstd in seeds.compressed():
        files = seeds.checkpoint(zstd=zstd)
        for wrong in (files, {**files, ".metadata": b"x"}, {".metadata": files[".metadata"]}):
            check_quietly(check_checkpoint, wrong)
        broken = {name: data.replace(b"PK\x03\x04", b"PK\x03\x05") for name, data in files.items()}
        check_quietly(check_checkpoint, broken)


def check_quietly(check, data):
    """Unchanged, for any outcome."""
    try:
        check(data)
    except Broken as broken:
        if "ran or opened" not in str(broken):
            raise
