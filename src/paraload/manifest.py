"""Manifests tell whether the files of a checkpoint have been replaced.

A CRC-32 tells damage, not a swap: a shard of another step has checksums that are right. A manifest
has a digest of each file. Without a key it is SHA-256, and proves something only if it is kept
where those who can write to the checkpoint cannot. With a key it is BLAKE2b, and may lie beside the
checkpoint: without the key, a manifest for other files cannot be forged.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from paraload._daemons import DaemonThreads
from paraload._text import counted
from paraload._verify_report import Finding
from paraload.errors import InvalidOptionError
from paraload.options import DEFAULT_STALL_TIMEOUT_S
from paraload.sources._open import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["compare_manifest", "write_manifest"]

_VERSION: Final = 1
_PLAIN, _KEYED = "sha256", "blake2b-keyed"
_BLAKE2B_KEY_BYTES: Final = 64
#: Hashing releases the GIL, so this is about the number of cores of most machines.
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
    """Write the digests of all files in the folder ``path``, its ``.metadata`` among them.

    Args:
        path: folder of the checkpoint.
        target: the manifest; a file in the folder does not list itself.
        key: of the digests; a plain SHA-256 when not given.
        stall_timeout_s: how long to wait for an answer from the storage; ``None`` waits forever.

    Returns:
        The number of files.

    Raises:
        OSError: a file cannot be read, or the manifest not be written.
        StalledReadError: the storage has not answered in time.

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
        manifest["key_digest"] = _hasher(key).hexdigest()  # of no data: identifies the key
    Path(target).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return len(files)


def compare_manifest(
    path: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S,
) -> Iterator[Finding]:
    """What is different from ``manifest``: files that are replaced, missing, or new.

    Raises:
        InvalidOptionError: the file is not a manifest, or does not match ``key``.
        OSError: a file cannot be read.
        StalledReadError: the storage has not answered in time.
    """
    known = _read(Path(manifest), key)
    found = _digests(Path(path), Path(manifest), key, stall_timeout_s)
    for name in sorted(known.keys() | found.keys()):
        if name not in found:
            yield _finding(
                name, "the file is missing", "the file that the manifest lists", "no file"
            )
        elif name not in known:
            yield _finding(name, "the manifest does not list the file", "no such file", "a file")
        elif found[name]["bytes"] != known[name]["bytes"]:
            sizes = (f"{of[name]['bytes']} bytes" for of in (known, found))
            yield _finding(name, "the file is not the one that the manifest lists", *sizes)
        elif not hmac.compare_digest(found[name]["digest"], known[name]["digest"]):
            digests = (f"digest {of[name]['digest'][:16]}..." for of in (known, found))
            yield _finding(name, "the file is not the one that the manifest lists", *digests)


def _finding(name: str, problem: str, expected: str, got: str) -> Finding:
    return Finding(
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
    if version != _VERSION:
        raise InvalidOptionError(
            f"{manifest}: version {version}; this paraload reads version {_VERSION}"
        )
    if kind != (_PLAIN if key is None else _KEYED):
        wanted = "with a key" if kind == _KEYED else "without a key"
        raise InvalidOptionError(f"{manifest}: was made {wanted} ({kind})")
    known_key = value.get("key_digest")  # older manifests have none
    if known_key is not None and not hmac.compare_digest(
        str(known_key).encode(), _hasher(key).hexdigest().encode()
    ):
        raise InvalidOptionError(f"{manifest}: was made with another key")
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
