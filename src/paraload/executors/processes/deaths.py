"""Explains worker processes that cannot start, or that die, and what to do about it.

A worker imports the program's main script only if something that is sent to it is defined there. A
hook that cannot be imported is refused before any work; an unguarded script shows only when it
fails.
"""

import io
import pickle
import signal
import sys
from collections.abc import Sequence
from multiprocessing import process
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from paraload.core.tasks import ReadTask
from paraload.errors import HookNotPicklableError, InvalidOptionError, WorkerDiedError
from paraload.executors.processes.pools import EndedWorker
from paraload.workers.read_context import ReadContext

#: The main module, and its name in a process that multiprocessing has started.
_MAIN: Final = frozenset({"__main__", "__mp_main__"})
#: How the file names of functions begin that were typed into a session.
_TYPED: Final = ("<stdin>", "<ipython-input", "<python-input")
_FEWER: Final = (
    "Was it killed for lack of memory (see dmesg)? A smaller memory_budget_bytes, fewer max_workers"
    " or executor='threads' needs less"
)
_ELSEWHERE: Final = "executor='threads' needs no worker processes"


def require_startable(context: ReadContext) -> None:
    """Refuse what cannot be sent to a worker process.

    Raises:
        HookNotPicklableError: a hook cannot be pickled, or a worker cannot import it.
        InvalidOptionError: this process is itself a worker that is starting.
    """
    if getattr(process.current_process(), "_inheriting", False):
        raise InvalidOptionError(
            "this load was called while a worker process imports the main script; put the script's"
            " code under `if __name__ == '__main__':`, or use executor='threads'"
        )
    for name, hook in context.hooks.items():
        _require_picklable(hook, f"{name}={hook!r}", "define it at the top level of a module, or ")
    _require_picklable(context, "a stream transform or the storage")


def _require_picklable(value: Any, what: str, cure: str = "") -> None:
    try:
        in_main = defined_in_main(value)
    except Exception as error:
        raise HookNotPicklableError(
            f"{what} cannot be pickled for a worker process ({error}); {cure}use executor='threads'"
        ) from error
    if in_main and (where := _session_of(in_main)):
        raise HookNotPicklableError(
            f"{what} is defined in {where}, which a worker process cannot import; move it into a"
            " module of its own, or use executor='threads'"
        )


def defined_in_main(value: Any) -> list[Any]:
    """Functions and classes of the main script, which a worker has to import for ``value``."""
    found: list[Any] = []

    class Finder(pickle.Pickler):
        def persistent_id(self, obj: Any) -> None:
            if isinstance(obj, FunctionType | type) and obj.__module__ in _MAIN:
                found.append(obj)

    Finder(io.BytesIO(), pickle.HIGHEST_PROTOCOL).dump(value)
    return found


def _session_of(objects: Sequence[Any]) -> str:
    """What defines ``objects`` if no new process can import it; "" for an importable main script.

    The rules are those of ``multiprocessing.spawn``.
    """
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "")
    if name == "__main__" or name.endswith(".__main__"):
        return f"the main module of a package ({name})"
    has_file = name or Path(getattr(main, "__file__", None) or "").is_file()
    if not has_file or any(map(_is_typed, objects)):
        return "an interactive session, a notebook or a script without a file (python -c)"
    return ""


def _is_typed(defined: Any) -> bool:
    functions = vars(defined).values() if isinstance(defined, type) else [defined]
    codes = (getattr(function, "__code__", None) for function in functions)
    return any(code is not None and code.co_filename.startswith(_TYPED) for code in codes)


def worker_died(
    tasks: Sequence[ReadTask],
    ended: Sequence[EndedWorker],
    context: ReadContext,
    *,
    is_starting: bool,
) -> WorkerDiedError:
    """The error for tasks that were lost with their worker.

    ``ended`` is empty if it is not known how; ``is_starting``: no worker has run a task yet.
    """
    lost = "; ".join(f"{task.path!r} bytes [{task.start}, {task.end})" for task in tasks)
    when = "starting, so these were not read" if is_starting else "these were being read"
    how = "; ".join(map(str, ended)) or "How it ended is unknown"
    hint = _hint(ended[0].exitcode, context, is_starting=is_starting) if ended else _FEWER
    return WorkerDiedError(f"a worker process died while {when}: {lost}. {how}. {hint}")


def _hint(exitcode: int, context: ReadContext, *, is_starting: bool) -> str:
    if exitcode == -signal.SIGKILL:
        return _FEWER
    if exitcode == -signal.SIGBUS:
        return f"Is shared memory (/dev/shm) full? {_ELSEWHERE}"
    if exitcode < 0:
        return f"A library or a hook crashed, or another program ended the worker. {_ELSEWHERE}"
    if not is_starting:
        return f"Did a hook end the process? {_ELSEWHERE}"
    see = "Its own error message is on standard error"
    hooks = " and ".join(f"{name}=" for name in context.hooks)
    if defined_in_main(context):
        return (
            f"It had to import the main script, where {hooks or 'a transform'} is defined. {see}."
            " Put the script's code under `if __name__ == '__main__':`, or move the hook into a"
            " module of its own, or use executor='threads'"
        )
    question = f" Can a new process import {hooks}?" if hooks else ""
    return f"{see}.{question} {_ELSEWHERE}"
