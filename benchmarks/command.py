"""What the commands here have in common: arguments, the machine, figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["count", "machine", "machine_text", "quiet_torch", "write_json"]


def quiet_torch() -> None:
    """Silence torch's warnings about what is intended here."""
    # Without a process group.
    warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)


def count(text: str) -> int:
    """The value of ``--rounds``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds")
    return int(text)


def machine() -> dict[str, Any]:
    """Where the figures are from."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def machine_text() -> str:
    """The same as a line."""
    return "{cores} cores, Python {python}, torch {torch}".format(**machine())


def write_json(target: str, content: Mapping[str, Any]) -> None:
    """Write figures into a file; ``-`` is standard output."""
    text = json.dumps(content, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")
