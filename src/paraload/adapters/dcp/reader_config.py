"""What a load needs to know of its reader.

All knowledge of ``FileSystemReader``'s attributes (``fs``, ``transforms``, ``_slice_file``) is in
this package; the engine has none of it, so that another checkpoint library can have an adapter too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.distributed.checkpoint import FileSystemReader, _extension
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms

from paraload.core.tasks import ReadTask, RecordSpec
from paraload.errors import InvalidOptionError
from paraload.formats.transforms import Decoder, ExtensionDecoder, ZstdDecoder
from paraload.hooks import StorageItem
from paraload.options import ReadOptions
from paraload.planning.read_tasks import PlanKnobs, first_tasks
from paraload.sources import ByteSource
from paraload.workers.read_context import Work

#: By descriptors: the decoders of the first ones, and the descriptors left over.
Decoders = dict[tuple[str, ...], tuple[tuple[Decoder, ...], tuple[str, ...]]]


class ReaderSteps:
    """The overridable steps of a reader; those that it lacks come from the class ``defaults``."""

    def __init__(self, reader: Any, defaults: type) -> None:
        self._reader = reader
        self._defaults = defaults

    def __getitem__(self, name: str) -> Any:
        own = getattr(self._reader, name, None)
        return own if own is not None else getattr(self._defaults, name).__get__(self._reader)

    def are_own(self, *names: str) -> bool:
        """Whether the reader overrides one of these steps."""
        return any(
            getattr(self[name], "__func__", self[name]) is not getattr(self._defaults, name)
            for name in names
        )


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """What a load needs to know of its reader; made once for each load.

    Attributes:
        reader: an object with ``path`` and ``storage_data``.
        steps: its overridable steps.
        path: of the checkpoint, for error texts.
        options: of the load.
        source: the files. Whoever made the configuration closes it.
        slice_file: the hook, or the reader's own ``_slice_file``.
        transform: the hook, or the reader's own stream transforms.
        registry: torch's stream transforms; ``None`` if the reader's own ones replace them.
        not_in_processes: why worker processes cannot do the work; "" if they can.
        entries: of the metadata, by name; ``None`` if the reader has not seen them.
    """

    reader: Any
    steps: ReaderSteps
    path: str
    options: ReadOptions
    source: ByteSource
    slice_file: Callable[..., Any] | None
    transform: Callable[..., Any] | None
    registry: Any
    not_in_processes: str
    entries: Mapping[str, Any] | None

    @classmethod
    def of(cls, reader: Any, defaults: type, **overrides: Any) -> ReaderConfig:
        """Examine ``reader``, whose missing steps ``defaults`` has.

        Keywords are options of one call. They override those of the reader, unless ``None``.
        """
        options, path = options_of(reader, **overrides), reader.path
        steps = ReaderSteps(reader, defaults)
        source = steps["_make_source"]()
        slice_file = options.slice_file
        own_slice = getattr(type(reader), "_slice_file", None)
        is_stock_slice = own_slice is None or own_slice is FileSystemReader._slice_file  # noqa: SLF001
        if slice_file is None and not is_stock_slice:
            slice_file = OwnSlice(reader)
        if slice_file is not None and not hasattr(source, "open_stream"):
            raise InvalidOptionError(
                f"slice_file= and _slice_file read from streams, which {type(source).__name__} does"
                " not have; transform= gets the bytes of a record without one"
            )
        transforms = getattr(reader, "transforms", None) or _StorageReaderTransforms()
        transform: Callable[..., Any] | None = options.transform
        registry = None
        if type(transforms) is _StorageReaderTransforms:
            registry = transforms.extension_registry
        elif transform is None:
            transform = transforms.transform_load_stream
        reasons = {
            f"fs is a {type(getattr(reader, 'fs', None)).__name__}": source.limits.forward_only,
            "_slice_file is overridden": isinstance(slice_file, OwnSlice),
            "transforms are the reader's own": registry is None,
        }
        return cls(
            reader=reader,
            steps=steps,
            path=str(os.fspath(path) if isinstance(path, os.PathLike) else path),
            options=options,
            source=source,
            slice_file=slice_file,
            transform=transform,
            registry=registry,
            not_in_processes=next((reason for reason, holds in reasons.items() if holds), ""),
            entries=getattr(reader, "_entries", None),
        )

    @property
    def needs_streams(self) -> bool:
        """Whether items are read from streams, for a hook or because the source has only these."""
        return self.slice_file is not None or self.source.limits.forward_only

    @property
    def make_tasks(self) -> Callable[..., list[ReadTask]]:
        """:func:`~paraload.planning.read_tasks.first_tasks` with the needs of this reader."""
        return partial(
            first_tasks,
            whole=self.transform is not None or self.options.narrow_tensor is not None,
            as_stream=self.needs_streams,
            in_sequence=self.source.limits.forward_only,
            straight_through=self.options.is_sequential,
            knobs=PlanKnobs.of(self.source.limits),
        )

    def work(self, specs: Iterable[RecordSpec]) -> Work:
        """What workers need to read ``specs``."""
        return Work(
            source=self.source,
            format=self.steps["_make_format"](),
            verify=self.options.verify,
            decoders=_decoders({spec.wanted.descriptors for spec in specs}, self.registry),
            slice_file=self.slice_file,
            narrow_tensor=self.options.narrow_tensor,
            transform=self.transform,
            retries=self.options.retries,
            stall_timeout_s=self.options.stall_timeout_s,
        )


class OwnSlice:
    """A reader's own ``_slice_file`` as a hook; it gets torch's storage infos from ``infos``."""

    def __init__(self, reader: Any) -> None:
        self._slice = reader._slice_file  # noqa: SLF001 - subclasses override it
        self.infos: dict[StorageItem, Any] = {}

    def __call__(self, stream: Any, item_metadata: StorageItem) -> Any:
        return self._slice(stream, self.infos[item_metadata])


def stock_decoders(described: Iterable[tuple[str, ...]]) -> Decoders:
    """The decoders that torch's own extensions give for these descriptors."""
    return _decoders(set(described), _StorageReaderTransforms().extension_registry)


def _decoders(described: set[tuple[str, ...]], registry: Any) -> Decoders:
    return {names: _decoders_of(names, registry) for names in described if names}


def _decoders_of(
    descriptors: tuple[str, ...], registry: Any
) -> tuple[tuple[Decoder, ...], tuple[str, ...]]:
    decoders: list[Decoder] = []
    if registry is None:
        return (), descriptors
    for number, descriptor in enumerate(descriptors):
        try:
            (extension,) = registry.from_descriptor_list([descriptor])
        except ValueError:
            return tuple(decoders), descriptors[number:]
        has_zstd = getattr(_extension, "zstandard", None) is not None
        if type(extension) is _extension.ZStandard and has_zstd:
            decoders.append(ZstdDecoder())
        elif isinstance(extension, _extension.StreamTransformExtension):
            decoders.append(ExtensionDecoder(extension, descriptor))
    return tuple(decoders), ()


def options_of(reader: Any, **overrides: Any) -> ReadOptions:
    """The options of any reader, overridden by those of one call that are not ``None``."""
    options = getattr(reader, "options", None)
    if not isinstance(options, ReadOptions):
        options = ReadOptions.resolve()
    # A class that took the methods has these two and no `options`; one that has both may have
    # changed them since.
    own = {
        name: getattr(reader, name, getattr(options, name))
        for name in ("enable_parallel", "max_workers")
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    return ReadOptions.resolve(options, own | given)
