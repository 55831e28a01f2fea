"""The reader of safetensors: a drop-in for torch's ``HuggingFaceStorageReader``."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Unpack

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from paraload.adapters.dcp.hf_open_file import OpenFile
from paraload.adapters.dcp.reader_config import options_of
from paraload.adapters.dcp.reader_metadata import kept_for_data
from paraload.adapters.dcp.readers import ParallelFileSystemReader
from paraload.adapters.dcp.urls import dcp_reader, is_url, refuse_storage_options, split_file
from paraload.core.compat import HuggingFaceStorageReader, stock_process_read_request
from paraload.formats import ItemFormat
from paraload.formats.safetensors import SafetensorsFormat
from paraload.metadata.safetensors_folder import read_safetensors_metadata
from paraload.options import ReadOptions, ReadOptionsDict, split_keywords
from paraload.sources import ByteSource
from paraload.sources.urls import without_credentials


class ParallelHuggingFaceReader(ParallelFileSystemReader, HuggingFaceStorageReader):
    """A drop-in for ``torch.distributed.checkpoint.HuggingFaceStorageReader``.

    It reads one ``.safetensors`` file; a folder of them, with or without an index; or what torch's
    ``HuggingFaceStorageWriter`` writes, sharded or not. The format has no checksum, so no tensor
    can be verified: ``last_report.unverified`` counts them.

    Args:
        path: path or URL of a folder, a ``.safetensors`` file, or a ``.safetensors.index.json``.
        thread_count: for compatibility with torch's reader; unused, see ``max_workers``.
        options: a complete :class:`~paraload.ReadOptions`, or its fields as keywords.
        storage_options: options of the storage of a URL; see :func:`paraload.load`.

    A subclass of torch's reader that transforms tensors, as ``QuantizedHuggingFaceStorageReader``
    does, is listed first. Its ``_process_read_request`` is called for one item after the other,
    with tensors that were read in parallel::

        class Reader(QuantizedHuggingFaceStorageReader, ParallelHuggingFaceReader):
            pass

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

    _file: str | None
    _url: str | None
    _storage_options: dict[str, Any] = {}  # noqa: RUF012 - replaced, not changed

    def __init__(
        self,
        path: str | os.PathLike[str],
        thread_count: int = 1,
        *,
        options: ReadOptions | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **keywords: Unpack[ReadOptionsDict],
    ) -> None:
        reading: dict[str, Any] = {**keywords}
        if is_url(path):
            reading, self._storage_options = split_keywords(keywords, storage_options)
        else:
            refuse_storage_options(path, storage_options)
        ParallelFileSystemReader.__init__(self, ".", options=options, **reading)
        self.thread_count = thread_count
        self._set_path(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new load, of another checkpoint if ``checkpoint_id`` is given."""
        super().reset()
        if checkpoint_id:
            self._set_path(checkpoint_id)

    def ranks_with_metadata(self) -> tuple[int, ...]:
        """None: safetensors have one header for all ranks."""
        return ()

    def _set_path(self, path: str | os.PathLike[str]) -> None:
        folder, self._file = split_file(path)
        self._url = folder if is_url(folder) else None
        self._is_remote = self._url is not None
        self._kept = None
        if self._url is None:
            self.path = self.fs.init_path(folder or ".")
        else:
            self.path = without_credentials(folder).rstrip("/")

    def _make_source(self) -> ByteSource:
        if self._url is None:
            return super()._make_source()
        reader = dcp_reader(
            self._url, direct_io=self.options.direct_io, storage_options=self._storage_options
        )
        return reader._source_of_load()  # noqa: SLF001

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
        source = self._source_of_load()
        with kept_for_data(source) if self._is_remote else closing(source):
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

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """As :meth:`ParallelFileReader.read_data` does."""
        return self.read_data_with_progress(plan, planner)

    def read_data_with_progress(
        self,
        plan: LoadPlan,
        planner: LoadPlanner,
        progress_callback: Callable[[int, int], object] | None = None,
    ) -> Future[None]:
        """As :meth:`ParallelFileReader.read_data_with_progress` does."""
        if reads_as_torch(self):
            return super().read_data_with_progress(plan, planner, progress_callback)
        read_in_turn(self, self, plan, planner, progress_callback)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def reads_as_torch(reader: Any) -> bool:
    """Whether the reader handles items as torch's ``HuggingFaceStorageReader`` does."""
    own = getattr(type(reader), "_process_read_request", None)
    return own is stock_process_read_request  # subclasses override it


def read_in_turn(
    owner: Any,
    reader: ParallelHuggingFaceReader,
    plan: LoadPlan,
    planner: LoadPlanner,
    progress_callback: Callable[[int, int], object] | None = None,
) -> None:
    """Pass tensors that ``reader`` reads to ``owner._process_read_request``, item by item."""
    by_file: defaultdict[str, list[ReadItem]] = defaultdict(list)
    for item in plan.items:
        by_file[reader.storage_data[item.storage_index].relative_path].append(item)
    for number, (path, items) in enumerate(by_file.items(), 1):
        file = OpenFile(reader, path)
        for item in file.ahead(items):
            owner._process_read_request(file, item, planner)  # noqa: SLF001 - overridden
        if progress_callback is not None:
            progress_callback(number, len(by_file))
