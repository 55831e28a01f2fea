"""The examples for several ranks run under torchrun, as their docstrings say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.old_torch import FSDP2_ON_CPU

REPOSITORY = Path(__file__).parents[2]
LOSSES = re.compile(r"step (\d+), losses of the ranks (.+)")


def torchrun(example, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", f"examples/{example}", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    # Threads of gloo sometimes abort the exit of the interpreter.
    is_gloos = "terminate called without an active exception" in done.stderr
    assert done.returncode == 0 or is_gloos, done.stderr
    return done.stdout, done.stderr


def losses(text):
    return dict(LOSSES.findall(text))


@FSDP2_ON_CPU.needed
def test_training_resumes_from_the_newest_checkpoint_that_can_be_read(tmp_path):
    out, _ = torchrun("resume.py", tmp_path, "--steps", 4)
    before, _, _ = out.partition("starting anew\n")
    # torch 2.8 prints lines of gloo, of both ranks at once.
    assert all("[Gloo]" in line or "peer ranks" in line for line in before.splitlines())
    assert out.startswith(f"{before}starting anew\n")
    first = losses(out)
    assert list(first) == ["1", "2", "3", "4"]
    newest = next((tmp_path / "step-000004").glob("__1_*.distcp"))
    newest.write_bytes(newest.read_bytes()[:-3000])
    out, err = torchrun("resume.py", tmp_path, "--steps", 4)
    assert out.count("could not load the checkpoint") == 1
    assert "resumed from step-000002\n" in out
    # Model, optimizer, scheduler and data are where they were, on both ranks.
    assert losses(out) == {step: first[step] for step in ("3", "4")}
    assert err.count("paraload: loading checkpoint: ") == 2, "one rank, two loads"


def test_a_new_model_starts_from_a_part_of_a_checkpoint():
    out, _ = torchrun("warm_start.py")
    assert out.count("MissingKeyError: 'classes.") == 2
    assert "nothing was read, and the targets are as they were" in out
    assert out.count("2 tensors loaded; body as saved: True; head untouched: True\n") == 2
