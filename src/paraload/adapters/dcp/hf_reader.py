"""The reader of safetensors: a drop-in for torch's ``HuggingFaceStorageReader``."""

import os
from contextlib import closing
from typing import Any

from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from paraload.adapters.dcp.readers import ParallelFileSystemReader
from paraload.adapters.dcp.reader_config import options_of
from paraload.formats import ItemFormat
from paraload.formats.safetensors import SafetensorsFormat
from paraload.metadata.safetensors_folder import read_safetensors_metadata
from paraload.options import ReadOptions


class ParallelHuggingFaceReader(ParallelFileSystemReader, HuggingFaceStorageReader):
    """A drop-in for ``torch.distributed.checkpoint.HuggingFaceStorageReader``.

    It reads one ``.safetensors`` file; a folder of them, with or without an index; or what torch's
    ``HuggingFaceStorageWriter`` writes, sharded or not. The format has no checksum, so no tensor
    can be verified: ``last_report.unverified`` counts them.

    Args:
        path: a folder, a ``.safetensors`` file, or a ``.safetensors.index.json``.
        thread_count: accepted as torch's reader does, and not used: see ``max_workers``.
        options: a complete :class:`~paraload.ReadOptions`, or its fields as keywords.

    >>> import tempfile, torch, torch.distributed.checkpoint as dcp
    >>> from paraload import ParallelHuggingFaceReader
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"w": torch.arange(4.0)}, f"{folder}/model.safetensors")
    ...     state = {"w": torch.zeros(4)}
    ...     dcp.load(state, storage_reader=ParallelHuggingFaceReader(folder), no_dist=True)
    >>> state["w"]
    tensor([0., 1., 2., 3.])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        thread_count: int = 1,
        *,
        options: ReadOptions | None = None,
        **keywords: Any,
    ) -> None:
        folder, self._file = os.fspath(path), None
        # The rest is for the storage to say: a URL may not tell a folder from a file.
        if folder.endswith((".safetensors", ".safetensors.index.json")) or os.path.isfile(folder):
            if not os.path.isdir(folder):
                folder, self._file = os.path.split(folder)
        ParallelFileSystemReader.__init__(self, folder or ".", options=options, **keywords)
        self.thread_count = thread_count

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - torch's
        """Read the headers of all files, in parallel.

        Args:
            args: not used, as in torch's reader.
            kwargs: likewise.

        Returns:
            A new object, which the caller may change.

        Raises:
            MissingMetadataError: there are no safetensors files.
            CheckpointReadError: files are missing or damaged, or do not belong together. A single
                fault is an :class:`~paraload.errors.ItemReadError`; several are its ``failures``.
        """
        self._metadata_before = {}
        options = options_of(self)
        with closing(self._make_source()) as source:
            metadata = read_safetensors_metadata(
                source,
                self._file,
                path=str(self.path),
                retries=options.retries,
                stall_timeout_s=options.stall_timeout_s,
                seen=self._metadata_before,
            )
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def _make_format(self) -> ItemFormat:
        return SafetensorsFormat()
