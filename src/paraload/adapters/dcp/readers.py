"""The readers: a mixin that gives any class a parallel ``read_data``, and the drop-in reader.

    plan --_create_read_tasks--> tasks --engine--> results --_process_results--> planner

The engine calls the steps of a reader, so overriding one of them has an effect: ``_make_source``,
``_make_format``, ``_make_destination``, ``_serialize_read_item``, ``_serialize_storage_metadata``,
``_create_read_tasks`` and ``_process_results``. A class need not inherit anything: it may take
these methods, and has to set ``path`` and ``storage_data`` only.
"""

import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Unpack

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from paraload.adapters.dcp.plan_items import create_tasks
from paraload.adapters.dcp.read_data import read_with
from paraload.adapters.dcp.reader_config import options_of, step_of
from paraload.adapters.dcp.reader_metadata import read_metadata_with, taken_look
from paraload.core.compat import init_file_system_reader, metadata_path
from paraload.core.tasks import ReadTask
from paraload.destinations.base import Destination
from paraload.destinations.conversion import HostDestination
from paraload.engine.items import CompletedItem
from paraload.errors import InvalidOptionError
from paraload.formats import ItemFormat
from paraload.formats.torch_zip import TorchZipFormat
from paraload.hooks import ItemIndex, ReadItemInfo, StorageItem
from paraload.metadata.dcp_index import descriptors_of
from paraload.metadata.file_bytes import MetadataFile
from paraload.metadata.listing import Look
from paraload.metadata.rank_files import rank_files
from paraload.options import MixinOptionsDict, ReadOptions, ReadOptionsDict
from paraload.report import ReadReport
from paraload.sources import ByteSource, FileStat
from paraload.sources.opening import open_source
from paraload.sources.urls import without_credentials


