"""An environment with another torch: ``environment.py VERSION FOLDER``.

    torch alone --> pinned packages --> the project --> import torch
                                                           | libraries missing
                                                           v
                                                       stand-ins

The suite needs no GPU. So torch is installed without its dependencies, of which CUDA's libraries
are 3 GB, and a wheel built for CUDA gets stand-ins for them (``without_cuda``). A wheel for the CPU
needs none; pip's own settings, such as PIP_INDEX_URL, decide which wheel it is. All other packages
have the versions of ``constraints.txt``. Any failure is an error: a version that cannot be
installed was not tested.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).parents[2]
#: Not of the suite: torch itself, and what has wheels for some versions of Python only.
NOT_PINNED = ("torch", "atheris")
#: torch imports it, but lists it as a dependency for some versions of Python only.
ADDED = ("setuptools>=77",)
#: What the stand-ins are made with.
FOR_STAND_INS = ("pyelftools",)


def make(version: str, folder: Path) -> None:
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    pins = folder / "constraints.txt"
    pins.write_text("".join(pinned((REPOSITORY / "constraints.txt").read_text())))
    # Constraints of the machine may name another torch; these are the ones that count.
    environment = os.environ | {"PIP_CONSTRAINT": str(pins)}
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Compiling all modules of torch takes longer than the tests that use a few of them.
    run(*pip, "--no-deps", "--no-compile", f"torch=={version}", env=environment)
    run(*pip, "--no-deps", "--requirement", pins, env=environment)
    run(*pip, *ADDED, env=environment)
    run(*pip, "--no-deps", "--editable", REPOSITORY, env=environment)
    if missing := missing_library(python):
        print(f"torch {version} is built for CUDA, and {missing} is not here: making stand-ins")
        run(*pip, *FOR_STAND_INS, env=environment)
        run(python, Path(__file__).with_name("without_cuda.py"))
    run(python, "-c", "import torch; print('torch', torch.__version__)")


def pinned(constraints: str) -> Sequence[str]:
    lines = constraints.splitlines(keepends=True)
    return [line for line in lines if line.partition("==")[0] not in NOT_PINNED]


def missing_library(python: Path) -> str | None:
    """The first library that ``import torch`` does not find; ``None`` if it works.

    Raises:
        RuntimeError: it fails for another reason.
    """
    command = [str(python), "-c", "import torch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if found := re.search(r"(lib\S+\.so\S*): cannot open shared object file", done.stderr):
        return found[1]
    if found := re.search(r"ValueError: (lib\S+) not found in the system path", done.stderr):
        return found[1]
    raise RuntimeError(done.stderr)


def run(*command: object, env: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, env=env)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
