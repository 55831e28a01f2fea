"""Runs a function in several processes that form a process group."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import torch.distributed as dist
import tests.old_torch
module, name, folder, rank, world = sys.argv[1:]
function = getattr(__import__(module, fromlist=[name]), name)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meet-{name}", rank=int(rank), world_size=int(world)
)
answer = function(folder)
dist.barrier()
print(json.dumps(answer), flush=True)
# Threads of gloo sometimes abort the exit of the interpreter, and destroy_process_group() of torch
# 2.6 sometimes waits for ever.
os._exit(0)
"""


def run_ranks(function, folder, *, world=2):
    """What ``function(str(folder))`` returned on each rank."""
    words = [function.__module__, function.__name__, str(folder)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, *words, str(rank), str(world)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    answers = []
    for child in children:
        out, err = child.communicate(timeout=100)
        assert child.returncode == 0, err
        answers.append(json.loads(out.splitlines()[-1]))
    return answers
