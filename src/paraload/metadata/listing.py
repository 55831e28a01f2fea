"""What a checkpoint's folder holds, in any storage, with retries and a deadline."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from paraload.errors import StalledReadError
from paraload.metadata.folder_contents import names_in_folder
from paraload.metadata.rank_files import GLOBAL_METADATA
from paraload.metadata.safetensors_folder import INDEX, SINGLE
from paraload.runtime.daemon_threads import DaemonThreads
from paraload.sources import ByteSource, FileStat
from paraload.sources.retrying import again, is_transient

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known of a folder before its metadata are read.

    Attributes:
        metadata: the stat of ``.metadata``; ``None`` if it is missing.
        names: the files, if it is missing; see :func:`names_in_folder`.
        error: why the storage was not asked further, or in vain; nothing else is known then.
    """

    metadata: FileStat | None = None
    names: tuple[str, ...] = ()
    error: Exception | None = None


def look_at(
    source: ByteSource, *, path: str, retries: int | None, stall_timeout_s: float | None
) -> Look:
    """Whether there is a ``.metadata``, and otherwise the files of the folder.

    A storage that cannot list its files is asked for the usual names of safetensors. An error that
    reading the metadata raises again is left to that, where other ranks hear of it.
    """
    doing = f"'{path}/{GLOBAL_METADATA}' was being read"
    ask = partial(looked, source, doing=doing, retries=retries, stall_timeout_s=stall_timeout_s)
    is_metadata_missing = False
    try:
        if (stat := ask(partial(_stat, name=GLOBAL_METADATA))) is not None:
            return Look(metadata=stat)
        if getattr(source, "root", None) is not None:
            return Look(names=ask(_names_in_root))
        if hasattr(source, "list_files"):
            return Look(names=tuple(ask(names_in_folder)))
        is_metadata_missing = True
        names = (INDEX, SINGLE)
        return Look(names=tuple(name for name in names if ask(partial(_stat, name=name))))
    except Exception as error:  # noqa: BLE001 - raised later
        # Waiting for it a second time would double the deadline.
        has_waited = isinstance(error, StalledReadError) or is_transient(source, error)
        is_final = has_waited or is_metadata_missing
        return Look(error=error.with_traceback(None) if is_final else None)


def looked(
    source: ByteSource,
    call: Callable[[ByteSource], Answer],
    doing: str,
    *,
    retries: int | None,
    stall_timeout_s: float | None,
) -> Answer:
    """Call with ``source``; ``doing`` is a clause that says during what it has stalled."""
    with DaemonThreads.for_looks(stall_timeout_s) as thread:
        look = partial(thread.call, lambda: doing, call, source)
        answer: Answer = again(source, look, retries)
    return answer


def _names_in_root(source: Any) -> tuple[str, ...]:
    with suppress(FileNotFoundError):  # final, although it would be retried for a file
        return tuple(path.name for path in Path(source.root).iterdir())
    return ()


def _stat(source: ByteSource, *, name: str) -> FileStat | None:
    with suppress(FileNotFoundError):
        return source.stat(name)
    return None
