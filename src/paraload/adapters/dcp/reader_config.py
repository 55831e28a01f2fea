"""Between DCP and the engine: what a reader object and a planner are, as the engine wants it.

Everything that knows of ``FileSystemReader``'s attributes (``fs``, ``transforms``, ``_slice_file``)
is here; the engine knows none of it, so that another checkpoint library can have a second adapter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._extension import StreamTransformExtension, ZStandard
from torch.distributed.checkpoint.filesystem import FileSystem, _StorageReaderTransforms
from torch.distributed.checkpoint.planner import LoadPlan

from paraload.core.tasks import ReadTask, RecordSpec
from paraload.errors import InvalidOptionError
from paraload.formats import ItemFormat
from paraload.formats.transforms import Decoder, ExtensionDecoder, ZstdDecoder
from paraload.hooks import StorageItem
from paraload.options import ReadOptions
from paraload.planning.read_tasks import PlanKnobs, first_tasks
from paraload.sources import ByteSource
from paraload.sources.opening import open_source
from paraload.workers.read_context import Work


class ReaderSteps:
    """The overridable steps of a load: the reader's own ones, and those of ``defaults``."""

    def __init__(self, reader: Any, defaults: type) -> None:
        self._reader = reader
        self._defaults = defaults

    def __getitem__(self, name: str) -> Any:
        own = getattr(self._reader, name, None)
        return own if own is not None else getattr(self._defaults, name).__get__(self._reader)

    def are_own(self, *names: str) -> bool:
        """Whether the reader overrides one of these steps."""
        owns = {name: getattr(self._reader, name, None) for name in names}
        return any(
            own is not None and getattr(own, "__func__", own) is not getattr(self._defaults, name)
            for name, own in owns.items()
        )


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """What a load has to know of its reader; made once for each load.

    Attributes:
        path: of the checkpoint, for error texts.
        source: its files.
        slice_file: the hook, or the reader's own ``_slice_file`` if a subclass has replaced it.
        stays_here: why it cannot be sent to worker processes; "" if it can.
        transforms: the reader's pipeline of stream transforms.
        entries: of the checkpoint's metadata, by name, if the reader was shown it.
    """

    path: str
    options: ReadOptions
    source: ByteSource
    slice_file: Callable[..., Any] | None
    stays_here: str
    transforms: Any
    entries: Mapping[str, Any] | None = None
    slice_here: _SliceHere | None = None

    @classmethod
    def of(cls, reader: Any, options: ReadOptions) -> ReaderConfig:
        """Look at ``reader``, which may be any object with ``path`` and ``storage_data``."""
        source = _source_of(reader)
        own_slice = getattr(type(reader), "_slice_file", None)
        is_stock_slice = own_slice is None or own_slice is FileSystemReader._slice_file  # noqa: SLF001
        slice_here = None if is_stock_slice else _SliceHere(reader)
        slice_file = options.slice_file or slice_here
        if slice_file is not None and not hasattr(source, "open_stream"):
            raise InvalidOptionError(
                f"slice_file= and _slice_file read from streams, which {type(source).__name__} does"
                " not have; transform= gets the bytes of a record without one"
            )
        transforms = getattr(reader, "transforms", None)
        fs_name = type(getattr(reader, "fs", None)).__name__
        reasons = {
            f"fs is a {fs_name}": source.limits.forward_only,
            "_slice_file is overridden": slice_here is not None,
            "transforms are the reader's own": _is_foreign(transforms),
        }
        return cls(
            path=path_text(reader.path),
            options=options,
            source=source,
            slice_file=slice_file,
            stays_here=next((reason for reason, holds in reasons.items() if holds), ""),
            transforms=transforms,
            entries=getattr(reader, "_entries", None),
            slice_here=slice_here,
        )

    @property
    def needs_stream(self) -> bool:
        """Items are cut from streams, by a hook or because the storage has nothing else."""
        return self.slice_file is not None or self.source.limits.forward_only

    @property
    def tells_hooks(self) -> bool:
        """Somebody will want to be told of each item."""
        return (
            self.needs_stream or self.options.transform is not None or _is_foreign(self.transforms)
        )

    @property
    def needs_whole(self) -> bool:
        """Items are only understood as whole records."""
        options = self.options
        return (
            options.transform is not None
            or options.narrow_tensor is not None
            or _is_foreign(self.transforms)
        )

    def remember(self, specs: Iterable[RecordSpec], plan: LoadPlan, storage_data: Any) -> None:
        """Keep the storage infos that an overridden ``_slice_file`` will want to see."""
        if self.slice_here is not None:
            for spec in specs:
                info = storage_data[plan.items[spec.item].storage_index]
                self.slice_here.infos[spec.for_hooks.storage] = info

    @property
    def make_tasks(self) -> Callable[..., list[ReadTask]]:
        """:func:`~paraload.planning.read_tasks.first_tasks`, as this reader needs them."""
        return partial(
            first_tasks,
            whole=self.needs_whole,
            as_stream=self.needs_stream,
            in_sequence=self.source.limits.forward_only,
            straight_through=self.options.is_sequential,
            knobs=PlanKnobs.of(self.source.limits),
        )

    def work(self, specs: Iterable[RecordSpec], fmt: ItemFormat) -> Work:
        """What workers need to read ``specs``."""
        transform = self.options.transform
        if _is_foreign(self.transforms) and transform is None:
            transform = self.transforms.transform_load_stream
        described = {spec.wanted.descriptors for spec in specs}
        registry = None if _is_foreign(self.transforms) else _registry(self.transforms)
        return Work(
            source=self.source,
            format=fmt,
            verify=self.options.verify,
            decoders={names: _decoders(registry, names) for names in described if names},
            slice_file=self.slice_file,
            narrow_tensor=self.options.narrow_tensor,
            transform=transform,
            retries=self.options.retries,
            stall_timeout_s=self.options.stall_timeout_s,
        )


