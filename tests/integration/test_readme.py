"""Every Python block of the README runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.integration import support

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = support.save("ckpt/step-1000", {"w": torch.randn(300, 300)})
    state_dict = support.empty_like(saved)
    exec(compile(block, "README.md", "exec"), {"state_dict": state_dict})
    if "state_dict" in block:
        support.assert_same(state_dict, saved)


def test_there_are_blocks():
    assert len(BLOCKS) == 3
