"""Manifests show whether files of a checkpoint have been replaced.

A CRC-32 detects damage but not replacement: a shard of another step has correct checksums. A
manifest has a digest of each file. Without a key the digests are SHA-256, so keep the manifest
where those who can write to the checkpoint cannot change it. With a key they are BLAKE2b: forging
the manifest takes the key, so it may lie beside the checkpoint.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from paraload._text import counted
from paraload.adapters.dcp.reader_choice import reader_for, source_of
from paraload.errors import FormatError, InvalidOptionError, MissingFileError
from paraload.options import DEFAULT_STALL_TIMEOUT_S
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources import ByteSource, Read
from paraload.verification.report import Finding

_VERSION: Final = 1
_PLAIN, _KEYED = "sha256", "blake2b-keyed"
_BLAKE2B_KEY_BYTES: Final = 64
#: Hashing releases the GIL, so it scales with threads.
_DIGESTERS: Final = 16
_PIECE_BYTES: Final = 1 << 20
_File = dict[str, Any]  # "bytes" and "digest"


def write_manifest(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S,
    **keywords: Any,
) -> int:
    """Write the digests of all files of a checkpoint, including ``.metadata``.

    Args:
        path: folder or URL of the checkpoint.
        target: the manifest to write. If it is in the folder, it does not list itself.
        key: secret key of the digests; without one they are SHA-256.
        stall_timeout_s: seconds without progress before a stalled read becomes an error; ``None``
            waits forever.
        **keywords: options of the storage, as for ``paraload.load``.

    Returns:
        The number of files.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
        StalledReadError: the storage did not answer in time.

    >>> import tempfile, pathlib
    >>> from paraload.manifest import compare_manifest, write_manifest
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "__0_0.distcp").write_bytes(b"weights")
    ...     written = write_manifest(folder, pathlib.Path(folder, "manifest.json"))
    ...     _ = pathlib.Path(folder, "__0_0.distcp").write_bytes(b"Weights")
    ...     found = list(compare_manifest(folder, pathlib.Path(folder, "manifest.json")))
    >>> written, [finding.path for finding in found]
    (1, ['__0_0.distcp'])
    """
    with closing(source_of(reader_for(path, **keywords))) as source:
        files = _digests(source, relative_name(target, source), key, stall_timeout_s)
    manifest = {"version": _VERSION, "digest": _PLAIN if key is None else _KEYED, "files": files}
    if key is not None:
        manifest["key_digest"] = _hasher(key).hexdigest()  # of no data; identifies the key
    Path(target).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return len(files)


def compare_manifest(
    path: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S,
    **keywords: Any,
) -> Iterator[Finding]:
    """Compare a checkpoint with its manifest; yield a finding for each difference.

    Args:
        path: folder or URL of the checkpoint.
        manifest: a file that :func:`write_manifest` wrote.
        key: the key that it was written with, if any.
        stall_timeout_s: seconds without progress before a stalled read becomes an error; ``None``
            waits forever.
        **keywords: options of the storage, as for ``paraload.load``.

    Yields:
        Files that were replaced, are missing, or are not in the manifest, in order of their names.

    Raises:
        InvalidOptionError: the file is not a manifest, or was written with another key.
        OSError: a file cannot be read.
        StalledReadError: the storage did not answer in time.
    """
    with closing(source_of(reader_for(path, **keywords))) as source:
        findings, _ = compare(source, manifest, key=key, stall_timeout_s=stall_timeout_s)
    yield from findings


def compare(
    source: ByteSource,
    manifest: str | os.PathLike[str],
    *,
    key: bytes | None,
    stall_timeout_s: float | None,
) -> tuple[list[Finding], int]:
    """Compare all files of ``source`` except the manifest itself.

    Returns:
        The differences, and the number of files that are as the manifest says.
    """
    known = _read(Path(manifest), key)
    found = _digests(source, relative_name(manifest, source), key, stall_timeout_s)
    findings: list[Finding] = []
    same = 0
    for name in sorted(known.keys() | found.keys()):
        old, new = known.get(name), found.get(name)
        if old and new and hmac.compare_digest(old["digest"].encode(), new["digest"].encode()):
            same += 1
            continue
        problem = "the file is not the one that the manifest lists"
        if new is None:
            problem = "the file is missing"
        elif old is None:
            problem = "the manifest does not list the file"
        finding = Finding(
            kind="manifest",
            problem=problem,
            path=name,
            expected=_text(old),
            got=_text(new),
            hint="Files were damaged, replaced or added after the manifest was made, or it is of"
            " another checkpoint",
        )
        findings.append(finding)
    return findings, same


def relative_name(file: str | os.PathLike[str], source: ByteSource) -> str:
    """``file`` relative to the folder of ``source``; "" if that is not on this machine."""
    root = getattr(source, "root", None)
    return "" if root is None else os.path.relpath(Path(file).resolve(), Path(root).resolve())


def _text(file: _File | None) -> str:
    return f"{file['bytes']} bytes, digest {file['digest'][:16]}..." if file else "no file"


def _read(manifest: Path, key: bytes | None) -> dict[str, _File]:
    try:
        value = json.loads(manifest.read_text(encoding="utf-8"))
        version, kind = value["version"], value["digest"]
        files = {
            name: {"bytes": int(file["bytes"]), "digest": str(file["digest"])}
            for name, file in value["files"].items()
        }
        known_key = str(value.get("key_digest", ""))  # older manifests have none
    except OSError as error:
        raise InvalidOptionError(f"{manifest}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{manifest}: is not a manifest of paraload ({error!r})"
        raise InvalidOptionError(what) from error
    problem = None
    if version != _VERSION:
        problem = f"version {version}; this paraload reads version {_VERSION} only"
    elif kind != (_PLAIN if key is None else _KEYED):
        problem = f"was made {'with' if kind == _KEYED else 'without'} a key ({kind})"
    elif known_key not in {"", _hasher(key).hexdigest()}:
        problem = "was made with another key"
    if problem is not None:
        raise InvalidOptionError(f"{manifest}: {problem}")
    return files


def _digests(
    source: ByteSource, apart: str, key: bytes | None, stall_timeout_s: float | None
) -> dict[str, _File]:
    """The digests of all files but the one called ``apart``."""
    step = min(_PIECE_BYTES, source.limits.max_request_bytes)

    def digest(name: str) -> _File | None:
        try:
            nbytes = source.stat(name).size
        except (FormatError, MissingFileError):
            return None  # not a regular file, or a link to nothing
        hashed = _hasher(key)
        memory = memoryview(bytearray(min(step, nbytes)))
        for at in range(0, nbytes, step):
            piece = memory[: min(step, nbytes - at)]
            source.read(name, (Read(at, (piece,)),))
            hashed.update(piece)
            threads.goes_on()
        return {"bytes": nbytes, "digest": hashed.hexdigest()}

    def list_names() -> list[str]:
        if not hasattr(source, "list_files"):
            raise InvalidOptionError("a manifest needs a storage that lists its files")
        return sorted(name for name in source.list_files() if name != apart)

    with DaemonThreads(_DIGESTERS, "paraload-digest", timeout_s=stall_timeout_s) as threads:
        names = threads.call(lambda: "the checkpoint was being listed", list_names)
        for name in names:
            threads.submit(name, digest, name)
        digests: dict[str, _File | None] = {}
        while len(digests) < len(names):
            answer = threads.next(lambda: f"reading {counted(len(names) - len(digests), 'file')}")
            digests[answer.key] = answer.result()
    return {name: file for name in names if (file := digests[name]) is not None}


def _hasher(key: bytes | None) -> Any:
    if key is None:
        return hashlib.sha256()
    if len(key) > _BLAKE2B_KEY_BYTES:
        key = hashlib.blake2b(key).digest()
    return hashlib.blake2b(key=key)
