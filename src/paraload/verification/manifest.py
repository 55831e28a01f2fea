"""Manifests show whether files of a checkpoint have been replaced.

A CRC-32 detects damage but not replacement: a shard of another step has correct checksums. A
manifest has a digest of each file. Without a key the digests are SHA-256, so the manifest must be
kept where those who can write to the checkpoint cannot change it. With a key they are BLAKE2b, and
the manifest may be kept beside the checkpoint: it cannot be forged without the key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from paraload._text import counted
from paraload.errors import InvalidOptionError
from paraload.options import DEFAULT_STALL_TIMEOUT_S
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources.regular_files import open_regular
from paraload.verification.report import Finding

_VERSION: Final = 1
_PLAIN, _KEYED = "sha256", "blake2b-keyed"
_BLAKE2B_KEY_BYTES: Final = 64
#: Hashing releases the GIL, so this many threads are of use.
_DIGESTERS: Final = 16
_PIECE_BYTES: Final = 1 << 20
_REPLACED: Final = "The checkpoint was written to after the manifest was made"


def write_manifest(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S,
) -> int:
    """Write the digests of all files of a checkpoint, including ``.metadata``.

    Args:
        path: folder of the checkpoint.
        target: the manifest to write. If it is in the folder, it does not list itself.
        key: secret key of the digests; without one they are SHA-256.
        stall_timeout_s: seconds without progress before a stalled read becomes an error; ``None``
            waits forever.

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
    files = _digests(Path(path), Path(target), key, stall_timeout_s)
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
) -> Iterator[Finding]:
    """Compare a checkpoint with its manifest; yield a finding for each difference.

    Args:
        path: folder of the checkpoint.
        manifest: what :func:`write_manifest` has written.
        key: the key that it was written with, if any.
        stall_timeout_s: seconds without progress before a stalled read becomes an error; ``None``
            waits forever.

    Yields:
        Files that were replaced, are missing, or are not in the manifest, in order of their names.

    Raises:
        InvalidOptionError: the file is not a manifest, or was written with another key.
        OSError: a file cannot be read.
        StalledReadError: the storage did not answer in time.
    """
    known = _read(Path(manifest), key)
    found = _digests(Path(path), Path(manifest), key, stall_timeout_s)
    for name in sorted(known.keys() | found.keys()):
        problem = "the file is not the one that the manifest lists"
        if name not in found:
            problem = "the file is missing"
            expected, got = "the file that the manifest lists", "no file"
        elif name not in known:
            problem = "the manifest does not list the file"
            expected, got = "no such file", "a file"
        elif found[name]["bytes"] != known[name]["bytes"]:
            expected, got = (f"{of[name]['bytes']} bytes" for of in (known, found))
        elif not hmac.compare_digest(found[name]["digest"], known[name]["digest"]):
            expected, got = (f"digest {of[name]['digest'][:16]}..." for of in (known, found))
        else:
            continue
        yield Finding(
            kind="manifest", problem=problem, path=name, expected=expected, got=got, hint=_REPLACED
        )


def _read(manifest: Path, key: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(manifest.read_text(encoding="utf-8"))
        version, kind = value["version"], value["digest"]
        files: dict[str, Any] = {
            str(name): {"bytes": int(of["bytes"]), "digest": str(of["digest"])}
            for name, of in value["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidOptionError(
            f"{manifest}: is not a manifest of paraload ({error!r})"
        ) from error
    problem = None
    known_key = value.get("key_digest")  # older manifests have none
    if version != _VERSION:
        problem = f"version {version}; this paraload reads version {_VERSION} only"
    elif kind != (_PLAIN if key is None else _KEYED):
        problem = f"was made {'with' if kind == _KEYED else 'without'} a key ({kind})"
    elif known_key is not None and not hmac.compare_digest(
        str(known_key).encode(), _hasher(key).hexdigest().encode()
    ):
        problem = "was made with another key"
    if problem is not None:
        raise InvalidOptionError(f"{manifest}: {problem}")
    return files


def _digests(
    folder: Path, manifest: Path, key: bytes | None, stall_timeout_s: float | None
) -> dict[str, dict[str, Any]]:
    def names() -> list[str]:
        return [
            file.relative_to(folder).as_posix()
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not (manifest.exists() and file.samefile(manifest))
        ]

    def digest(name: str) -> dict[str, Any]:
        hashed = _hasher(key)
        with open_regular(str(folder / name)) as opened:
            nbytes = os.fstat(opened.fileno()).st_size
            while piece := opened.read(_PIECE_BYTES):
                hashed.update(piece)
                threads.goes_on()
        return {"bytes": nbytes, "digest": hashed.hexdigest()}

    with DaemonThreads(_DIGESTERS, "paraload-digest", timeout_s=stall_timeout_s) as threads:
        wanted = threads.call(lambda: f"{str(folder)!r} was being listed", names)
        for name in wanted:
            threads.submit(name, digest, name)
        digests: dict[str, dict[str, Any]] = {}
        while len(digests) < len(wanted):
            answer = threads.next(lambda: f"reading {counted(len(wanted) - len(digests), 'file')}")
            digests[answer.key] = answer.result()
    return {name: digests[name] for name in wanted}


def _hasher(key: bytes | None) -> Any:
    if key is None:
        return hashlib.sha256()
    if len(key) > _BLAKE2B_KEY_BYTES:
        key = hashlib.blake2b(key).digest()
    return hashlib.blake2b(key=key)
