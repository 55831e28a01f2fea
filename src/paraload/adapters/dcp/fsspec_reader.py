"""The reader of checkpoints at URLs, over fsspec."""

import os
from collections.abc import Mapping
from typing import Any, Unpack

from paraload.adapters.dcp.reader_config import options_of
from paraload.adapters.dcp.source_reader import SourceReader
from paraload.errors import InvalidOptionError
from paraload.options import ReadOptions, ReadOptionsDict, split_keywords
from paraload.sources import ByteSource
from paraload.sources.opening import open_fsspec, open_source
from paraload.sources.urls import without_credentials


class ParallelFsspecReader(SourceReader):
    """Reads a checkpoint at any fsspec URL: ``http://``, ``memory://``, ``zip://``, ``hf://`` ...

    Many ranges are in flight at once, each of a size that suits the storage. A reader without
    ``fs`` makes a file system for each load and closes its connections at the end.

    Args:
        path: URL of the checkpoint, which may be chained (``zip://step-1000::https://host/x.zip``);
            or a path of ``fs``.
        fs: an fsspec file system, or torch's ``FileSystemBase``. A subclass may also set it later.
        options: a complete :class:`~paraload.ReadOptions`.
        storage_options: options of the file system, by fsspec's names.
        **keywords: fields of :class:`~paraload.ReadOptions`; every other name is one of
            ``storage_options``.

    Attributes:
        path: without user, password and query of the URL.

    >>> import fsspec, tempfile, torch, torch.distributed.checkpoint as dcp
    >>> from paraload import ParallelFsspecReader
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dcp.save({"w": torch.arange(4.0)}, checkpoint_id=folder, no_dist=True)
    ...     fsspec.filesystem("memory").put(f"{folder}/", "/step-1000/", recursive=True)
    Metadata(...
    >>> state = {"w": torch.zeros(4)}
    >>> dcp.load(state, storage_reader=ParallelFsspecReader("memory://step-1000"), no_dist=True)
    >>> state["w"]
    tensor([0., 1., 2., 3.])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fs: Any = None,
        *,
        options: ReadOptions | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **keywords: Unpack[ReadOptionsDict],
    ) -> None:
        reading, self._storage_options = split_keywords(keywords, storage_options)
        self.fs = fs
        if fs is not None and self._storage_options:
            names = ", ".join(sorted(self._storage_options))
            raise InvalidOptionError(f"fs= has its own storage options; remove {names}")
        super().__init__(path, options=options, **reading)

    @property
    def path(self) -> str:
        return without_credentials(self._url)

    @path.setter
    def path(self, path: str | os.PathLike[str]) -> None:
        self._url, self._kept = os.fspath(path), None

    def _make_source(self) -> ByteSource:
        direct_io = options_of(self).direct_io
        if self.fs is not None:
            return open_source(self._url, fs=self.fs, direct_io=direct_io)
        return open_fsspec(self._url, direct_io=direct_io, **self._storage_options)
