"""Ways of running read tasks, by the names of the ``executor=`` option."""

from __future__ import annotations

from paraload.errors import InvalidOptionError
from paraload.executors.base import ReadExecutor
from paraload.executors.ramp import RampLimits

__all__ = ["make_executor"]


def make_executor(
    name: str, *, workers: int, slot_bytes: int, ramp: RampLimits | None = None
) -> ReadExecutor:
    """The executor called ``name``. The process ones are imported when they are wanted.

    Args:
        name: as the option has it.
        workers: how many.
        slot_bytes: of shared memory, for those that need it.
        ramp: threads find out how many of them there should be.
    """
    match name:
        case "sequential":
            from paraload.executors.sequential import SequentialExecutor  # noqa: PLC0415

            return SequentialExecutor()
        case "threads":
            from paraload.executors.threads import ThreadExecutor  # noqa: PLC0415

            return ThreadExecutor(workers, ramp)
        case "processes" | "pool":
            from paraload.executors.processes.executor import ProcessExecutor  # noqa: PLC0415

            return ProcessExecutor(name, workers, slot_bytes)
        case _:
            raise InvalidOptionError(f"no executor is called {name!r}")
