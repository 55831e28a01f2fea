"""Which files a checkpoint in any storage has, with retries and a deadline."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from paraload.metadata.rank_files import GLOBAL_METADATA
from paraload.metadata.safetensors_folder import INDEX, SINGLE
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources import ByteSource
from paraload.sources.retrying import again

Answer = TypeVar("Answer")


def files_of(
    source: ByteSource, *, path: str, retries: int, stall_timeout_s: float | None
) -> list[str]:
    """All files; of a storage that cannot list them, none."""
    return _looked(source, _listed, path, retries=retries, stall_timeout_s=stall_timeout_s)


def files_without_metadata(
    source: ByteSource, *, path: str, retries: int, stall_timeout_s: float | None
) -> list[str]:
    """All files if there is no ``.metadata``, otherwise none.

    Of a mounted folder they are only those directly in it: a whole disk may lie below. A storage
    that cannot list its files is asked for the usual names of safetensors. After an error the
    result is empty too: reading the metadata raises it again, where other ranks hear of it.
    """
    call = _listed_without_metadata
    with suppress(Exception):
        return _looked(source, call, path, retries=retries, stall_timeout_s=stall_timeout_s)
    return []


def _looked(
    source: ByteSource,
    call: Callable[[ByteSource], Answer],
    path: str,
    *,
    retries: int,
    stall_timeout_s: float | None,
) -> Answer:
    with DaemonThreads.for_looks(stall_timeout_s) as thread:
        look = partial(thread.call, lambda: f"{path!r} was being listed", call, source)
        answer: Answer = again(source, look, retries)
    return answer


def _listed(source: ByteSource) -> list[str]:
    return [*source.list_files()] if hasattr(source, "list_files") else []


def _listed_without_metadata(source: ByteSource) -> list[str]:
    if _has(source, GLOBAL_METADATA):
        return []
    if (root := getattr(source, "root", None)) is not None:
        with suppress(FileNotFoundError):  # final, although it would be retried for a file
            return [path.name for path in Path(root).iterdir()]
        return []
    if hasattr(source, "list_files"):
        return _listed(source)
    return [name for name in (INDEX, SINGLE) if _has(source, name)]


def _has(source: ByteSource, name: str) -> bool:
    try:
        source.stat(name)
    except FileNotFoundError:
        return False
    return True
