"""``paraload run SCRIPT ...``: run a program whose checkpoints are read through paraload."""

import argparse
import os
import pkgutil
import sys
from io import open_code
from pathlib import Path
from runpy import _run_module_as_main  # type: ignore[attr-defined] # what `python -m` calls
from types import ModuleType
from typing import Any

from paraload.cli._arguments import UsageError
from paraload.options import INSTALL_VARIABLE, ReadOptions


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        usage="paraload run [-h] (SCRIPT | -m MODULE) [ARGUMENT ...]",
        help="run a program, unchanged, that loads through paraload",
        description="Run a Python program as python would. All its loads with torch's readers go"
        " through paraload, those in child processes too. Environment variables set options, such"
        " as PARALOAD_MAX_WORKERS=8 and PARALOAD_PROGRESS=1; README.md lists them.",
        epilog="Under torchrun: torchrun -m paraload run SCRIPT ...",
    )
    parser.add_argument(
        "-m",
        dest="module",
        metavar="MODULE",
        nargs=argparse.REMAINDER,
        help="the module to run, and its arguments",
    )
    parser.add_argument(
        "program",
        metavar="SCRIPT",
        nargs=argparse.REMAINDER,
        help="the script to run; all that follows are its arguments",
    )


def program_of(arguments: argparse.Namespace) -> "Program":
    words = arguments.program if arguments.module is None else arguments.module
    if not words:
        raise UsageError("run: name a script, or a module after -m")
    if arguments.module is None and not Path(words[0]).exists():
        raise UsageError(f"{words[0]}: no such file")
    ReadOptions.resolve()  # a wrong variable is an error now, not when the program imports DCP
    return Program(words, is_module=arguments.module is not None)


class Program:
    """A program to run as ``__main__``, outside of our own handling of errors and signals."""

    def __init__(self, words: list[str], *, is_module: bool) -> None:
        self._words = words
        self._is_module = is_module

    def run(self) -> None:
        from paraload.adapters.dcp import startup  # noqa: PLC0415

        os.environ[INSTALL_VARIABLE] = "1"  # for child processes
        startup.install_when_imported()
        name = self._words[0]
        sys.argv[:] = self._words
        # It stays, as python's does: threads and exit handlers that outlive the program may pickle
        # its classes. runpy.run_path and run_module would put ours back.
        main = sys.modules["__main__"] = ModuleType("__main__")
        if not sys.flags.safe_path:
            # python puts there the folder of the script, or for a module the current one.
            script_folder = str(Path(name).resolve().parent)
            sys.path[0] = str(Path.cwd()) if self._is_module else script_folder
        if self._is_module:
            _run_module_as_main(name)
        elif pkgutil.get_importer(name) is not None:  # a folder or a zip file
            sys.path.insert(0, name)
            _run_module_as_main("__main__", False)  # noqa: FBT003 - argv stays
        else:
            # Absolute, as python makes it: a program that changes its folder uses __file__.
            main.__file__ = str(Path(name).absolute())
            with open_code(main.__file__) as file:
                code = compile(file.read(), main.__file__, "exec", dont_inherit=True)
            exec(code, vars(main))  # noqa: S102 - the program