class ParallelFileReader:
    """A mixin that reads many files, and parts of files, in parallel.

    It works for every class that sets ``self.path`` and ``self.storage_data``::

        class MyReader(ParallelFileReader):
            def __init__(self, path):
                super().__init__(enable_parallel=True, max_workers=8)
                self.path = path
                self.storage_data = {}

    Args:
        enable_parallel: ``False`` reads with one reader on the caller's thread.
        max_workers: number of concurrent readers; ``None`` chooses it.
        options: a complete :class:`~paraload.ReadOptions` instead of keywords.
        **keywords: the other fields of :class:`~paraload.ReadOptions`.

    Attributes:
        last_report: the :class:`~paraload.ReadReport` of the last load that succeeded.
    """

    path: Any
    storage_data: Any
    last_report: ReadReport | None
    _is_remote = False
    _kept: ByteSource | None = None
    _look: Look | None = None

    def __init__(
        self,
        enable_parallel: bool | None = None,  # noqa: FBT001 - callers may pass it by position
        max_workers: int | None = None,
        *,
        options: ReadOptions | None = None,
        **keywords: Unpack[MixinOptionsDict],
    ) -> None:
        given: dict[str, Any] = {**keywords}
        if enable_parallel is not None:
            given["enable_parallel"] = enable_parallel
        if max_workers is not None:
            given["max_workers"] = max_workers
        self.options = ReadOptions.resolve(options, given)
        self.enable_parallel = self.options.enable_parallel
        self.max_workers = self.options.max_workers
        self.last_report = None

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read everything that ``plan`` asks for into the tensors of ``planner``.

        Args:
            plan: the read items of this rank.
            planner: resolves and commits them; called on this thread only.

        Returns:
            A future that is done.

        Raises:
            CheckpointReadError: items could not be read. The error names each of them; all others
                have been committed.
            InvalidOptionError: the call is wrong; nothing was read.
        """
        return read_with(self, plan, planner, defaults=ParallelFileReader)

    def read_data_with_progress(
        self,
        plan: LoadPlan,
        planner: LoadPlanner,
        progress_callback: Callable[[int, int], object] | None = None,
    ) -> Future[None]:
        """:meth:`read_data` with a progress callback.

        Args:
            plan: the read items of this rank.
            planner: resolves and commits them; called on this thread only.
            progress_callback: called on this thread with ``(current, total)``, which count files.
                An exception in it ends the load.
        """
        return read_with(
            self, plan, planner, defaults=ParallelFileReader, file_callback=progress_callback
        )

    def _serialize_read_item(self, read_item: ReadItem) -> ReadItemInfo:
        """Describe a read item for hooks and workers: plain, picklable, without torch."""
        target, stored = (
            ItemIndex(at.fqn, None if at.offset is None else tuple(at.offset), at.index)
            for at in (read_item.dest_index, read_item.storage_index)
        )
        return ReadItemInfo(
            read_item.type.name,
            target,
            tuple(read_item.dest_offsets),
            stored,
            tuple(read_item.storage_offsets),
            tuple(read_item.lengths),
        )

    def _serialize_storage_metadata(self, storage_info: Any) -> StorageItem:
        """Describe an item's place in the checkpoint for hooks and workers."""
        return StorageItem(
            storage_info.relative_path,
            storage_info.offset,
            storage_info.length,
            descriptors_of(storage_info),
        )

    def _create_read_tasks(self, plan: LoadPlan, storage_data: Any) -> list[ReadTask]:
        """Create the first tasks of a load: grouped by file, ordered by offset.

        The engine calls it only where a subclass overrides it.
        """
        return create_tasks(self, ParallelFileReader, plan, storage_data)

    def _make_source(self) -> ByteSource:
        """Create the source of the bytes; a reader for another storage returns its own.

        Called once for each load, which closes the source. It opens nothing before the first read.
        """
        fs = getattr(self, "fs", None)
        fs = None if type(fs) is FileSystem else fs
        return open_source(self.path, fs=fs, direct_io=options_of(self).direct_io)

    def _source_of_load(self) -> ByteSource:
        """The source of the load in progress, whose end closes it.

        Metadata and data of a remote checkpoint have the same one, so that they share connections.
        """
        if not self._is_remote:
            return self._make_source()
        if self._kept is None:
            self._kept = self._make_source()
        return self._kept

    def _make_format(self) -> ItemFormat:
        """Create the parser of records' headers; a reader for another format returns its own."""
        return TorchZipFormat()

    def _make_destination(self) -> Destination:
        """Create what fills the targets that workers cannot write to (other device, dtype, layout).

        Called once for each load.
        """
        return HostDestination(strict=options_of(self).strict)

    def _process_results(
        self, results: Sequence[CompletedItem], plan: LoadPlan, planner: LoadPlanner
    ) -> None:
        """Pass completed items to the planner, one after the other, on this thread."""
        for result in results:
            read_item = plan.items[result.item]
            if read_item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(read_item, io.BytesIO(result.data or b""))
                continue
            if result.destination is not None:
                target = result.destination.tensor
            else:
                target = planner.resolve_tensor(read_item).detach()
            result.copy_into(target)
            planner.commit_tensor(read_item, target)


