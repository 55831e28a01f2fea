"""Worker processes that cannot start, or that die: the error says what happened and what to do."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest
import torch

import paraload
from paraload import ParallelFileSystemReader
from paraload.errors import HookNotPicklableError, InvalidOptionError, WorkerDiedError
from paraload.testing import leaked, resources
from tests.integration import hooks, support

PROCESSES = ["processes", "pool"]

SCRIPT = """
import functools, sys, warnings
warnings.simplefilter("ignore")
import paraload, torch

def hook(read_item, transform_descriptors, stream):
    return stream

class Hook:
    def __call__(self, read_item, transform_descriptors, stream):
        return stream

def load(transform, executor):
    state = {f"w{n}": torch.zeros(300, 700) for n in range(4)}
    try:
        paraload.load(state, FOLDER, no_dist=True, executor=executor, max_workers=2,
                      transform=transform)
    except paraload.errors.HookNotPicklableError as error:
        print("refused:", error)
        return
    print("right" if all((value == 1).all() for value in state.values()) else "wrong")
"""

#: Every kind of hook with every kind of worker process.
ALL = "[load(x, e) for x in (hook, functools.partial(hook), Hook()) for e in ('processes', 'pool')]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dying") / "ckpt"
    support.save(path, {f"w{n}": torch.ones(300, 700) for n in range(4)})
    return path


def script(folder, *lines):
    return "\n".join([SCRIPT.replace("FOLDER", repr(str(folder))), *lines, ""])


def run(*argv, text=None):
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, *map(str, argv)],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - started_s < 40
    return done


@pytest.mark.parametrize("executor", PROCESSES)
def test_the_error_of_an_unguarded_script_says_how_to_guard_it(tmp_path, folder, executor):
    path = tmp_path / "train.py"
    path.write_text(script(folder, f"load(hook, {executor!r})"))
    done = run(path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("paraload.errors.WorkerDiedError: a worker process died while starting")
    assert "ended with exit code 1" in last
    assert "main script, where transform= is defined" in last
    assert "if __name__ == '__main__':" in last
    assert "executor='threads'" in last
    assert "memory" not in last
    assert "while a worker process imports the main script" in done.stderr


def test_a_guarded_script_may_have_hooks_of_its_own(tmp_path, folder):
    path = tmp_path / "train.py"
    path.write_text(
        script(
            folder,
            "if __name__ == '__main__':",
            "    load(hook, 'pool')",
            *(f"    load({hook}, 'processes')" for hook in ("functools.partial(hook)", "Hook()")),
        )
    )
    done = run(path)
    assert (done.returncode, done.stdout) == (0, "right\n" * 3), done.stderr


@pytest.mark.parametrize("executor", PROCESSES)
def test_a_hook_that_only_the_guarded_part_defines_dies_while_starting(tmp_path, folder, executor):
    path = tmp_path / "train.py"
    lines = ["if __name__ == '__main__':", "    def hook(a, b, stream): return stream", "    load"]
    body = script(folder, *lines).replace("def hook(read_item", "def other(read_item")
    path.write_text(body.rstrip() + f"(hook, {executor!r})\n")
    last = run(path).stderr.splitlines()[-1]
    assert "died while starting" in last
    assert "move the hook into a module" in last


def typed(text):
    """The text as typed into an interpreter: an empty line ends a block."""
    return re.sub(r"\n(?=\S)", "\n\n", text.replace("\n\n", "\n"))


@pytest.mark.parametrize("way", ["-c", "stdin", "interactive", "after a script", "package"])
def test_a_hook_that_no_worker_can_import_is_refused_before_any_work(tmp_path, folder, way):
    text = script(folder, f"_ = {ALL}")
    if way == "-c":
        done = run("-c", text)
    elif way == "stdin":
        done = run("-", text=text)
    elif way == "interactive":
        done = run("-i", "-q", text=typed(text))
    elif way == "after a script":
        path = tmp_path / "before.py"
        path.write_text("import os\n")
        done = run("-i", path, text=typed(text))
    else:
        package = tmp_path / "package"
        package.mkdir()
        (package / "__main__.py").write_text(text)
        done = run(package)
    refused = done.stdout.splitlines()
    assert len(refused) == 6, done
    for line in refused:
        assert line.startswith("refused: transform=")
        assert "which a worker process cannot import; move it into a module" in line
    assert "died" not in done.stderr


@pytest.mark.parametrize("executor", PROCESSES)
@pytest.mark.parametrize(
    ("hook", "how", "hint"),
    [
        (hooks.kill_worker, "SIGKILL", "lack of memory"),
        (hooks.crash_worker, "SIGSEGV", "crashed"),
        (hooks.exit_worker, "exit code 3", "Did a hook end the process"),
    ],
)
def test_a_worker_that_dies_says_how_and_blames_memory_only_for_a_kill(
    folder, executor, hook, how, hint
):
    before = resources()
    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2, slice_file=hook)
    state = {f"w{n}": torch.zeros(300, 700) for n in range(4)}
    plan, planner = support.plan_for(reader, state)
    with pytest.raises(WorkerDiedError) as caught:
        reader.read_data(plan, planner)
    text = str(caught.value)
    assert f"ended with {how}" in text
    assert hint in text
    assert "while these were being read: '__0_" in text
    assert ("memory (see dmesg)" in text) == (how == "SIGKILL")
    assert "starting" not in text
    assert leaked(before, grace_s=5) == []


@pytest.mark.parametrize("executor", PROCESSES)
def test_a_lambda_and_a_local_function_are_refused_before_any_work(folder, executor):
    def local(read_item, transform_descriptors, stream):
        return stream

    for hook in (local, lambda *arguments: arguments[-1]):
        with pytest.raises(HookNotPicklableError, match="cannot be pickled") as caught:
            paraload.load(
                {f"w{n}": torch.zeros(300, 700) for n in range(4)},
                folder,
                no_dist=True,
                executor=executor,
                max_workers=2,
                transform=hook,
            )
        assert isinstance(caught.value, InvalidOptionError)
        assert not isinstance(caught.value, paraload.CheckpointReadError)
