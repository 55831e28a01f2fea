"""Every Python block of the README and the guide runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.integration import support

ROOT = Path(__file__).parents[2]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize(("name", "count"), [("README.md", 3), ("PARALLEL_READ_DATA_GUIDE.md", 9)])
def test_the_blocks_of_a_text_run_one_after_the_other(name, count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = support.save("ckpt/step-1000", {"w": torch.randn(300, 700), "small": torch.ones(3)})
    found = blocks(name)
    assert len(found) == count
    names = {"state_dict": {}}
    for block in found:
        names["state_dict"] = support.empty_like(saved)
        exec(compile(block, name, "exec"), names)
        if "state_dict" in block:
            support.assert_same(names["state_dict"], saved)