#: The reader for which a load is creating tasks, and that load's configuration. It is a context
#: variable because users override and call `_create_read_tasks`: its signature must not change.
_planning: Final[ContextVar[tuple[Any, ReaderConfig] | None]] = ContextVar(
    "paraload_planning", default=None
)


@contextmanager
def planning_with(reader: Any, config: ReaderConfig) -> Iterator[None]:
    """Make :func:`config_for_tasks` yield ``config`` for ``reader`` inside the block."""
    token = _planning.set((reader, config))
    try:
        yield
    finally:
        _planning.reset(token)


@contextmanager
def config_for_tasks(reader: Any) -> Iterator[ReaderConfig]:
    """The configuration of the running load of ``reader``; outside a load, a new one.

    A load closes its own source. The source of a new configuration is closed here.
    """
    planning = _planning.get()
    if planning is not None and planning[0] is reader:
        yield planning[1]
        return
    config = ReaderConfig.of(reader, options_of(reader))
    try:
        yield config
    finally:
        config.source.close()


def default_source(reader: Any) -> ByteSource:
    """What reads below ``reader.path``: the file system, or the streams of another ``fs``."""
    fs = getattr(reader, "fs", None)
    is_local = type(fs) is FileSystem
    return open_source(
        reader.path, fs=None if is_local else fs, direct_io=options_of(reader).direct_io
    )


def _source_of(reader: Any) -> ByteSource:
    """The source of a reader that makes its own, or else the default."""
    make = getattr(reader, "_make_source", None)
    source: ByteSource = make() if make is not None else default_source(reader)
    return source


class _SliceHere:
    """A reader's own ``_slice_file``, given the storage info that it knows."""

    def __init__(self, reader: Any) -> None:
        self._slice = reader._slice_file  # noqa: SLF001 - the hook that subclasses override
        self.infos: dict[StorageItem, Any] = {}

    def __call__(self, stream: Any, item_metadata: StorageItem) -> Any:
        return self._slice(stream, self.infos[item_metadata])


def _is_foreign(transforms: Any) -> bool:
    return transforms is not None and type(transforms) is not _StorageReaderTransforms


def stock_decoders(
    described: Iterable[tuple[str, ...]],
) -> dict[tuple[str, ...], tuple[tuple[Decoder, ...], tuple[str, ...]]]:
    """The decoders that torch's own extensions give for these descriptors."""
    return {names: _decoders(_registry(None), names) for names in set(described) if names}


def _registry(transforms: Any) -> Any:
    return (transforms or _StorageReaderTransforms()).extension_registry


def _decoders(
    registry: Any, descriptors: tuple[str, ...]
) -> tuple[tuple[Decoder, ...], tuple[str, ...]]:
    """The decoders of the leading descriptors that are known, and the descriptors left over."""
    decoders: list[Decoder] = []
    if registry is None:
        return (), descriptors
    for number, descriptor in enumerate(descriptors):
        try:
            (extension,) = registry.from_descriptor_list([descriptor])
        except ValueError:
            return tuple(decoders), descriptors[number:]
        if type(extension) is ZStandard and _has_zstandard():
            decoders.append(ZstdDecoder())
        elif isinstance(extension, StreamTransformExtension):
            decoders.append(ExtensionDecoder(extension, descriptor))
    return tuple(decoders), ()


def _has_zstandard() -> bool:
    from torch.distributed.checkpoint import _extension  # noqa: PLC0415

    return getattr(_extension, "zstandard", None) is not None


def options_of(
    reader: Any, executor: str | None = None, max_workers: int | None = None
) -> ReadOptions:
    """The options of any reader, with those of one call on top."""
    options = getattr(reader, "options", None)
    if not isinstance(options, ReadOptions):
        options = ReadOptions.resolve()
    # A class that took the methods has these two and no `options`; one that has both may have
    # changed them since.
    overrides: dict[str, Any] = {
        "enable_parallel": getattr(reader, "enable_parallel", options.enable_parallel),
        "max_workers": getattr(reader, "max_workers", options.max_workers),
    }
    if executor is not None:
        overrides["executor"] = executor
    if max_workers is not None:
        overrides["max_workers"] = max_workers
    return ReadOptions.resolve(options, overrides)


def path_text(path: Any) -> str:
    """``path`` for messages and look-ups, whatever kind of object it is."""
    return os.fspath(path) if isinstance(path, str | os.PathLike) else str(path)
