"""The reader of checkpoints in object stores and on web servers."""

from collections.abc import Mapping
from typing import Any, Unpack

from paraload.adapters.dcp.source_reader import SourceReader
from paraload.options import ReadOptions, ReadOptionsDict, split_keywords
from paraload.sources.object_store import ObjectStoreSource


class ParallelObjectStoreReader(SourceReader):
    """A reader for checkpoints in object stores and on web servers, through obstore.

    obstore is in the extra ``object-store``. Its environment variables (``AWS_REGION`` and so on)
    and credential providers work as usual.

    Args:
        url: ``s3://``, ``gs://``, ``az://``, ``http(s)://`` or ``file://`` URL of the checkpoint's
            folder, or an obstore store.
        prefix: folder below ``url``.
        options: a complete :class:`~paraload.ReadOptions`.
        storage_options: options of ``obstore.store.from_url``, such as ``region``, ``endpoint``,
            ``skip_signature``, ``credential_provider``, ``client_options`` or ``retry_config``.
        **keywords: fields of :class:`~paraload.ReadOptions`; every other name is one of
            ``storage_options``.

    Raises:
        InvalidOptionError: an option is invalid, or unknown to both.

    >>> import io, pathlib, tempfile, torch, torch.distributed.checkpoint as dcp
    >>> from paraload import ParallelObjectStoreReader
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dcp.save({"w": torch.arange(4.0)}, checkpoint_id=folder, no_dist=True)
    ...     state = {"w": torch.zeros(4)}
    ...     reader = ParallelObjectStoreReader(pathlib.Path(folder).as_uri())
    ...     dcp.load(state, storage_reader=reader, no_dist=True)
    Metadata(...
    >>> state["w"]
    tensor([0., 1., 2., 3.])
    """

    def __init__(
        self,
        url: Any,
        prefix: str = "",
        *,
        options: ReadOptions | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **keywords: Unpack[ReadOptionsDict],
    ) -> None:
        reading, store_options = split_keywords(keywords, storage_options)
        self._url, self._prefix, self._store_options = url, prefix, store_options
        source = self._make_source()
        super().__init__(source.name, options=options, **reading)
        self._kept = source

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begin a new load, of the checkpoint at another URL if ``checkpoint_id`` is given."""
        source = None
        if checkpoint_id and checkpoint_id != self.path:
            self._url, self._prefix = checkpoint_id, ""
            source = self._make_source()
            checkpoint_id = source.name
        super().reset(checkpoint_id)
        self._kept = source

    def _make_source(self) -> ObjectStoreSource:
        return ObjectStoreSource(self._url, self._prefix, **self._store_options)
