"""The base of readers of DCP checkpoints in other storages than file systems."""

import os
import uuid
from collections.abc import Collection, Mapping
from contextlib import closing
from typing import Any, Unpack

from torch.distributed.checkpoint import StorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan

from paraload.adapters.dcp.reader_config import options_of
from paraload.adapters.dcp.reader_metadata import (
    kept_for_data,
    read_metadata_with,
    taken_look,
)
from paraload.adapters.dcp.readers import ParallelFileReader
from paraload.metadata.file_bytes import MetadataFile
from paraload.metadata.folder_contents import names_in_folder
from paraload.metadata.listing import looked
from paraload.metadata.rank_files import rank_files_among
from paraload.options import ReadOptions, ReadOptionsDict
from paraload.sources import FileStat


class SourceReader(ParallelFileReader, StorageReader):
    """A reader of DCP checkpoints in any storage: a subclass overrides ``_make_source``.

    Metadata are read through the same source as data. ``path`` is for people: it appears in errors
    and reports, so it must not contain credentials.

    Args:
        path: of the checkpoint.
        options: a complete :class:`~paraload.ReadOptions`, or its fields as keywords.
    """

    _is_remote = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        options: ReadOptions | None = None,
        **keywords: Unpack[ReadOptionsDict],
    ) -> None:
        super().__init__(options=options, **keywords)
        self.path = path
        self.storage_data: Any = {}
        self.load_id = str(uuid.uuid4())
        self._entries: Mapping[str, Any] | None = None
        self._metadata_before: dict[str, FileStat] = {}

    @property
    def checkpoint_id(self) -> str | os.PathLike[str]:
        """The checkpoint that is read."""
        path: str | os.PathLike[str] = self.path
        return path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether ``checkpoint_id`` is a URL."""
        return "://" in os.fspath(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a new load, of another checkpoint if ``checkpoint_id`` is given."""
        self.storage_data = {}
        self._look = self._kept = None
        if checkpoint_id:
            self.path = checkpoint_id
        self.load_id = str(uuid.uuid4())

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - torch's
        """Read the checkpoint's metadata; see :meth:`ParallelFileSystemReader.read_metadata`."""
        self._metadata_before = {}
        source, look = self._source_of_load(), taken_look(self)
        file = MetadataFile.of(source, kwargs.get("rank"), str(self.path), look)
        with kept_for_data(source):
            return read_metadata_with(self, file, self._metadata_before, self._source_of_load)

    def ranks_with_metadata(self) -> Collection[int]:
        """The ranks that have metadata of their own, saved with ``use_collectives=False``."""
        options = options_of(self)
        with closing(self._source_of_load()) as source:
            files = looked(
                source,
                names_in_folder,
                f"{self.path!r} was being listed",
                retries=options.retries,
                stall_timeout_s=options.stall_timeout_s,
            )
        return rank_files_among(files)

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: ARG002, FBT001 - torch's
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Keep what ``metadata`` says of places and stored tensors."""
        self.storage_data = metadata.storage_data
        self._entries = metadata.state_dict_metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return ``plan``."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return ``plans``."""
        return plans
