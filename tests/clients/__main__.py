"""``python -m tests.clients``: load with real training libraries, and write ``docs/clients.md``."""

from __future__ import annotations

import argparse
import ast
import json
import os
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from paraload._text import counted

PROGRAMS = Path(__file__).parent / "programs"
#: How long one client may take, in seconds; most take ten.
PATIENCE_S = 300

PAGE = """# Programs that load through paraload

`make test-clients` wrote this page, with Python {python}, torch {torch} and the packages of
`tests/clients/requirements.txt`, on a machine without a GPU. Each client saves a small checkpoint
and loads it with its own code, which knows nothing of paraload: first with torch's readers, then
after `paraload.install()`. Both must give the same bits, a report must show that paraload read
them, and `paraload.uninstall()` must restore every attribute of every reader class.

{table}

"unchanged script too": started on each rank by `python -m paraload run`, with the environment that
torchrun sets, the same program logs that paraload read, and loads the same bits as without it.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("--write", metavar="FILE", type=Path, help="the document to write")
    parser.add_argument("--only", default="", help="clients whose names have this in them")
    given = parser.parse_args()
    rows = []
    for path in sorted(PROGRAMS.glob("[!_]*.py")):
        if given.only in path.stem:
            rows.append(row_of(path))
            print(*rows[-1][:-1], rows[-1][-1], sep=" | ", flush=True)
    if given.write is not None:
        head = ("client", "version", "what it does", "ranks", "read by paraload", "result")
        lines = [head, ("---",) * len(head), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        python = ".".join(map(str, sys.version_info[:2]))
        page = PAGE.format(python=python, torch=version("torch").partition("+")[0], table=table)
        given.write.write_text(page, encoding="utf-8")
    return int(not all(row[-1].startswith("same bits") for row in rows))


def row_of(path):
    """Package, version, what the program does, ranks, what the reports say, the result."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package, ranks = _constants(tree)
    what = ast.get_docstring(tree).partition(": ")[2].partition("\n\n")[0]
    what = what.rstrip(".").replace("``", "`").replace("\n", " ")
    try:
        found = version(package)
    except PackageNotFoundError:
        return package, "", what, str(ranks), "", "**not installed**"
    with tempfile.TemporaryDirectory() as folder:
        answers, problem = _ranks(path.stem, folder, ranks)
        read, result = "", problem
        if not problem:
            items, nbytes, loads = (
                sum(it[key] for it in answers) for key in ("items", "bytes", "loads")
            )
            read = f"{counted(items, 'item')}, {counted(nbytes, 'byte')}, {counted(loads, 'load')}"
            slow = sorted({reason for it in answers for reason in it["slow"]})
            read += f"; slow: {', '.join(slow)}" if slow else ""
            result = _fault(answers) or "same bits"
        if result == "same bits" and "main(save, load)" in path.read_text(encoding="utf-8"):
            problem = _unchanged(path.stem, f"{folder}/whole", ranks)
            result = (
                f"**unchanged script: {problem}**" if problem else "same bits; unchanged script too"
            )
    return package, found, what, str(ranks), read, result


def _constants(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "(PACKAGE, RANKS)":
            return ast.literal_eval(node.value)
    raise ValueError("a program names its PACKAGE and its RANKS")


def _fault(answers):
    for rank, answer in enumerate(answers):
        if answer["differ"]:
            return f"**rank {rank}: other bits: {', '.join(answer['differ'][:3])}**"
        if answer["left"]:
            return f"**rank {rank}: not restored: {', '.join(answer['left'][:3])}**"
        if not answer["values"] or not answer["items"]:
            return f"**rank {rank}: not read by paraload**"
    return ""


def _ranks(name, folder, ranks):
    """The answer of each rank, or a problem."""
    children = [
        _start(["-m", "tests.clients.rank", name, folder], rank, environment)
        for rank, environment in _environments(ranks)
    ]
    answers, problem = [], ""
    for child in children:
        lines, errors = _end(child)
        found = [line for line in lines if line.startswith("answer: ")]
        if not found:
            problem = problem or _problem(errors)
            for other in children:
                other.kill()
            continue
        answers.append(json.loads(found[-1].partition(" ")[2]))
    return answers, problem


def _unchanged(name, folder, ranks):
    """What differs between the script and the script under ``paraload run``."""
    module = f"tests.clients.programs.{name}"
    plain, through = ["-m", module], ["-m", "paraload", "run", "-m", module]
    loaded = []
    for words in ([*plain, "save"], [*plain, "load"], [*through, "load"]):
        children = [
            _start([*words, folder], rank, environment)
            for rank, environment in _environments(ranks)
        ]
        ended = [_end(child) for child in children]
        for _, errors in ended:
            is_ours = "INFO:paraload:" in errors
            if is_ours != (words[1] == "paraload"):
                return _problem(errors) if "Error" in errors else f"read by paraload: {is_ours}"
        loaded.append([line for lines, _ in ended for line in lines if line.startswith("digests:")])
    return "" if loaded[1] == loaded[2] and len(loaded[1]) == ranks else "other bits"


def _environments(ranks):
    """What torchrun would set."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for rank in range(ranks):
        yield (
            rank,
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "GROUP_RANK": "0",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "clients",
                "OMP_NUM_THREADS": "1",
                "ACCELERATE_USE_CPU": "1",
                "WANDB_MODE": "disabled",
                "HF_HUB_OFFLINE": "1",
            },
        )


def _start(words, rank, environment):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(child):
    try:
        out, errors = child.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        out, errors = child.communicate()
        errors += f"\nTimeoutExpired: {PATIENCE_S} s"
    return out.splitlines(), errors


def _problem(errors):
    """The last line of a traceback, for a cell of a table."""
    sys.stderr.write(errors)
    lines = [line for line in errors.splitlines() if "Error" in line or "Timeout" in line]
    return f"**{(lines or ['no answer'])[-1].strip()[:200]}**".replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
