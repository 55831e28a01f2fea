"""ReadOptions: every option of a load, with its default."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, Literal, TypedDict, get_args

from paraload.errors import InvalidOptionError
from paraload.hooks import NarrowTensor, SliceFile, Transform
from paraload.progress import ProgressHook

__all__ = ["EXECUTORS", "ReadOptions", "ReadOptionsDict", "parse_bytes"]

Executor = Literal["auto", "sequential", "threads", "processes", "pool"]
EXECUTORS: Final[tuple[Executor, ...]] = get_args(Executor)

#: 256 MiB hides the latency of every staged path that was measured, and eight ranks of a host stay
#: within 2 GiB.
DEFAULT_MEMORY_BUDGET_BYTES: Final = 256 << 20
MIN_MEMORY_BUDGET_BYTES: Final = 1 << 20
#: Far more than any storage needs; more threads could exceed the system's limits or memory.
MOST_WORKERS: Final = 1024

#: A task reads at most 32 MiB, so a reader that takes longer gets less than 100 KiB/s. NCCL gives
#: up on a rank that does not answer for 600 s; our error should come first.
DEFAULT_STALL_TIMEOUT_S: Final = 300.0

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(r"\s*(\d+)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_FLAGS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
#: How similar the name of an unknown option must be to a known one; storages have options too.
_MISSPELT: Final = 0.85
_GLOBAL: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a checkpoint is read. Pickles if its hooks do.

    Each field is also a keyword of every reader and of :func:`paraload.load`. Environment variables
    set some of them; see :meth:`resolve`.

    Attributes:
        enable_parallel: ``False`` reads with one reader on the caller's thread, as
            ``executor="sequential"`` does. Default ``True``.
        max_workers: number of concurrent readers, from 1 to 1,024. The default starts with the
            cores of this rank and adds threads while throughput grows. Set it to 1 for a spinning
            disk, which then reads files front to back.
        executor: how readers run. The default, ``"auto"``, uses ``"threads"``, the fastest for
            plain reads. ``"processes"`` is for hooks that are slow Python; it copies data once more
            and takes 0.2 s to start. ``"pool"`` is the same with a literal
            ``multiprocessing.Pool``. ``"sequential"`` reads on the caller's thread, as loads of
            less than 1 MiB always do.
        memory_budget_bytes: upper bound of staging memory, in bytes, at least 1 MiB. The default is
            256 MiB, or an eighth of this rank's share of the free memory if that is less. Worker
            processes stage all bytes; threads only those that cannot be read straight into their
            tensors, such as small, compressed or converted items. An item that is larger than the
            budget is staged alone.
        verify: check the CRC-32 of every record that is read whole, before its tensor is committed.
            Default ``True``. Records that are read in part cannot be checked; the report counts
            them.
        progress: ``True`` shows progress on rank 0: a bar on a terminal or in Jupyter; elsewhere a
            line every 10 s and one at the end, at level INFO of the logger ``paraload``, or on
            standard error if that logger does not show them. A callable is called on the caller's
            thread, on every rank that has one, with a :class:`~paraload.ReadProgress` after each
            task; an exception in it ends the load. Default ``None``.
        slice_file: hook ``(stream, item_metadata) -> stream`` that finds an item's bytes in a
            stream of its file. ``item_metadata`` is a :class:`~paraload.hooks.StorageItem`. Hooks
            read items whole, and must pickle with ``"processes"`` and ``"pool"``.
        narrow_tensor: hook ``(tensor, storage_offsets, lengths) -> tensor`` that cuts the needed
            slice out of a stored tensor. Offsets and lengths are in elements.
        transform: hook ``(read_item, transform_descriptors, stream) -> stream`` that decodes an
            item. ``read_item`` is a :class:`~paraload.hooks.ReadItemInfo`.
        retries: retries of a read after a transient error of the storage (EIO, ESTALE, EAGAIN and
            the like; 408, 429, 5xx, time-outs and cut bodies of a server). The default suits the
            storage: 3 for files, with pauses of up to 50, 100 and 200 ms; 10 for servers, with
            pauses of up to 0.1 s, doubled up to 15 s, 56 s in all. Calls of a server that has
            answered nothing for 120 s, or half of ``stall_timeout_s``, fail at once.
        stall_timeout_s: seconds without progress before a stalled read becomes a
            :class:`~paraload.errors.StalledReadError`. Default 300; ``None`` waits forever. A task
            reads at most 32 MiB, or one record if a hook needs it whole, so only a storage slower
            than 100 KiB/s needs more. The deadline also holds for ``.metadata``, for checks of
            files, and in :func:`paraload.verify`, but not for what runs on the caller's thread:
            hooks with ``"sequential"``, and reads while all worker processes are busy.
        direct_io: bypass the page cache for ranges that are not cached (O_DIRECT). Default
            ``False``. Use it for large checkpoints that are read once: the load then evicts nothing
            from the cache. Leave it off if ranks of one host read the same bytes, or if the files
            are read again soon; ``paraload bench`` measures whether it is faster. Each reader needs
            4 MiB more; without ``max_workers``, all of them stay within the memory budget. If the
            file system does not support it, the page cache is used, and the report says so.
        strict: raise an error where torch silently converts a stored tensor to the dtype of its
            target, or overwrites a target that shares memory with another one but was saved with
            different values. Default ``False``; the report names both.
        allow_outside_paths: read files outside of the checkpoint's folder if the metadata names
            them. Default ``False``, which refuses such a checkpoint.
        allow_globals: classes and functions that ``.metadata`` may name besides those of torch's
            own writers, as names such as ``"mypackage.writer.Info"`` or as objects. Default ``()``.
            Unpickling runs their code, so allow only what you trust.

    Raises:
        InvalidOptionError: a value is invalid.

    >>> ReadOptions(max_workers=4).executor
    'auto'
    """

    enable_parallel: bool = True
    max_workers: int | None = None
    executor: Executor = "auto"
    memory_budget_bytes: int | None = None
    verify: bool = True
    progress: bool | ProgressHook | None = None
    slice_file: SliceFile | None = None
    narrow_tensor: NarrowTensor | None = None
    transform: Transform | None = None
    retries: int | None = None
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S
    direct_io: bool = False
    strict: bool = False
    allow_outside_paths: bool = False
    allow_globals: tuple[str | Callable[..., Any], ...] = ()

    def __post_init__(self) -> None:
        choices = ", ".join(map(repr, EXECUTORS))
        self._require("executor", self.executor in EXECUTORS, f"one of {choices}")
        for name in ("enable_parallel", "verify", "direct_io", "strict", "allow_outside_paths"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        if self.max_workers is not None:
            self._require_count("max_workers", 1, MOST_WORKERS)
        if self.memory_budget_bytes is not None:
            self._require_count("memory_budget_bytes", MIN_MEMORY_BUDGET_BYTES, sys.maxsize)
        if self.retries is not None:
            self._require_count("retries", 0, sys.maxsize)
        timeout_s: Any = self.stall_timeout_s
        is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
        is_valid = timeout_s is None or (is_number and timeout_s > 0)
        self._require("stall_timeout_s", is_valid, "a number of seconds above 0, or None")
        if not isinstance(self.progress, bool):
            self._require_callable("progress", "True, False, None or a callable")
        for name in ("slice_file", "narrow_tensor", "transform"):
            self._require_callable(name)
        is_collection = isinstance(self.allow_globals, list | tuple | set | frozenset)
        self._require("allow_globals", is_collection, "a tuple such as ('module.name',)")
        if invalid := [allowed for allowed in self.allow_globals if not _is_global(allowed)]:
            raise InvalidOptionError(
                f"allow_globals: {invalid[0]!r} is not a name such as 'module.name', a class or a"
                " function"
            )
        # A copy, so that the list stays as it was checked even if the caller changes it.
        object.__setattr__(self, "allow_globals", tuple(self.allow_globals))

    def _require(self, name: str, is_valid: object, expected: str) -> None:
        if not is_valid:
            raise InvalidOptionError(f"{name}={getattr(self, name)!r}: expected {expected}")

    def _require_callable(self, name: str, expected: str = "a callable") -> None:
        value = getattr(self, name)
        self._require(name, value is None or callable(value), expected)

    def _require_count(self, name: str, minimum: int, maximum: int) -> None:
        value = getattr(self, name)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        self._require(name, is_whole, "a whole number")
        self._require(name, value >= minimum, f"{minimum} or more")
        self._require(name, value <= maximum, f"{maximum} or less")

    @property
    def is_sequential(self) -> bool:
        """Whether one reader reads everything, on the caller's thread."""
        return not self.enable_parallel or self.executor == "sequential" or self.max_workers == 1

    @classmethod
    def resolve(
        cls,
        options: ReadOptions | None = None,
        overrides: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> ReadOptions:
        """Combine explicit arguments, the environment and the defaults, in this order.

        The environment is for programs that take only a path, such as torchtitan and Lightning. Its
        variables are PARALOAD_MAX_WORKERS, PARALOAD_EXECUTOR, PARALOAD_MEMORY_BUDGET (such as
        ``256MiB``), PARALOAD_RETRIES, PARALOAD_STALL_TIMEOUT_S (or ``none``), PARALOAD_PROGRESS,
        PARALOAD_DIRECT_IO (``1`` or ``0``), and PARALOAD_ALLOW_GLOBALS (separated by commas). Any
        other variable whose name starts with PARALOAD_ is a ``UserWarning``.

        Args:
            options: a complete set of options; the environment is not used then.
            overrides: fields by name, which override ``options`` and the environment.
            environ: the environment; by default ``os.environ``.

        Raises:
            InvalidOptionError: a field is unknown or a value is invalid.
        """
        overrides = dict(overrides or {})
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(overrides.keys() - known):
            raise _unknown(unknown[0], near=get_close_matches(unknown[0], known), known=known)
        if options is not None:
            if not isinstance(options, cls):
                raise InvalidOptionError(f"options={options!r}: expected a ReadOptions")
            return dataclasses.replace(options, **overrides)
        return cls(**(_from_environment(os.environ if environ is None else environ) | overrides))


class MixinOptionsDict(TypedDict, total=False):
    """The keywords of ``ParallelFileReader`` that have no parameter of their own."""

    executor: Executor
    memory_budget_bytes: int | None
    verify: bool
    progress: bool | ProgressHook | None
    slice_file: SliceFile | None
    narrow_tensor: NarrowTensor | None
    transform: Transform | None
    retries: int | None
    stall_timeout_s: float | None
    direct_io: bool
    strict: bool
    allow_outside_paths: bool
    allow_globals: tuple[str | Callable[..., Any], ...]


class ReadOptionsDict(MixinOptionsDict, total=False):
    """The fields of :class:`ReadOptions` as keywords, for ``**keywords: Unpack[...]``.

    Type checkers cannot derive it from the dataclass; a test compares the two.
    """

    enable_parallel: bool
    max_workers: int | None


def split_keywords(
    keywords: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of :class:`ReadOptions` among ``keywords``, and all others for the storage.

    Raises:
        InvalidOptionError: the name of a field is misspelt; storages would say nothing of it.

    >>> split_keywords({"max_workers": 4, "region": "eu-west-1"})
    ({'max_workers': 4}, {'region': 'eu-west-1'})
    """
    names = {field.name for field in dataclasses.fields(ReadOptions)}
    reading = {name: value for name, value in keywords.items() if name in names}
    others = {name: value for name, value in keywords.items() if name not in names}
    for name in others:
        if near := get_close_matches(name, names, cutoff=_MISSPELT):
            raise _unknown(name, near=near, known=names)
    return reading, others | dict(storage_options or {})


def _unknown(name: str, *, near: Sequence[str], known: Iterable[str]) -> InvalidOptionError:
    what = f"did you mean {near[0]!r}?" if near else f"known: {sorted(known)}"
    return InvalidOptionError(f"unknown option {name!r}; {what}")


def parse_bytes(text: str) -> int:
    """Parse a number of bytes, such as ``"268435456"``, ``"256MiB"`` or ``"2g"``.

    Units are binary: ``"1MB"`` is 1,048,576 bytes.

    Raises:
        InvalidOptionError: the text is not a size.

    >>> parse_bytes("256 MiB")
    268435456
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidOptionError(f"expected a size such as 268435456 or 256MiB, got {text!r}")
    return int(match[1]) * _UNITS[match[2].lower()]


def _names_in(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _seconds_in(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


#: Read by ``paraload.adapters.dcp.startup``.
INSTALL_VARIABLE: Final = "PARALOAD_INSTALL"
_PREFIX: Final = "PARALOAD_"
#: Environment variable -> the field that it sets, the parser of its text, and what that expects.
_ENVIRONMENT: Final[dict[str, tuple[str, Callable[[str], Any], str]]] = {
    "PARALOAD_MAX_WORKERS": ("max_workers", int, "a whole number"),
    "PARALOAD_EXECUTOR": ("executor", str, ""),
    "PARALOAD_MEMORY_BUDGET": ("memory_budget_bytes", parse_bytes, ""),
    "PARALOAD_RETRIES": ("retries", int, "a whole number"),
    "PARALOAD_STALL_TIMEOUT_S": ("stall_timeout_s", _seconds_in, "a number of seconds, or none"),
    "PARALOAD_PROGRESS": ("progress", lambda text: _FLAGS[text.lower()], "1 or 0"),
    "PARALOAD_DIRECT_IO": ("direct_io", lambda text: _FLAGS[text.lower()], "1 or 0"),
    "PARALOAD_ALLOW_GLOBALS": ("allow_globals", _names_in, ""),
}


def flag_in(environ: Mapping[str, str], variable: str) -> bool:
    """The value of an environment variable that is 1 or 0; ``False`` if it is not set.

    Raises:
        InvalidOptionError: the value is something else.
    """
    text = environ.get(variable, "").strip()
    if text.lower() not in {"", *_FLAGS}:
        raise InvalidOptionError(f"environment variable {variable}={text!r}: expected 1 or 0")
    return bool(text) and _FLAGS[text.lower()]


def _warn_of_unknown_variables(environ: Mapping[str, str]) -> None:
    known = {it.removeprefix(_PREFIX): it for it in (*_ENVIRONMENT, INSTALL_VARIABLE)}
    for variable in sorted(environ):
        name = variable.removeprefix(_PREFIX)
        if name != variable and name not in known:
            hint = f"known: {', '.join(known.values())}"
            if near := get_close_matches(name, known, n=1):
                hint = f"did you mean {known[near[0]]}?"
            text = f"environment variable {variable} has no effect, it is not known; {hint}"
            warnings.warn(text, stacklevel=2)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    _warn_of_unknown_variables(environ)
    values: dict[str, Any] = {}
    for variable, (field, parse, expected) in _ENVIRONMENT.items():
        if not (text := environ.get(variable, "").strip()):
            continue
        try:
            values[field] = parse(text)
            ReadOptions(**{field: values[field]})
        except (ValueError, KeyError) as error:
            problem = error if isinstance(error, InvalidOptionError) else f"expected {expected}"
            message = f"environment variable {variable}={text!r}: {problem}"
            raise InvalidOptionError(message) from None
    return values


def _is_global(value: Any) -> bool:
    if isinstance(value, str):
        return _GLOBAL.fullmatch(value) is not None
    return hasattr(value, "__module__") and hasattr(value, "__qualname__")
