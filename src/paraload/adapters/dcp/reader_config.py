"""What a load needs to know of its reader.

All knowledge of ``FileSystemReader``'s attributes (``fs``, ``transforms``, ``_slice_file``) is in
this package; the engine has none of it, so that another checkpoint library can have an adapter too.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

from paraload.core.compat import (
    ExtensionRegistry,
    ReaderTransforms,
    StreamTransformExtension,
    ZStandard,
    sliceable,
    stock_slice_file,
)
from paraload.core.tasks import ReadTask, RecordSpec
from paraload.errors import InvalidOptionError
from paraload.formats.transforms import Decoder, ExtensionDecoder, ZstdDecoder
from paraload.hooks import StorageItem
from paraload.options import ReadOptions
from paraload.planning.read_tasks import PlanKnobs, first_tasks
from paraload.sources import ByteSource
from paraload.sources.urls import without_credentials
from paraload.workers.read_context import ReadContext

_HAS_ZSTANDARD: Final = find_spec("zstandard") is not None  # torch can also use pyzstd

#: By descriptors: the decoders of the first ones, and the descriptors left over.
Decoders = dict[tuple[str, ...], tuple[tuple[Decoder, ...], tuple[str, ...]]]

#: The options of torch's own readers while ``install()`` has replaced their methods.
_installed: Final[ContextVar[ReadOptions | None]] = ContextVar("paraload_installed", default=None)


class ReaderConfig:
    """What a load needs to know of its reader; made once for each load, which closes ``source``.

    Args:
        reader: an object with ``path`` and ``storage_data``.
        defaults: the class with the steps that the reader lacks.
        **overrides: options that override the reader's, unless ``None``.

    Attributes:
        slice_file: the hook, or the reader's own ``_slice_file``.
        transform: the hook, or the reader's own stream transforms, which need no ``registry``.
        not_in_processes: why worker processes cannot do the work; "" if they can.
        entries: of the metadata, by name; ``None`` if the reader has not seen them.
    """

    def __init__(self, reader: Any, defaults: type, **overrides: Any) -> None:
        self.reader = reader
        self._defaults = defaults
        path = os.fspath(reader.path) if isinstance(reader.path, os.PathLike) else reader.path
        self.path = without_credentials(str(path))
        self.options = options_of(reader, **overrides)
        self.entries: Mapping[str, Any] | None = getattr(reader, "_entries", None)
        keeps = getattr(reader, "_source_of_load", None)
        self.source: ByteSource = (keeps or self.step("_make_source"))()
        self.slice_file: Callable[..., Any] | None = self.options.slice_file
        own_slice = getattr(type(reader), "_slice_file", stock_slice_file) is not stock_slice_file
        if self.slice_file is None and own_slice:
            self.slice_file = OwnSlice(reader)
        if self.slice_file is not None and not hasattr(self.source, "open_stream"):
            raise InvalidOptionError(
                "slice_file= and _slice_file read from streams, which"
                f" {type(self.source).__name__} does not have; transform= gets the bytes of a"
                " record without one"
            )
        transforms: Any = getattr(reader, "transforms", None)
        self.transform: Callable[..., Any] | None = self.options.transform
        self._registry: Any = None
        if not transforms:
            self._registry = ExtensionRegistry()
        elif type(transforms) is ReaderTransforms:
            self._registry = transforms.extension_registry
        elif self.transform is None:
            self.transform = transforms.transform_load_stream
        self.not_in_processes = ""
        if self.source.limits.forward_only:
            self.not_in_processes = f"fs is of type {type(getattr(reader, 'fs', None)).__name__}"
        elif isinstance(self.slice_file, OwnSlice):
            self.not_in_processes = "_slice_file is overridden"
        elif self._registry is None:
            self.not_in_processes = "transforms are the reader's own"
        if keeps is not None:
            reader._kept = None  # noqa: SLF001 - closed with this load; the next one makes its own

    def step(self, name: str) -> Any:
        """An overridable step: the reader's own, or the default."""
        return step_of(self.reader, self._defaults, name)

    def is_overridden(self, name: str) -> bool:
        """Whether the reader has its own version of a step."""
        step = self.step(name)
        return getattr(step, "__func__", step) is not getattr(self._defaults, name)

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

    def read_context(self, specs: Iterable[RecordSpec]) -> ReadContext:
        """What workers need to read ``specs``."""
        described = {spec.wanted.descriptors for spec in specs}
        return ReadContext(
            source=self.source,
            format=self.step("_make_format")(),
            verify=self.options.verify,
            decoders={} if self._registry is None else stock_decoders(described, self._registry),
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
        end = item_metadata.offset + item_metadata.length
        return self._slice(sliceable(stream, end), self.infos[item_metadata])


def stock_decoders(described: Iterable[tuple[str, ...]], registry: Any = None) -> Decoders:
    """The decoders for these descriptors, by default those of torch's own extensions."""
    registry = registry or ExtensionRegistry()
    return {names: _decoders(names, registry) for names in set(described) if names}


def _decoders(
    descriptors: tuple[str, ...], registry: Any
) -> tuple[tuple[Decoder, ...], tuple[str, ...]]:
    decoders: list[Decoder] = []
    for number, descriptor in enumerate(descriptors):
        try:
            (extension,) = registry.from_descriptor_list([descriptor])
        except ValueError:
            return tuple(decoders), descriptors[number:]
        if type(extension) is ZStandard and _HAS_ZSTANDARD:
            decoders.append(ZstdDecoder())
        elif isinstance(extension, StreamTransformExtension):
            decoders.append(ExtensionDecoder(extension, descriptor))
    return tuple(decoders), ()


def step_of(reader: Any, defaults: type, name: str) -> Any:
    """An overridable step of any reader: its own, or that of ``defaults``."""
    own = getattr(reader, name, None)
    return own if own is not None else getattr(defaults, name).__get__(reader)


@contextmanager
def as_installed(options: ReadOptions) -> Iterator[None]:
    """A context in which readers without options of their own have these."""
    token = _installed.set(options)
    try:
        yield
    finally:
        _installed.reset(token)


def options_of(reader: Any, **overrides: Any) -> ReadOptions:
    """The options of any reader, overridden by those of one call that are not ``None``."""
    given = {name: value for name, value in overrides.items() if value is not None}
    options = getattr(reader, "options", None)
    if not isinstance(options, ReadOptions):
        if (installed := _installed.get()) is not None:
            return ReadOptions.resolve(installed, given)
        options = ReadOptions.resolve()
    # A class that took the methods has these two and no `options`; one that has both may have
    # changed them since.
    own = {
        name: getattr(reader, name, getattr(options, name))
        for name in ("enable_parallel", "max_workers")
    }
    return ReadOptions.resolve(options, own | given)
