"""Names from files are escaped on terminals, and never crash a command."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp

from paraload._text import counted, printable, printable_lines, sentence, with_hint
from paraload.cli._output import Table
from tests.integration.support import rewritten

#: What a terminal obeys or hides, what cannot be encoded, and rich's markup.
NAMES = [
    "a\x1b[31mred",
    "b\nline\rover",
    "c\u202eltr\u200b",
    "d\udc80surrogate",
    "e\x9b2J\x07",
    "grün.層.🙂",
    "[red]x[/red]",
    "[/]",
    "m[0]",
    ":smile:",
]
SHOWN = [
    r"a\x1b[31mred",
    r"b\nline\rover",
    r"c\u202eltr\u200b",
    r"d\udc80surrogate",
    r"e\x9b2J\x07",
    *NAMES[5:],
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A checkpoint with such names of tensors; one of its files is missing."""
    folder = tmp_path_factory.mktemp("odd") / "ckpt"
    state = {f"t{n}": torch.ones(3) for n in range(len(NAMES))}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, thread_count=2), no_dist=True)
    with rewritten(folder) as metadata:
        new = {f"t{n}": name for n, name in enumerate(NAMES)}
        entries = metadata.state_dict_metadata
        metadata.state_dict_metadata = {new[old]: entry for old, entry in entries.items()}
        infos = metadata.storage_data
        metadata.storage_data = {
            type(index)(new[index.fqn], index.offset, index.index): info
            for index, info in infos.items()
        }
        for number, info in enumerate(metadata.storage_data.values()):
            if number % 2:
                info.relative_path = "gone\x1b[2J\n.distcp"
    return folder


def run(*argv, encoding="utf-8", **environment):
    done = subprocess.run(
        [sys.executable, "-m", "paraload", *map(str, argv)],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


def run_on_a_terminal(*argv, columns=300):
    """The same under a pseudo-terminal; what a person would see, and what the terminal obeys."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "paraload", *map(str, argv)],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"},
    )
    os.close(follower)
    data = b""
    try:
        while block := os.read(leader, 1 << 16):
            data += block
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    return process.wait(timeout=60), data.decode()


def only_lines(text):
    """Whether nothing but line breaks would be obeyed."""
    return text.replace("\n", "").isprintable()


@pytest.mark.parametrize("command", ["inspect", "verify", "load"])
def test_no_command_lets_a_name_reach_the_terminal(odd, command):
    status, out, err = run(command, odd)
    assert status == 1
    assert "Traceback" not in err
    assert only_lines(out)
    assert only_lines(err)
    assert r"gone\x1b[2J\n.distcp" in out + err
    if command == "inspect":
        assert [name for name in SHOWN if name not in out] == []


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_terminal_sees_names_as_they_are_and_obeys_none(odd, command):
    status, text = run_on_a_terminal(command, odd)
    assert status == 1
    assert "─" in text, "drawn by rich"
    for name in ("\x1b[31mred", "\x1b[2J\n", "\u202e", "\x9b", "\x07"):
        assert name not in text
    if command == "inspect":
        assert [name for name in SHOWN if name not in text] == []


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ("load", {"PYTHONIOENCODING": "ascii"}),
        ("inspect", {"PYTHONIOENCODING": "ascii"}),
        ("inspect", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_an_output_that_cannot_encode_a_name_prints_no_traceback(odd, command, environment):
    status, out, err = run(command, odd, encoding="latin-1", **environment)
    assert status == 1
    assert "Traceback" not in err
    if command == "inspect":
        assert r"\u5c64.\U0001f642" in out


def test_json_goes_through_any_output(odd):
    import json

    status, out, _ = run("inspect", odd, "--json", "-", PYTHONIOENCODING="ascii")
    assert status == 1
    assert {entry["name"] for entry in json.loads(out)["entries"]} == set(NAMES)


@pytest.mark.parametrize("closed", ["1", "1 2"])
def test_a_closed_output_prints_no_traceback(odd, tmp_path, closed):
    gone = " ".join(f"{number}>&-" for number in closed.split())
    command = f'"{sys.executable}" -m paraload inspect "{odd}" {gone}'
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("command", [["inspect"], ["load"]])
def test_an_output_that_cannot_be_written_is_not_a_bad_checkpoint(odd, command):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "paraload", *command, str(odd)],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    if command == ["load"]:  # which prints nothing, but its error
        assert done.returncode == 1
        return
    assert done.returncode == 2
    assert done.stderr == b"paraload: standard output: No space left on device\n"


def test_a_narrow_terminal_shows_all_names(odd):
    status, text = run_on_a_terminal("inspect", odd, columns=20)
    assert status == 1
    assert [name for name in SHOWN if name not in text] == []
    assert text.count("12 B") == len(NAMES)


def test_the_path_of_the_call_may_be_odd_too(tmp_path):
    folder = tmp_path / "x\x1b[31m\udcff[b]$a_b$"
    status, _, err = run("inspect", folder)
    assert status == 2
    assert r"x\x1b[31m\udcff[b]$a_b$: no such folder" in err


def test_cells_and_titles_are_escaped():
    table = Table(title="a\x1b", head=("x",), rows=[("b\n\x1b",)], numeric=frozenset())
    assert table.plain() == "a\\x1b:\n  x\n  b\\n\\x1b"


def test_words():
    assert [counted(n, "item") for n in (0, 1, 2)] == ["0 items", "1 item", "2 items"]
    assert [sentence(text) for text in ("a", "a.", "a?", "a!")] == ["a.", "a.", "a?", "a!"]
    assert with_hint("a", None) == with_hint("a", "") == "a"
    assert printable("grün 層") == "grün 層"
    assert printable_lines("a\r\nb\x85") == "a\\r\nb\\x85"
