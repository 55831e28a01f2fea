"""The readers: a mixin that gives any class a parallel ``read_data``, and the drop-in reader.

    plan --_create_read_tasks--> tasks --engine--> results --_process_results--> planner

The steps that the mixin adds to a class are used by the engine, so overriding one of them has an
effect: ``_make_source``, ``_make_format``, ``_make_destination``, ``_serialize_read_item``,
``_serialize_storage_metadata``, ``_create_read_tasks`` and ``_process_results``. A class need not
inherit anything: it may take these methods, and has to set ``path`` and ``storage_data`` only.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from paraload.adapters.dcp import plan_items
from paraload.adapters.dcp import read_data as reading
from paraload.adapters.dcp import reader_config as adapter
from paraload.core.tasks import ReadTask
from paraload.destinations.base import Destination
from paraload.destinations.conversion import HostDestination
from paraload.engine.items import CompletedItem
from paraload.formats import ItemFormat
from paraload.formats.torch_zip import TorchZipFormat
from paraload.hooks import ReadItemInfo, StorageItem
from paraload.metadata.dcp_index import descriptors_of
from paraload.metadata.reading import read_metadata
from paraload.options import ReadOptions
from paraload.report import ReadReport
from paraload.sources import ByteSource, FileStat


class ParallelFileReader:
    """A mixin that reads many files, and parts of files, at once.

    It works for every class that sets ``self.path`` and ``self.storage_data``::

        class MyReader(ParallelFileReader):
            def __init__(self, path):
                super().__init__(enable_parallel=True, max_workers=8)
                self.path = path
                self.storage_data = {}

    Args:
        enable_parallel: ``False`` reads with one reader on the caller's thread.
        max_workers: readers at once; ``None`` chooses.
        options: a whole :class:`~paraload.ReadOptions` instead of single keywords.
        **keywords: the other fields of :class:`~paraload.ReadOptions`.

    Attributes:
        last_report: the :class:`~paraload.ReadReport` of the last load that ended well.
    """

    path: Any
    storage_data: Any
    last_report: ReadReport | None

    def __init__(
        self,
        enable_parallel: bool | None = None,  # noqa: FBT001 - the request passes it by position
        max_workers: int | None = None,
        *,
        options: ReadOptions | None = None,
        **keywords: Any,
    ) -> None:
        if enable_parallel is not None:
            keywords["enable_parallel"] = enable_parallel
        if max_workers is not None:
            keywords["max_workers"] = max_workers
        self.options = ReadOptions.resolve(options, keywords)
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
            CheckpointReadError: items could not be read; each of them is named, all others have
                been committed.
            InvalidOptionError: the call is wrong; nothing was read.
        """
        return reading.read_with(self, plan, planner, defaults=ParallelFileReader)

    def read_data_with_progress(
        self,
        plan: LoadPlan,
        planner: LoadPlanner,
        progress_callback: Callable[[int, int], object] | None = None,
    ) -> Future[None]:
        """The same, telling ``progress_callback(current, total)`` how many files are done.

        The callback runs on this thread. One that raises ends the load with its error.
        """
        return reading.read_with(
            self, plan, planner, defaults=ParallelFileReader, file_callback=progress_callback
        )

    def _serialize_read_item(self, read_item: ReadItem) -> ReadItemInfo:
        """What hooks and workers are told of a read item: plain, picklable, without torch."""
        return ReadItemInfo(
            read_item.type.name,
            plan_items.plain_index(read_item.dest_index),
            tuple(read_item.dest_offsets),
            plan_items.plain_index(read_item.storage_index),
            tuple(read_item.storage_offsets),
            tuple(read_item.lengths),
        )

    def _serialize_storage_metadata(self, storage_info: Any) -> StorageItem:
        """What hooks and workers are told of an item's place in the checkpoint."""
        return StorageItem(
            storage_info.relative_path,
            storage_info.offset,
            storage_info.length,
            descriptors_of(storage_info),
        )

    def _create_read_tasks(self, plan: LoadPlan, storage_data: Any) -> list[ReadTask]:
        """The tasks that begin the load of ``plan``: grouped by file, ordered by offset.

        Called only where a subclass overrides it.
        """
        steps = adapter.ReaderSteps(self, ParallelFileReader)
        with adapter.config_for_tasks(self) as config:
            return config.make_tasks(plan_items.make_specs(steps, config, plan, storage_data))

    def _make_source(self) -> ByteSource:
        """Where the bytes come from; a reader for another storage returns its own source.

        Called once for each load, which closes the source. It opens nothing before the first read.
        """
        return adapter.default_source(self)

    def _make_format(self) -> ItemFormat:
        """What reads the records' headers; a reader for another format returns its own."""
        return TorchZipFormat()

    def _make_destination(self) -> Destination:
        """What takes tensors whose target workers cannot write to: another device, dtype, layout.

        Called once for each load.
        """
        return HostDestination(strict=adapter.options_of(self).strict)

    def _process_results(
        self, results: Sequence[CompletedItem], plan: LoadPlan, planner: LoadPlanner
    ) -> None:
        """Hand completed items to the planner, one after the other, on this thread."""
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
        _extension_registry: stream transforms beside ``stream.zstd``, as torch's reader takes them.
        options: a whole :class:`~paraload.ReadOptions`; or its fields as keywords.

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
        **keywords: Any,
    ) -> None:
        ParallelFileReader.__init__(self, options=options, **keywords)
        FileSystemReader.__init__(self, path, _extension_registry)
        self._entries: Mapping[str, Any] | None = None
        self._metadata_before: dict[str, FileStat] = {}

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: FBT001 - torch's
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As torch's reader does; and keep what each stored tensor has to be."""
        super().set_up_storage_reader(metadata, is_coordinator, *args, **kwargs)
        self._entries = metadata.state_dict_metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - torch's
        """The checkpoint's metadata, without running what is in the file.

        Args:
            args: not used, as in torch's reader.
            kwargs: ``rank`` asks for the metadata of that rank alone.

        Returns:
            An object of the caller's own.

        Raises:
            MetadataError: the file is missing, damaged, or names what it has no need of.
        """
        path = self._get_metadata_path(kwargs.get("rank"))
        is_local = type(self.fs) is FileSystem
        self._metadata_before = {}
        options = adapter.options_of(self)
        return read_metadata(
            path,
            fs=None if is_local else self.fs,
            allow_globals=options.allow_globals,
            load_id=self.load_id,
            retries=options.retries,
            stall_timeout_s=options.stall_timeout_s,
            seen=self._metadata_before,
        )


def read_data_parallel(
    self: Any, plan: LoadPlan, planner: LoadPlanner, num_workers: int | None = None
) -> Future[None]:
    """``read_data`` with ``multiprocessing.Pool``, for any ``FileSystemReader``.

    Use it as a method, ``read_data = read_data_parallel`` in the body of a class, or call it with a
    reader.

    Args:
        self: a reader with ``path`` and ``storage_data``.
        plan: what to read.
        planner: where to.
        num_workers: worker processes; ``None`` chooses.
    """
    return reading.read_with(
        self, plan, planner, defaults=ParallelFileReader, executor="pool", max_workers=num_workers
    )


def read_data_parallel_v2(
    self: Any, plan: LoadPlan, planner: LoadPlanner, num_workers: int | None = None
) -> Future[None]:
    """The same with ``concurrent.futures.ProcessPoolExecutor``."""
    return reading.read_with(
        self,
        plan,
        planner,
        defaults=ParallelFileReader,
        executor="processes",
        max_workers=num_workers,
    )
