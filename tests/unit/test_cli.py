"""The command line: what it prints, the JSON it writes, and every exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp

import paraload
from paraload import cli
from paraload.cli import main
from paraload.cli._output import Table, show_tables


def save(folder):
    generator = torch.Generator().manual_seed(0)
    state = {
        "model": {
            "wide": torch.randn(64, 64, generator=generator),
            "narrow": torch.randn(16, generator=generator).to(torch.bfloat16),
            "steps": torch.tensor(7),
        },
        "trainer": {"epoch": 3, "note": "hello"},
    }
    writer = dcp.FileSystemWriter(folder, thread_count=2)
    dcp.save(state, storage_writer=writer, no_dist=True)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("whole") / "checkpoint")


@pytest.fixture
def mine(tmp_path):
    """A checkpoint of the test's own, to damage."""
    return save(tmp_path / "checkpoint")


def file_of(folder, name):
    storage = dcp.FileSystemReader(folder).read_metadata().storage_data
    (info,) = [info for index, info in storage.items() if index.fqn == name]
    return folder / info.relative_path, info


def call(capsys, *argv):
    status = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err


# ------------------------------------------------------------------------------ all is well: 0


def test_inspect_lists_tensors_objects_and_files(capsys, whole):
    status, out, err = call(capsys, "inspect", whole)
    assert (status, err) == (0, "")
    assert "3 tensors, 16.04 KiB; 2 objects; 2 files" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("  ")}
    assert lines["model.wide"][1:] == ["float32", "64", "x", "64", "16.00", "KiB", "1", "1"]
    assert lines["model.narrow"][1:] == ["bfloat16", "16", "32", "B", "1", "1"]
    assert lines["model.steps"][1:4] == ["int64", "scalar", "8"]
    assert lines["trainer.epoch"][1] == "object"
    assert {"__0_0.distcp", "__0_1.distcp"} < set(lines)


def test_inspect_writes_everything_as_json(capsys, whole):
    status, out, err = call(capsys, "inspect", whole, "--json", "-", "--limit", "1")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert (found["tensors"], found["objects"]) == (3, 2)
    assert found["tensor_bytes"] == 64 * 64 * 4 + 16 * 2 + 8
    assert found["problems"] == []
    entries = {entry["name"]: entry for entry in found["entries"]}
    assert len(entries) == 5
    assert entries["model.wide"] == {
        "name": "model.wide",
        "dtype": "float32",
        "shape": [64, 64],
        "bytes": 16384,
        "chunks": 1,
        "files": 1,
    }
    assert entries["trainer.note"]["shape"] is None
    sizes = [file["bytes"] for file in found["files"]]
    on_disk = [(whole / file["path"]).stat().st_size for file in found["files"]]
    assert [file["bytes_on_disk"] for file in found["files"]] == on_disk
    assert found["file_bytes"] == sum(sizes)
    assert found["balance"] == pytest.approx(max(sizes) / (sum(sizes) / 2))


def test_json_to_a_file_leaves_the_text_to_people(capsys, whole, tmp_path):
    target = tmp_path / "inspect.json"
    _, out, _ = call(capsys, "inspect", whole, "--json", target)
    assert "model.wide" in out
    assert json.loads(target.read_text())["tensors"] == 3


@pytest.mark.parametrize(
    ("options", "first"),
    [((), "model.wide"), (("--sort", "size"), "model.wide"), (("--sort", "name"), "model.narrow")],
)
def test_inspect_sorts_and_limits(capsys, whole, options, first):
    _, out, _ = call(capsys, "inspect", whole, "--limit", "1", *options)
    assert "tensors and objects, 1 of 5 (--limit 0 lists all):" in out
    assert out.splitlines()[-1].split()[0] == first
    _, out, _ = call(capsys, "inspect", whole, "--limit", "0", *options)
    assert "tensors and objects:" in out


@pytest.mark.parametrize(
    ("options", "executor"),
    [
        ((), None),
        (("--workers", "1"), "sequential"),
        (("--executor", "sequential"), "sequential"),
        (("--memory-budget", "2MiB"), None),
        (("--no-verify",), None),
    ],
)
def test_load_reads_everything_and_reports(capsys, whole, options, executor):
    status, out, err = call(capsys, "load", whole, *options)
    assert (status, err) == (0, "")
    assert out.startswith("loaded 5 items")
    status, out, _ = call(capsys, "load", whole, "--json", "-", *options)
    answer = json.loads(out)
    assert status == 0
    assert answer["ok"] is True
    assert answer["report"]["items"] == 5
    assert answer["report"]["bytes_needed"] >= 16424
    assert (answer["report"]["bytes_verified"] == 0) == ("--no-verify" in options)
    assert executor is None or answer["report"]["executor"] == executor


