"""Every Python and shell block of the README and the guide runs unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration import support
from tests.old_torch import HF_READER

ROOT = Path(__file__).parents[2]

NEEDS_HF_READER = "QuantizedHuggingFaceStorageReader"

#: What stands before every shell block. The targets of the Makefile are run by people and by CI;
#: here it is enough that make knows them and what they would do.
PRELUDE = f"""
set -euo pipefail
export PATH={Path(sys.executable).parent}:$PATH
make() {{ command make --dry-run --directory {ROOT} "$@"; }}
"""


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return support.save("ckpt/step-1000", {"w": torch.randn(300, 700), "small": torch.ones(3)})


@pytest.mark.parametrize(
    ("name", "count"),
    [("README.md", 3), ("PARALLEL_READ_DATA_GUIDE.md", 22), ("SECURITY.md", 1)],
)
def test_the_blocks_of_a_text_run_one_after_the_other(name, count, saved):
    found = blocks(name, "python")
    assert len(found) == count
    names = {"state_dict": {}}
    late = [block for block in found if NEEDS_HF_READER in block and not HF_READER.is_here]
    for block in found:
        if block in late:
            continue
        names["state_dict"] = support.empty_like(saved)
        exec(compile(block, name, "exec"), names)
        if "state_dict" in block:
            support.assert_same(names["state_dict"], saved)
    if late:  # after all the others ran
        HF_READER.require()


@pytest.mark.parametrize(("name", "count"), [("README.md", 2), ("PARALLEL_READ_DATA_GUIDE.md", 4)])
def test_the_shell_blocks_of_a_text_run(name, count, saved):
    found = blocks(name, "sh")
    assert len(found) == count
    for block in found:
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        ran = subprocess.run(
            ["bash", "-c", PRELUDE + block],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"


def test_every_block_is_of_a_known_kind():
    for name in ("README.md", "PARALLEL_READ_DATA_GUIDE.md"):
        languages = set(re.findall(r"^```(\w*)$", (ROOT / name).read_text(), re.MULTILINE)) - {""}
        assert languages <= {"python", "sh"}
