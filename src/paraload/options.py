"""ReadOptions: the one home of every default, validated when it is made.

Callers that cannot pass options (torchtitan, Lightning and others give only a path) set the
environment instead; an explicit argument wins over the environment, the environment over the
default.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any, Final, Protocol

from paraload.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO

    from paraload._task import ReadItemInfo
    from paraload.progress import ProgressHook

__all__ = ["EXECUTORS", "ReadOptions", "parse_bytes"]

EXECUTORS: Final = ("auto", "sequential", "threads", "processes", "pool")

#: Staging memory of one reader. Direct reads need none of it; 256 MiB hides the latency of every
#: staged path that was measured, and eight ranks of a host stay within 2 GiB.
DEFAULT_MEMORY_BUDGET_BYTES: Final = 256 << 20
MIN_MEMORY_BUDGET_BYTES: Final = 1 << 20
#: Far more than any storage needs. More threads could exceed limits of the system, or its memory.
MOST_WORKERS: Final = 1024

#: A worker answers for at most 32 MiB at once, so this is some 100 KiB a second: nothing comes any
#: more. NCCL gives up on a rank that does not answer after 600 s; the error should come before.
DEFAULT_STALL_TIMEOUT_S: Final = 300.0

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"\s*(\d+)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_GLOBAL: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})


class _StorageItem(Protocol):
    """What a ``slice_file`` hook is told of an item's place."""

    relative_path: str
    offset: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a reader reads. Every field is also a keyword of every reader and of ``paraload.load``.

    Attributes:
        enable_parallel: ``False`` reads with one reader on the caller's thread.
        max_workers: readers at once, 1,024 at most; ``None`` chooses from cores, storage and free
            memory.
        executor: ``"threads"`` (what ``"auto"`` takes), ``"processes"``, ``"pool"`` or
            ``"sequential"``.
        memory_budget_bytes: upper bound of staging memory in flight, in bytes; ``None`` takes
            256 MiB or an eighth of the memory that is free, whichever is less.
        verify: check the CRC-32 of every record that is read whole.
        progress: ``True`` for a bar, a callable for :class:`~paraload.ReadProgress` snapshots.
        slice_file: ``(stream, item_metadata) -> stream``, finds an item's bytes in its file.
        narrow_tensor: ``(tensor, storage_offsets, lengths) -> tensor``, cuts the needed slice.
        transform: ``(read_item, transform_descriptors, stream) -> stream``, decodes an item.
        retries: how often a read is tried again that the system has refused for what may be a
            moment (EIO, ESTALE, EAGAIN and the like), after pauses from 50 ms on.
        stall_timeout_s: seconds in which no task is done until the load ends with a
            :class:`~paraload.errors.StalledReadError`; ``None`` waits for ever. A task reads at
            most 32 MiB, or one record where a hook or transform needs it whole. Reads of
            ``.metadata``, checks of files and ``paraload.verify`` have the same deadline. What runs
            on the caller's own thread has none: hooks of ``"sequential"``, and some reads of
            ``"processes"`` and ``"pool"`` while workers are busy.
        direct_io: read what is not in the page cache past it, with O_DIRECT: then nothing else is
            pushed out of the cache. ``paraload bench`` tells whether it is faster here. Not for
            ranks of one host that read the same bytes, nor for files that are soon read again:
            each time they come from the storage. Takes 4 MiB for each reader; without
            ``max_workers``, all together at most as much as the memory budget. Where the file
            system refuses, the report says so and the page cache is used.
        strict: refuse to convert a stored tensor to another dtype, which torch does silently.
        allow_outside_paths: read files that the metadata names outside of the checkpoint's folder.
        allow_globals: what ``.metadata`` may name besides the classes of torch's own writers:
            names such as ``"mypackage.writer.Info"``, or the classes and functions themselves. To
            unpickle them runs their code.

    Raises:
        InvalidOptionError: a value is impossible; the text names field, value and choices.

    >>> ReadOptions(max_workers=4).executor
    'auto'
    """

    enable_parallel: bool = True
    max_workers: int | None = None
    executor: str = "auto"
    memory_budget_bytes: int | None = None
    verify: bool = True
    progress: bool | ProgressHook | None = None
    slice_file: Callable[[IO[bytes], _StorageItem], IO[bytes]] | None = None
    narrow_tensor: Callable[[Any, tuple[int, ...], tuple[int, ...]], Any] | None = None
    transform: Callable[[ReadItemInfo, tuple[str, ...], IO[bytes]], IO[bytes]] | None = None
    retries: int = 3
    stall_timeout_s: float | None = DEFAULT_STALL_TIMEOUT_S
    direct_io: bool = False
    strict: bool = False
    allow_outside_paths: bool = False
    allow_globals: tuple[str | Callable[..., Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse impossible values here, so that nothing behind has to."""
        if self.executor not in EXECUTORS:
            choices = ", ".join(map(repr, EXECUTORS))
            raise InvalidOptionError(f"executor={self.executor!r} is not one of {choices}")
        for name in ("enable_parallel", "verify", "direct_io", "strict", "allow_outside_paths"):
            _require(name, getattr(self, name), bool)
        if self.max_workers is not None:
            _require("max_workers", self.max_workers, int, minimum=1, maximum=MOST_WORKERS)
        if self.memory_budget_bytes is not None:
            minimum = MIN_MEMORY_BUDGET_BYTES
            _require("memory_budget_bytes", self.memory_budget_bytes, int, minimum=minimum)
        _require("retries", self.retries, int, minimum=0)
        if self.stall_timeout_s is not None:
            _require_seconds("stall_timeout_s", self.stall_timeout_s)
        if not (self.progress is None or isinstance(self.progress, bool)):
            _require_callable("progress", self.progress)
        for name in ("slice_file", "narrow_tensor", "transform"):
            if getattr(self, name) is not None:
                _require_callable(name, getattr(self, name))
        # Whatever was given lists them; frozen, so that they stay as they were checked.
        object.__setattr__(self, "allow_globals", _checked_globals(self.allow_globals))

    @property
    def is_sequential(self) -> bool:
        """Whether one reader was asked for."""
        return not self.enable_parallel or self.executor == "sequential" or self.max_workers == 1

    @classmethod
    def resolve(
        cls,
        options: ReadOptions | None = None,
        overrides: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> ReadOptions:
        """The options in force: explicit arguments, then the environment, then the defaults.

        Args:
            options: a whole set; the environment then has no say.
            overrides: single fields by name, laid over ``options``.
            environ: the environment to read; ``os.environ`` when not given.

        Raises:
            InvalidOptionError: an unknown field, or an impossible value.
        """
        overrides = dict(overrides or {})
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(overrides) - known):
            raise InvalidOptionError(f"unknown option {unknown[0]!r}; known: {sorted(known)}")
        if options is None:
            values = _from_environment(os.environ if environ is None else environ)
            return cls(**(values | overrides))
        return dataclasses.replace(options, **overrides)