def test_load_writes_a_trace(capsys, whole, tmp_path):
    target = tmp_path / "trace.json"
    status, out, _ = call(capsys, "load", whole, "--trace", target)
    assert status == 0
    assert out.startswith("loaded 5 items")
    slices = [e for e in json.loads(target.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {event["name"] for event in slices} == {"__0_0.distcp", "__0_1.distcp"}


def test_load_does_not_unpickle_objects(capsys, tmp_path):
    target = tmp_path / "ran"
    dcp.save({"w": torch.zeros(2), "bad": Runs(str(target))}, checkpoint_id=tmp_path, no_dist=True)
    status, out, _ = call(capsys, "load", tmp_path)
    assert status == 0
    assert "loaded 2 items" in out
    assert not target.exists()


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


# ---------------------------------------------------------------------- the checkpoint is bad: 1


def cut(folder):
    path, info = file_of(folder, "model.wide")
    os.truncate(path, info.offset + info.length // 2)


def remove(folder):
    file_of(folder, "model.wide")[0].unlink()


def flip(folder):
    path, info = file_of(folder, "model.wide")
    data = bytearray(path.read_bytes())
    data[info.offset + info.length // 2] ^= 1
    path.write_bytes(data)


def remove_metadata(folder):
    (folder / ".metadata").unlink()


def spoil_metadata(folder):
    (folder / ".metadata").write_bytes(b"\x80\x04nonsense")


def replace_metadata(folder):
    (folder / ".metadata").write_bytes(b"\x80\x04}.")  # an empty dict


@pytest.mark.parametrize(
    ("damage", "command", "says"),
    [
        (cut, "load", ["model.wide", ".distcp"]),
        (cut, "inspect", [".distcp", "too short", "expected at least"]),
        (remove, "load", ["model.wide", ".distcp", "MissingFileError"]),
        (remove, "inspect", [".distcp", "missing"]),
        (flip, "load", ["model.wide", ".distcp", "ChecksumMismatchError"]),
        (remove_metadata, "load", [".metadata", "incomplete checkpoint?"]),
        (remove_metadata, "inspect", [".metadata", "incomplete checkpoint?"]),
        (spoil_metadata, "load", [".metadata", "damaged"]),
        (spoil_metadata, "inspect", [".metadata", "damaged"]),
        (replace_metadata, "load", [".metadata", "damaged"]),
        (replace_metadata, "inspect", [".metadata", "damaged"]),
    ],
)
def test_a_bad_checkpoint_ends_with_1_and_says_what_is_bad(capsys, mine, damage, command, says):
    damage(mine)
    status, _, err = call(capsys, command, mine)
    assert status == 1
    assert err.startswith("paraload: ")
    assert [words for words in says if words not in err] == []


def test_a_bad_checkpoint_is_reported_as_json_too(capsys, mine):
    cut(mine)
    status, out, err = call(capsys, "load", mine, "--json", "-")
    answer = json.loads(out)
    assert status == 1
    assert answer["ok"] is False
    assert "model.wide" in answer["error"]
    assert answer["error"] in err
    failure = next(one for one in answer["failures"] if one["name"] == "model.wide")
    assert failure["file"].endswith(".distcp")
    assert failure["end"] > failure["start"] >= 0
    status, out, _ = call(capsys, "inspect", mine, "--json", "-")
    assert status == 1
    assert len(json.loads(out)["problems"]) == 1


# ----------------------------------------------------------------------------- the call is: 2


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "COMMAND"),
        (("explode",), "explode"),
        (("inspect",), "PATH"),
        (("inspect", "{whole}", "--limit", "-1"), "--limit"),
        (("inspect", "{whole}", "--limit", "many"), "many"),
        (("inspect", "{whole}", "--sort", "colour"), "colour"),
        (("load", "{whole}", "--workers", "two"), "two"),
        (("load", "{whole}", "--executor", "magic"), "magic"),
        (("bench", "{whole}", "--workers", "1,100000"), "expected 1024 or less, got 100000"),
    ],
)
def test_argparse_answers_a_wrong_call_with_2(capsys, whole, argv, says):
    with pytest.raises(SystemExit) as ended:
        main([word.format(whole=whole) for word in argv])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("inspect", "{whole}/not-there"), "no such folder"),
        (("load", "{whole}/not-there"), "no such folder"),
        (("load", "{whole}/.metadata"), "neither a folder nor"),
        (("load", "s3://bucket/checkpoint", "--storage", "no_such=1"), "no_such"),
        (("load", "{whole}", "--workers", "0"), "max_workers"),
        (("load", "{whole}", "--workers", "-5"), "max_workers"),
        (("load", "{whole}", "--workers", "100000"), "max_workers=100000: expected 1024 or less"),
        (("verify", "{whole}", "--workers", "100000"), "max_workers=100000: expected 1024 or less"),
        (("load", "{whole}", "--memory-budget", "some"), "some"),
        (("load", "{whole}", "--memory-budget", "1"), "memory_budget_bytes"),
        (("load", "{whole}", "--json", "{whole}/not-there/report.json"), "does not exist"),
        (("inspect", "{whole}", "--json", "{whole}"), "is a folder"),
        (("load", "{whole}", "--trace", "{whole}"), "--trace"),
        (("load", "{whole}", "--trace", "{whole}/not-there/out.json"), "does not exist"),
        (("load", "{whole}", "--trace", "-"), "name a file"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_why(capsys, whole, argv, says):
    status, out, err = call(capsys, *(word.format(whole=whole) for word in argv))
    assert (status, out) == (2, "")
    assert err.startswith("paraload: ")
    assert says in err


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


class Gone(io.StringIO):
    """A terminal that is not there any more."""

    def isatty(self):
        return True

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [lambda: None, closed, Gone, object])
def test_commands_need_no_standard_error(capsys, whole, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    for command in ("load", "verify", "inspect"):
        assert main([command, str(whole)]) == 0
    assert main(["load", str(whole / "not-there")]) == 2
    out = capsys.readouterr().out
    assert "loaded 5 items" in out
    assert "not-there" not in out


def test_commands_need_no_standard_output(whole):
    command = "exec >&- 2>&-; exec {} -m paraload load {}"
    for path, status in ((whole, 0), (whole / "not-there", 2)):
        line = command.format(sys.executable, path)
        assert subprocess.run(line, shell=True, check=False).returncode == status


def test_a_checkpoint_that_does_not_fit_is_not_begun(capsys, whole, monkeypatch):
    monkeypatch.setattr("paraload.cli._checkpoint.available_memory_bytes", lambda: 1 << 10)
    status, _, err = call(capsys, "load", whole)
    assert status == 2
    assert "takes 16.04 KiB of memory, and 1.00 KiB are free" in err


# ------------------------------------------------------------------------------ and the rest


def test_ctrl_c_ends_with_130(capsys, whole, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(paraload.ParallelFileSystemReader, "read_data", interrupt)
    assert call(capsys, "load", whole) == (130, "", "paraload: interrupted\n")


def test_tables_are_drawn_on_a_terminal_and_plain_elsewhere(capsys, monkeypatch):
    table = Table(
        title="things",
        head=("name", "bytes"),
        rows=[("model.layers[0].w", "5"), ("b", "1024")],
        numeric=frozenset({1}),
    )
    show_tables(table)
    assert capsys.readouterr().out.splitlines() == [
        "things:",
        "  name               bytes",
        "  model.layers[0].w      5",
        "  b                   1024",
    ]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show_tables(table)
    drawn = capsys.readouterr().out
    assert "model.layers[0].w" in drawn
    assert "─" in drawn
    monkeypatch.setenv("COLUMNS", "28")  # narrower than drawn, and as wide as plain
    show_tables(table)
    assert capsys.readouterr().out == f"{table.plain()}\n"
    monkeypatch.setenv("COLUMNS", "20")
    show_tables(table)
    drawn = capsys.readouterr().out  # folded, not cut
    assert "─" in drawn
    assert "model.layers[0].w" in "".join(line.strip().split(" ")[0] for line in drawn.splitlines())
    monkeypatch.setenv("COLUMNS", "15")  # rich would cut the numbers
    show_tables(table)
    assert capsys.readouterr().out == f"{table.plain()}\n"
    monkeypatch.setitem(sys.modules, "rich", None)  # the cli extra is not there
    show_tables(table)
    assert capsys.readouterr().out.startswith("things:\n  name")


def test_version_and_help_answer_without_torch():
    code = (
        "import sys\n"
        "from paraload.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"paraload {paraload.__version__}\n")


def paraload_process(*argv, **keywords):
    command = [sys.executable, "-m", "paraload", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **keywords)


def test_the_module_runs(whole):
    out, err = paraload_process("load", whole).communicate(timeout=60)
    assert out.startswith("loaded 5 items")
    assert err == ""


def test_a_closed_pipe_is_not_an_error(whole):
    process = paraload_process("inspect", whole)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_every_command_names_itself():
    parser = cli._parser()
    assert {"inspect", "load"} <= set(parser._subparsers._group_actions[0].choices)
