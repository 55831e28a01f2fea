"""The command line: ``paraload inspect|verify|load|bench PATH``, ``paraload run SCRIPT``.

Exit status: 0 success; 1 the checkpoint is bad; 2 usage error; 130 stopped with Ctrl-C.
``run`` has the exit status of the program.

Each command has a module with ``add_parser(commands)``, which imports torch only when it runs:
``--help``, ``--version`` and a mistyped option are answered at once.
"""

import argparse
import sys
from collections.abc import Sequence

from paraload import __version__
from paraload.cli import bench, inspect, load, run, verify
from paraload.cli._arguments import UsageError
from paraload.cli._output import discard_output, prepare_streams, printing, warn
from paraload.errors import CheckpointReadError, InvalidOptionError
from paraload.runtime.interrupts import stopped_by_signals

_BAD_CHECKPOINT, _BAD_CALL = 1, 2
#: The exit status that a shell reports for SIGINT and SIGPIPE.
_INTERRUPTED, _BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``argv``, by default that of the process; returns the exit status.

    Raises:
        SystemExit: from argparse: help, version, or a usage error.
        BaseException: from the program of ``paraload run``.
    """
    answer = _command(argv)
    if isinstance(answer, int):
        return answer
    answer.run()  # outside _command, which would handle its errors and signals
    return 0


@stopped_by_signals
def _command(argv: Sequence[str] | None) -> int | run.Program:
    try:
        arguments = _parser().parse_args(argv)
        if hasattr(arguments, "program"):
            return run.program_of(arguments)
        prepare_streams()
        status: int = arguments.run(arguments)
        if sys.stdout is not None:  # None if the shell has closed it
            with printing():
                sys.stdout.flush()  # so that a closed pipe fails here
    except (UsageError, InvalidOptionError) as error:
        status = _BAD_CALL
        warn(f"paraload: {error}")
    except CheckpointReadError as error:
        status = _BAD_CHECKPOINT
        warn(f"paraload: {error}")
    except KeyboardInterrupt:
        status = _INTERRUPTED
        warn("paraload: interrupted")
    except BrokenPipeError:
        status = _BROKEN_PIPE
        discard_output()  # `paraload inspect PATH | head`
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paraload",
        description="Look at PyTorch Distributed Checkpoints, and read them in parallel.",
        epilog="Exit status: 0 success, 1 the checkpoint is bad, 2 usage error.",
    )
    parser.add_argument("--version", action="version", version=f"paraload {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (inspect, verify, load, bench, run):
        command.add_parser(commands)
    return parser