def parse_bytes(text: str) -> int:
    """A number of bytes from text such as ``"268435456"``, ``"256MiB"`` or ``"2g"``.

    >>> parse_bytes("256 MiB")
    268435456
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidOptionError(f"expected a size such as 268435456 or 256MiB, got {text!r}")
    return int(match[1]) * _UNITS[match[2].lower()]


def _parse_flag(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise InvalidOptionError(f"expected 1 or 0, got {text!r}")


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _parse_count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidOptionError(f"expected a whole number, got {text!r}") from None


def _parse_seconds(text: str) -> float | None:
    """Seconds; "none" for no limit."""
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidOptionError(f"expected a number of seconds, or none, got {text!r}") from None


#: Environment variable -> the option it sets and how its text is read.
_ENVIRONMENT: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "PARALOAD_MAX_WORKERS": ("max_workers", _parse_count),
    "PARALOAD_EXECUTOR": ("executor", str),
    "PARALOAD_MEMORY_BUDGET": ("memory_budget_bytes", parse_bytes),
    "PARALOAD_RETRIES": ("retries", _parse_count),
    "PARALOAD_STALL_TIMEOUT_S": ("stall_timeout_s", _parse_seconds),
    "PARALOAD_PROGRESS": ("progress", _parse_flag),
    "PARALOAD_DIRECT_IO": ("direct_io", _parse_flag),
    "PARALOAD_ALLOW_GLOBALS": ("allow_globals", _parse_names),
}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, (field, parse) in _ENVIRONMENT.items():
        if not (text := environ.get(variable, "").strip()):
            continue
        try:
            values[field] = parse(text)
            ReadOptions(**{field: values[field]})
        except InvalidOptionError as error:
            message = f"environment variable {variable}={text!r}: {error}"
            raise InvalidOptionError(message) from None
    return values


def _require(
    name: str,
    value: object,
    kind: type,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
) -> None:
    is_bool_for_int = kind is int and isinstance(value, bool)
    if not isinstance(value, kind) or is_bool_for_int:
        expected = "a whole number" if kind is int else "True or False"
        raise InvalidOptionError(f"{name}={value!r}: expected {expected}")
    if minimum is not None and isinstance(value, int) and value < minimum:
        raise InvalidOptionError(f"{name}={value}: expected {minimum} or more")
    if maximum is not None and isinstance(value, int) and value > maximum:
        raise InvalidOptionError(f"{name}={value}: expected {maximum} or less")


def _require_seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise InvalidOptionError(f"{name}={value!r}: expected a number of seconds above 0")


def _checked_globals(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise InvalidOptionError(
            f"allow_globals={value!r}: expected a tuple such as ('module.name',)"
        )
    for allowed in value:
        is_named = hasattr(allowed, "__module__") and hasattr(allowed, "__qualname__")
        if not (_GLOBAL.fullmatch(allowed) if isinstance(allowed, str) else is_named):
            raise InvalidOptionError(
                f"allow_globals: {allowed!r} is neither a name such as 'module.name' nor a class"
                " or function"
            )
    return tuple(value)


def _require_callable(name: str, value: object) -> None:
    if not callable(value):
        raise InvalidOptionError(f"{name}={value!r} is not callable")