class ParallelFileSystemReader(ParallelFileReader, FileSystemReader):
    """A drop-in for ``torch.distributed.checkpoint.FileSystemReader`` that reads in parallel.

    Args:
        path: folder of the checkpoint.
        _extension_registry: stream transforms besides ``stream.zstd``, as for torch's reader.
        options: a complete :class:`~paraload.ReadOptions`, or its fields as keywords.

    >>> import tempfile, torch, torch.distributed.checkpoint as dcp
    >>> from paraload import ParallelFileSystemReader
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dcp.save({"w": torch.arange(4.0)}, checkpoint_id=folder, no_dist=True)
    ...     state = {"w": torch.zeros(4)}
    ...     dcp.load(state, storage_reader=ParallelFileSystemReader(folder), no_dist=True)
    Metadata(...
    >>> state["w"]
    tensor([0., 1., 2., 3.])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        _extension_registry: Any = None,
        *,
        options: ReadOptions | None = None,
        **keywords: Unpack[ReadOptionsDict],
    ) -> None:
        ParallelFileReader.__init__(self, options=options, **keywords)
        self._require_no_url(path)
        init_file_system_reader(self, path, _extension_registry)
        self._entries: Mapping[str, Any] | None = None
        self._metadata_before: dict[str, FileStat] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new load, of another folder if ``checkpoint_id`` is given."""
        self._require_no_url(checkpoint_id or "")
        super().reset(checkpoint_id)

    def _require_no_url(self, path: str | os.PathLike[str]) -> None:
        # torch would make a local path of it; a subclass may replace ``fs``.
        if type(self) is ParallelFileSystemReader and "://" in os.fspath(path):
            raise InvalidOptionError(
                f"{without_credentials(os.fspath(path))!r} is a URL, and ParallelFileSystemReader"
                " reads folders of a mounted file system. Use paraload.load, or"
                " ParallelObjectStoreReader or ParallelFsspecReader"
            )

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: FBT001 - torch's
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As torch's reader does; also keep the descriptions of the stored tensors."""
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._entries = metadata.state_dict_metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - torch's
        """Read the checkpoint's metadata without running code from the file.

        Args:
            args: not used, as in torch's reader.
            kwargs: ``rank`` asks for the metadata of that rank alone.

        Returns:
            A new object, which the caller may change.

        Raises:
            MetadataError: the file is missing, damaged, or names a class that is not allowed.
        """
        return read_folder_metadata(self, kwargs.get("rank"))

    def ranks_with_metadata(self) -> Collection[int]:
        """The ranks that have metadata of their own, saved with ``use_collectives=False``."""
        return rank_files(self.path)


def read_folder_metadata(reader: Any, rank: int | None) -> Metadata:
    """The metadata of any ``FileSystemReader``, of all ranks or of one."""
    reader._metadata_before = {}  # noqa: SLF001 - not part of torch's interface
    fs = None if type(reader.fs) is FileSystem else reader.fs
    path = metadata_path(reader, rank)
    file = MetadataFile.at(path, fs, look=taken_look(reader))
    seen: dict[str, FileStat] = {}
    make_source = step_of(reader, ParallelFileReader, "_make_source")
    metadata = read_metadata_with(reader, file, seen, make_source)
    if getattr(make_source, "__func__", None) is vars(ParallelFileReader)["_make_source"]:
        reader._metadata_before = seen  # noqa: SLF001 - another source may have other versions
    return metadata


def read_data_parallel(
    self: Any, plan: LoadPlan, planner: LoadPlanner, num_workers: int | None = None
) -> Future[None]:
    """``read_data`` with a literal process pool, ``multiprocessing.Pool``.

    Use it as a method, ``read_data = read_data_parallel`` in the body of a class, or call it with a
    reader.

    Args:
        self: any ``FileSystemReader``, or another object with ``path`` and ``storage_data``.
        plan: the read items of this rank.
        planner: resolves and commits them; called on this thread only.
        num_workers: number of worker processes; ``None`` chooses it.

    Returns:
        A future that is done.

    Raises:
        CheckpointReadError: items could not be read; see :meth:`ParallelFileReader.read_data`.
        InvalidOptionError: the call is wrong; nothing was read.
    """
    return read_with(
        self, plan, planner, defaults=ParallelFileReader, executor="pool", max_workers=num_workers
    )


def read_data_parallel_v2(
    self: Any, plan: LoadPlan, planner: LoadPlanner, num_workers: int | None = None
) -> Future[None]:
    """:func:`read_data_parallel` with ``concurrent.futures.ProcessPoolExecutor``."""
    options: dict[str, Any] = {"executor": "processes", "max_workers": num_workers}
    return read_with(self, plan, planner, defaults=ParallelFileReader, **options)
