"""``paraload.install()``: torch's own readers read through paraload.

    FileSystemReader          read_data, read_metadata    subclasses, such as FsspecReader, inherit
    HuggingFaceStorageReader  read_data                   its read_metadata reads headers only;
                                                          from torch 2.9 on

The methods of torch's classes are replaced. Replacing the names of the classes would miss every
module that imported one before, such as torch's own ``_storage_utils``. A subclass that overrides a
method keeps its own.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Unpack

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from paraload.adapters.dcp import startup
from paraload.core.compat import HuggingFaceStorageReader
from paraload.errors import IncompatibleTorchError
from paraload.options import ReadOptions, ReadOptionsDict
from paraload.report import ReadReport
from paraload.sources.urls import without_credentials

_log = logging.getLogger("paraload")


@dataclass(slots=True, eq=False)
class Installation:
    """An installation, and what it has read.

    Attributes:
        options: of all loads.
        last_report: the :class:`~paraload.ReadReport` of the last load, by any thread.
    """

    options: ReadOptions
    last_report: ReadReport | None = None


@dataclass(slots=True)
class _State:
    """What is in effect; changed under ``_lock`` only."""

    active: tuple[Installation, ...] = ()  # the last one's options are in effect
    permanent: Installation | None = None  # made by install()
    #: The methods that were replaced, by class and name.
    replaced: Mapping[tuple[type, str], Any] | None = None


_lock: Final = threading.RLock()
_state: Final = _State()


def install(
    options: ReadOptions | None = None, **keywords: Unpack[ReadOptionsDict]
) -> Installation:
    """Make torch's own readers read through paraload, in the whole process.

    This reaches every ``dcp.load`` with ``checkpoint_id=``, and every ``FileSystemReader``,
    ``FsspecReader`` and ``HuggingFaceStorageReader`` of torch, including subclasses that inherit
    their methods and names that other modules imported before: torchtitan, accelerate, Lightning,
    Megatron-LM. Call it again to change options.

    Args:
        options: a :class:`~paraload.ReadOptions`, instead of keywords.
        **keywords: fields of :class:`~paraload.ReadOptions`; they override ``options``.

    Returns:
        The installation. Its ``last_report`` shows that a load went through paraload.

    Raises:
        InvalidOptionError: an option has an invalid value.
        IncompatibleTorchError: this version of torch has other readers; nothing was changed.

    >>> import tempfile, torch, paraload, torch.distributed.checkpoint as dcp
    >>> installation = paraload.install(max_workers=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = dcp.save({"w": torch.arange(4.0)}, checkpoint_id=folder, no_dist=True)
    ...     state = {"w": torch.zeros(4)}
    ...     dcp.load(state, checkpoint_id=folder, no_dist=True)
    >>> state["w"], installation.last_report.items
    (tensor([0., 1., 2., 3.]), 1)
    >>> paraload.uninstall()
    """
    installation = Installation(ReadOptions.resolve(options, keywords))
    _require_engine()
    with _lock:
        _activate(installation)
        if _state.permanent is not None:
            _deactivate(_state.permanent)
        _state.permanent = installation
    return installation


def uninstall() -> None:
    """Undo :func:`install`: torch's methods are what they were before.

    Blocks of :func:`installed` stay in effect until they end. Without an installation, it does
    nothing.
    """
    with _lock:
        if _state.permanent is not None:
            _deactivate(_state.permanent)
            _state.permanent = None


@contextmanager
def installed(
    options: ReadOptions | None = None, **keywords: Unpack[ReadOptionsDict]
) -> Iterator[Installation]:
    """:func:`install` for the duration of a ``with`` block.

    Blocks may be nested, and may overlap in several threads: torch's methods return when the last
    block ends. The methods are those of the whole process, so the options of the block that began
    last apply to the loads of all threads.

    Args:
        options: as in :func:`install`.
        **keywords: as in :func:`install`.
    """
    installation = Installation(ReadOptions.resolve(options, keywords))
    _require_engine()
    with _lock:
        _activate(installation)
    try:
        yield installation
    finally:
        with _lock:
            _deactivate(installation)


def stock(kind: type) -> type:
    """The class ``kind`` with torch's own methods, for comparisons while they are replaced."""
    with _lock:
        replaced = _state.replaced or {}
    own = {
        name: original
        for (owner, name), original in replaced.items()
        if getattr(kind, name, None) is _METHODS[owner, name][0]
    }
    return type(kind.__name__, (kind,), own) if own else kind


# ------------------------------------------------------------------------------------- methods


def _read_data(self: Any, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
    """Read ``plan`` with paraload; see :func:`paraload.install`."""
    if (options := _options()) is None:
        done: Future[None] = _originals[FileSystemReader, "read_data"](self, plan, planner)
        return done
    from paraload.adapters.dcp.reader_config import as_installed  # noqa: PLC0415 - see _require_engine
    from paraload.adapters.dcp.readers import ParallelFileReader  # noqa: PLC0415

    with as_installed(options):
        done = ParallelFileReader.read_data(self, plan, planner)
    _note(self.last_report, self.path)
    return done


def _read_metadata(self: Any, *args: Any, **kwargs: Any) -> Metadata:
    """Read the metadata with paraload; see :func:`paraload.install`.

    torch passes ``rank`` only to a method that has a parameter called ``kwargs``.
    """
    if (options := _options()) is None:
        metadata: Metadata = _originals[FileSystemReader, "read_metadata"](self, *args, **kwargs)
        return metadata
    from paraload.adapters.dcp.reader_config import as_installed  # noqa: PLC0415 - see _require_engine
    from paraload.adapters.dcp.readers import read_folder_metadata  # noqa: PLC0415

    with as_installed(options):
        return read_folder_metadata(self, kwargs.get("rank"))


def _read_hf_data(self: Any, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
    """Read ``plan`` with paraload; see :func:`paraload.install`."""
    if (options := _options()) is None:
        done: Future[None] = _originals[HuggingFaceStorageReader, "read_data"](self, plan, planner)
        return done
    from paraload.adapters.dcp.hf_stock import read_for_stock  # noqa: PLC0415 - see _require_engine

    self.last_report = read_for_stock(self, plan, planner, options)
    _note(self.last_report, self.path)
    done = Future()
    done.set_result(None)
    return done


def _note(report: ReadReport | None, path: Any) -> None:
    if report is None:  # nothing was to be read
        return
    for installation in _state.active:
        installation.last_report = report
    _log.info("%s: %s", without_credentials(str(path)), str(report).partition("\n")[0])


_DATA: Final = ("self, plan, planner",)
_METADATA: Final = ("self, args, kwargs", "self")  # the latter up to torch 2.8

#: The new methods, with the parameters that torch's may have.
_METHODS: Final[dict[tuple[type, str], tuple[Callable[..., Any], tuple[str, ...]]]] = {
    (FileSystemReader, "read_data"): (_read_data, _DATA),
    (FileSystemReader, "read_metadata"): (_read_metadata, _METADATA),
}
# That of torch 2.8 is another one, over fsspec; before, there was none.
if HuggingFaceStorageReader.__bases__ == (FileSystemReader,):
    _METHODS[HuggingFaceStorageReader, "read_data"] = (_read_hf_data, _DATA)

#: torch's methods, which ours call if they are called while nothing is installed. That happens
#: where other code has wrapped ours.
_originals: Final[dict[tuple[type, str], Any]] = {}


def _options() -> ReadOptions | None:
    active = _state.active
    return active[-1].options if active else None


# -------------------------------------------------------------------------------------- changes


def _activate(installation: Installation) -> None:
    if _state.replaced is None:
        _require_known_readers()
        _state.replaced = {(kind, name): vars(kind)[name] for kind, name in _METHODS}
        for (kind, name), (method, _) in _METHODS.items():
            _originals.setdefault((kind, name), vars(kind)[name])
            setattr(kind, name, method)
    _state.active = (*_state.active, installation)


def _deactivate(installation: Installation) -> None:
    _state.active = tuple(it for it in _state.active if it is not installation)
    if _state.active or _state.replaced is None:
        return
    for (kind, name), original in _state.replaced.items():
        if vars(kind).get(name) is _METHODS[kind, name][0]:  # else other code has replaced ours
            setattr(kind, name, original)
    _state.replaced = None


def _require_known_readers() -> None:
    for (kind, name), (_, expected) in _METHODS.items():
        method = vars(kind).get(name)
        if not inspect.isfunction(method):
            raise _incompatible(f"{kind.__name__}.{name} is not a method of its own")
        found = ", ".join(inspect.signature(method).parameters)
        if found not in expected:
            raise _incompatible(f"{kind.__name__}.{name} takes ({found}), expected ({expected[0]})")


def _require_engine() -> None:
    """Import the readers, so that what they miss of torch is an error now.

    The methods import them again, because with ``PARALOAD_INSTALL=1`` this module may be imported
    while those import torch.
    """
    try:
        from paraload.adapters.dcp import hf_stock, readers  # noqa: F401, PLC0415
    except ImportError as error:
        raise _incompatible(str(error)) from error


def _incompatible(problem: str) -> IncompatibleTorchError:
    return IncompatibleTorchError(
        f"paraload cannot replace the readers of torch {torch.__version__}: {problem}. Nothing was"
        " changed. Update paraload, or pass one of its readers to dcp.load"
    )


def install_at_startup() -> None:
    """:func:`install`, unless it was called; modules of paraload may be half imported."""
    with _lock:
        if _state.permanent is None:
            _activate(installation := Installation(ReadOptions.resolve()))
            _state.permanent = installation


if startup.is_due:
    install_at_startup()
