"""``paraload bench``: what it measures, prints, writes and recommends, and every exit status."""

from __future__ import annotations

import gc
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from matplotlib.figure import Figure
from PIL import Image

import paraload
from paraload import ReadOptions
from paraload.cli import main
from paraload.cli.bench import page_cache
from paraload.cli.bench.advice import Advice, Setting
from paraload.cli.bench.case import Case
from paraload.cli.bench.measure import TORCH
from paraload.testing import make_checkpoint

MIB = 1 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """2 MiB of tensors in 2 files, so that workers have something to share, and an object."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoint"
    generator = torch.Generator().manual_seed(0)
    state = {f"layers.{n}": torch.randn(256, 512, generator=generator) for n in range(4)}
    state |= {"scale": torch.tensor(0.5), "empty": torch.zeros(0), "note": "hello"}
    make_checkpoint(folder, state, files=2)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _small_heap():
    """The collector runs before every run, and need not look at torch each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _fonts():
    """What matplotlib opens once and keeps is not a leak of the test that meets it first."""
    figure = Figure()
    figure.text(0, 0, "$10^0$")
    figure.savefig(io.BytesIO())


def call(capsys, *argv):
    status = main(["bench", *(str(word) for word in argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err


def advice(executor, speedup):
    """To use 2 workers of it, or torch's reader."""
    return Advice(
        setting=Setting(executor, 2),
        is_fastest=True,
        speedups={"warm": speedup},
        torch_is_faster=speedup < 1,
    )


#: Three arms, run as seldom as can be.
QUICK = ("--rounds", "1", "--workers", "2", "--executors", "threads", "--no-cold")


# ------------------------------------------------------------------------------ all is well: 0


@pytest.fixture(scope="module")
def ran(whole, tmp_path_factory):
    """A run with everything that it can write: ``(status, printed text, folder of files)``."""
    folder = tmp_path_factory.mktemp("ran")
    files = [f"--{kind}={folder / name}" for kind, name in FILES.items()]
    options = ("--rounds=3", "--workers=1,2", "--executors=threads,processes", "--no-cold")
    with redirect_stdout(io.StringIO()) as out:
        status = main(["bench", str(whole), *options, *files])
    return status, out.getvalue(), folder


FILES = {"json": "bench.json", "plot": "bench.png", "trace": "trace.json"}
#: Reader, executor, workers; how many paraload takes by itself is this machine's affair.
ARMS = [
    (TORCH, None, 1),
    ("paraload by itself", "auto", None),
    ("paraload sequential", "sequential", 1),
    ("paraload threads", "threads", 2),
    ("paraload processes", "processes", 2),
]


def test_it_prints_what_it_does_tables_and_a_recommendation(ran):
    status, out, _ = ran
    assert status == 0
    assert "2.00 MiB, all of it: 6 tensors and 1 object in 2 files" in out
    assert "arms     5, in turn, 3 rounds" in out
    rows = [line.strip().split("  ") for line in out.splitlines() if line.startswith("  ")]
    names = [reader for reader, _, _ in ARMS]
    assert [row[0] for row in rows if row[0] in names] == names
    assert "not measured cold: --no-cold" in out
    assert "recommended: " in out
    assert "2.00 MiB are little" in out


def test_set_nothing_is_a_recommendation_too(capsys, whole, monkeypatch):
    monkeypatch.setattr("paraload.cli.bench.measure.advise", lambda *_: advice("auto", 2.0))
    status, out, _ = call(capsys, whole, *QUICK)
    assert status == 0
    assert "recommended: set nothing; paraload by itself (2 workers) is the fastest" in out
    assert f"storage_reader=ParallelFileSystemReader('{whole}'))" in out
    assert "export" not in out


def test_what_it_recommends_can_be_pasted(capsys, whole, monkeypatch):
    monkeypatch.setattr("paraload.cli.bench.measure.advise", lambda *_: advice("threads", 2.0))
    _, out, _ = call(capsys, whole, *QUICK)
    lines = out[out.index("recommended:") :].splitlines()
    assert lines[0].startswith("recommended: 2 threads, the fastest")
    assert "2.00 times the speed of torch's reader warm" in lines[1]
    (python,) = (line.strip() for line in lines if "storage_reader=" in line)
    (shell,) = (line for line in lines if "export" in line)
    state_dict = {"scale": torch.tensor(0.0)}
    readers = []
    names = {
        "dcp": dcp,
        "state_dict": state_dict,
        "ParallelFileSystemReader": lambda *args, **keywords: (
            readers.append(paraload.ParallelFileSystemReader(*args, **keywords)) or readers[0]
        ),
    }
    eval(python, names)
    assert state_dict["scale"] == 0.5
    _, *assignments = shlex.split(shell)
    environment = ReadOptions.resolve(environ=dict(word.split("=") for word in assignments))
    assert readers[0].options == environment == ReadOptions(executor="threads", max_workers=2)


def test_json_has_every_figure(ran):
    _, _, folder = ran
    found = json.loads((folder / FILES["json"]).read_text())
    assert found["ok"] is True
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["cores"] >= 1
    part = found["part"]
    assert (part["tensors"], part["objects"], part["files"]) == (6, 1, 2)
    assert part["whole_bytes"] == part["nbytes"] < part["limit_bytes"]
    assert 2 * MIB < part["nbytes"] < 2 * MIB + 2000
    assert (found["rounds"], list(found["states"])) == (3, ["warm"])
    for arm, (reader, executor, workers) in zip(found["arms"], ARMS, strict=True):
        assert (arm["reader"], arm["executor"], arm["error"]) == (reader, executor, None)
        assert arm["workers"] == workers or (workers is None and arm["workers"] >= 1)
        warm = arm["timings"]["warm"]
        assert len(warm["seconds"]) == 3
        assert warm["median_s"] == sorted(warm["seconds"])[1] > 0
        assert warm["bytes_per_second"] == pytest.approx(part["nbytes"] / warm["median_s"])
        assert warm["workers"] == arm["workers"]
    recommended = found["recommended"]
    assert recommended["executor"] in {"auto", "sequential", "threads", "processes"}
    assert (recommended["max_workers"] is None) == (recommended["executor"] == "auto")


def test_json_on_standard_output_is_alone_there(capsys, whole, monkeypatch):
    monkeypatch.chdir(whole)  # "-" is no file in the checkpoint
    status, out, err = call(capsys, ".", *QUICK, "--json", "-")
    assert (status, err) == (0, "")
    assert json.loads(out)["ok"] is True


def test_the_plot_is_a_picture(ran):
    _, _, folder = ran
    with Image.open(folder / FILES["plot"]) as picture:
        picture.verify()
        assert picture.format == "PNG"
        assert min(picture.size) > 600


def test_the_plot_shows_both_states_and_who_read_when(capsys, whole, tmp_path):
    options = ("--rounds", "1", "--workers", "2", "--executors", "threads")
    call(capsys, whole, *options, "--plot", tmp_path / "out.svg")
    drawn = (tmp_path / "out.svg").read_text()
    words = ["page cache warm", "page cache cold", "who reads when", "ms since", "2 files"]
    words += ["paraload threads", "paraload by itself", TORCH]
    assert [word for word in words if f"<!-- {word}" not in drawn and word not in drawn] == []


def test_the_plot_does_not_take_names_for_formulas(capsys, whole, tmp_path):
    folder = tmp_path / "$x_{$ [red]\x1b[31m"
    shutil.copytree(whole, folder)
    status, out, _ = call(capsys, folder, *QUICK, "--plot", tmp_path / "out.svg")
    assert status == 0
    assert r"$x_{$ [red]\x1b[31m" in out
    assert "$x_{$ [red]" in (tmp_path / "out.svg").read_text()


def test_the_trace_is_that_of_the_recommended_setting(ran):
    _, _, folder = ran
    recommended = json.loads((folder / FILES["json"]).read_text())["recommended"]
    events = json.loads((folder / FILES["trace"]).read_text())["traceEvents"]
    executor = recommended["executor"].replace("auto", "threads")  # what it takes
    assert f"({executor}, " in events[0]["args"]["name"]
    names = {event["name"] for event in events if event["ph"] == "X"}
    assert names == {"__0_0.distcp", "__0_1.distcp"}


def test_the_checkpoint_is_only_read(capsys, whole):
    def state():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.iterdir()}

    before = state()
    call(capsys, whole, "--rounds", "1", "--workers", "2", "--executors", "threads")
    assert state() == before


def test_the_environment_does_not_choose_for_the_arms(capsys, whole, monkeypatch):
    monkeypatch.setenv("PARALOAD_EXECUTOR", "pool")
    monkeypatch.setenv("PARALOAD_MAX_WORKERS", "7")
    monkeypatch.setenv("PARALOAD_PROGRESS", "1")
    _, out, err = call(capsys, whole, *QUICK)
    assert err == ""
    assert "ran as" not in out


def test_what_ran_otherwise_than_asked_is_said(capsys, tmp_path):
    make_checkpoint(tmp_path / "small", {"w": torch.zeros(100)})  # too little to share
    _, out, _ = call(capsys, tmp_path / "small", *QUICK)
    assert "paraload threads, 2 workers: ran as sequential with 1" in out


def test_slow_paths_are_reported_once_rather_than_logged_for_every_run(capsys, tmp_path, caplog):
    state = {"w": torch.randn(500, 500, dtype=torch.complex64).conj()}
    make_checkpoint(tmp_path / "conjugate", state)
    status, out, _ = call(capsys, tmp_path / "conjugate", *QUICK)
    assert status == 0
    assert out.count("slow path: tensor with math bits (1)") == 1
    assert [record for record in caplog.records if record.name == "paraload"] == []


# ------------------------------------------------------------------------------- which bytes


def test_limit_bytes_reads_a_part_and_says_so(capsys, whole):
    status, out, _ = call(capsys, whole, *QUICK, "--limit-bytes", "1MiB")
    assert status == 0
    assert "of 2.00 MiB" in out
    assert "--limit-bytes is 1.00 MiB" in out
    _, out, _ = call(capsys, whole, *QUICK, "--limit-bytes", "1MiB", "--json", "-")
    part = json.loads(out)["part"]
    assert part["limit_bytes"] == MIB
    assert 0.5 * MIB <= part["nbytes"] <= MIB
    assert part["files"] == 2


@pytest.mark.parametrize(("free_bytes", "limit_bytes"), [(4 * MIB, MIB), (1 << 40, 2 << 30)])
def test_the_limit_comes_from_the_free_memory(capsys, whole, monkeypatch, free_bytes, limit_bytes):
    monkeypatch.setattr("paraload.cli.bench.measure.available_memory_bytes", lambda: free_bytes)
    _, out, _ = call(capsys, whole, *QUICK, "--json", "-")
    assert json.loads(out)["part"]["limit_bytes"] == limit_bytes


# --------------------------------------------------------------------------------------- cold


def test_cold_runs_begin_with_the_files_out_of_the_cache(capsys, whole, monkeypatch):
    left = []
    drop = page_cache.drop

    def drop_and_look(files):
        drop(files)
        left.append(page_cache.resident_fraction(files))

    monkeypatch.setattr("paraload.cli.bench.measure.drop", drop_and_look)
    options = ("--rounds", "2", "--workers", "2", "--executors", "threads")
    status, out, _ = call(capsys, whole, *options, "--json", "-")
    found = json.loads(out)
    assert status == 0
    assert found["not_cold"] == ""
    assert "posix_fadvise(DONTNEED)" in found["states"]["cold"]
    assert left == [0.0] * (2 * len(found["arms"]))
    assert all(len(arm["timings"]["cold"]["seconds"]) == 2 for arm in found["arms"])


@pytest.mark.parametrize(("nbytes", "is_choice"), [(2 << 20, True), (1 << 17, False)])
def test_past_the_page_cache_is_a_choice_where_something_went_there(
    capsys, tmp_path, monkeypatch, nbytes, is_choice
):
    make_checkpoint(tmp_path / "ckpt", {"w": torch.ones(nbytes, dtype=torch.uint8)})
    offered = []

    def choose_last(settings, torch):
        offered.extend(settings)
        return Advice(
            setting=offered[-1], is_fastest=True, speedups={"cold": 2.0}, torch_is_faster=False
        )

    monkeypatch.setattr("paraload.cli.bench.measure.advise", choose_last)
    options = ("--rounds", "1", "--workers", "1", "--executors", "sequential")
    status, out, _ = call(capsys, tmp_path / "ckpt", *options)
    assert status == 0
    assert "paraload by itself, direct_io" in out
    assert [setting.executor for setting in offered if setting.direct_io] == ["auto"] * is_choice


def test_what_goes_past_the_page_cache_can_be_pasted(capsys, whole, monkeypatch):
    chosen = Advice(
        setting=Setting("auto", 2, direct_io=True),
        is_fastest=False,
        speedups={"cold": 2.0},
        torch_is_faster=False,
    )
    monkeypatch.setattr("paraload.cli.bench.measure.advise", lambda *_: chosen)
    _, out, _ = call(capsys, whole, *QUICK)
    assert (
        "recommended: direct_io=True; paraload by itself with direct_io (2 workers) is as fast as"
        " any, and the simplest" in out
    )
    assert f"ParallelFileSystemReader('{whole}', direct_io=True))" in out
    assert "export PARALOAD_DIRECT_IO=1\n" in out


def test_cold_is_refused_with_the_reason(capsys, whole, monkeypatch):
    monkeypatch.setattr(page_cache, "drop", lambda files: None)  # a hint that is not taken
    options = ("--rounds", "1", "--workers", "2", "--executors", "threads")
    status, out, _ = call(capsys, whole, *options)
    assert status == 0
    reason = "posix_fadvise(DONTNEED): 100% of the bytes stayed in the page cache"
    assert f"not measured cold: {reason}\n" in out
    assert "page cache cold" not in out


# ----------------------------------------------------------------------------- recommendation


def test_where_torch_is_faster_that_is_what_is_printed(capsys, whole, monkeypatch):
    monkeypatch.setattr("paraload.cli.bench.measure.advise", lambda *_: advice("threads", 0.5))
    status, out, _ = call(capsys, whole, *QUICK)
    assert status == 0
    assert "recommended: torch's own reader, which is faster here" in out
    assert "2 threads came closest (0.50 times the speed of torch's reader warm)" in out
    assert "storage_reader=FileSystemReader(" in out
    assert "export" not in out


# ------------------------------------------------------------------------- arms that fail: 1


def test_an_arm_that_fails_is_shown_and_the_others_go_on(capsys, whole, tmp_path, monkeypatch):
    def refuse(self, *args):
        raise OSError("no more processes")

    monkeypatch.setattr("paraload.executors.processes.executor.ProcessExecutor.start", refuse)
    options = ("--rounds", "1", "--workers", "2", "--no-cold")
    status, out, _ = call(capsys, whole, *options, "--json", tmp_path / "bench.json")
    found = json.loads((tmp_path / "bench.json").read_text())
    errors = {arm["reader"]: arm["error"] for arm in found["arms"] if arm["error"]}
    assert errors == {"paraload processes": "OSError: no more processes"}
    assert found["ok"] is False
    assert status == 1
    assert "paraload processes, 2 workers: OSError: no more processes" in out
    assert "paraload processes        2  failed" in out
    assert "processes" not in out[out.index("recommended: ") :]


def test_an_arm_that_loads_other_bytes_is_out(capsys, whole, monkeypatch):
    real = dcp.DefaultLoadPlanner.commit_tensor

    def spoil(self, read_item, tensor):
        real(self, read_item, tensor)
        if read_item.storage_index.fqn == "layers.2" and spoil.calls >= 6:
            tensor[3, 5] = 1.0
        spoil.calls += 1

    spoil.calls = 0
    monkeypatch.setattr("paraload.cli._planner.BytesPlanner.commit_tensor", spoil)
    status, out, _ = call(capsys, whole, *QUICK, "--json", "-")
    assert status == 1
    errors = [arm["error"] for arm in json.loads(out)["arms"]]
    assert errors[0] is None
    assert errors[1] == f"ValueError: 'layers.2' differs from what {TORCH}, 1 worker loaded"


def test_a_damaged_checkpoint_ends_with_1_and_no_recommendation(capsys, tmp_path):
    make_checkpoint(tmp_path / "cut", {"w": torch.zeros(500_000)}, files=1)
    os.truncate(tmp_path / "cut" / "__0_0.distcp", MIB)
    status, out, _ = call(capsys, tmp_path / "cut", *QUICK, "--plot", tmp_path / "out.png")
    assert status == 1
    assert "no recommendation: no setting of paraload could be measured" in out
    assert "'w'" in out
    assert (tmp_path / "out.png").exists()


def test_a_damaged_checkpoint_is_reported_once_and_early(capsys, tmp_path):
    folder = tmp_path / "flipped"
    make_checkpoint(folder, {"w": torch.zeros(500_000)}, files=1)
    with (folder / "__0_0.distcp").open("r+b") as file:
        file.seek(MIB)
        file.write(b"\x01")
    options = (
        "--workers",
        "1,2",
        "--json",
        tmp_path / "bench.json",
        "--plot",
        tmp_path / "out.png",
    )
    status, out, _ = call(capsys, folder, *options)
    assert status == 1
    assert out.count("expected CRC-32") == 1
    assert "seconds" not in out, "a table of nothing"
    assert "warm: no setting of paraload can read this checkpoint" in out
    assert "no recommendation" in out
    arms = json.loads((tmp_path / "bench.json").read_text())["arms"]
    # torch's reader compares no checksums, so it has nothing to complain about.
    assert [arm["reader"] for arm in arms if arm["error"]] == ["paraload by itself"]
    assert [arm["timings"] for arm in arms] == [{}] * len(arms)
    assert (tmp_path / "out.png").exists()


def test_no_metadata_is_a_bad_checkpoint(capsys, tmp_path):
    status, out, err = call(capsys, tmp_path)
    assert (status, out) == (1, "")
    assert "incomplete checkpoint?" in err


# ----------------------------------------------------------------------------- the call is: 2


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "PATH"),
        (("{whole}", "--workers", "two"), "two"),
        (("{whole}", "--workers", "0"), "1 or more"),
        (("{whole}", "--workers", "1,,2"), "whole number"),
        (("{whole}", "--rounds", "0"), "--rounds"),
        (("{whole}", "--executors", "magic"), "magic"),
        (("{whole}", "--executors", "auto"), "auto"),
    ],
)
def test_argparse_answers_a_wrong_call_with_2(capsys, whole, argv, says):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *(word.format(whole=whole) for word in argv)])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("{whole}/not-there",), "no such folder"),
        (("{whole}", "--limit-bytes", "some"), "some"),
        (("{whole}", "--json", "{whole}/not-there/out.json"), "does not exist"),
        (("{whole}", "--json", "{whole}/out.json"), "only read"),
        (("{whole}", "--trace", "{whole}/out.json"), "only read"),
        (("{whole}", "--plot", "{whole}/../checkpoint/out.png"), "only read"),
        (("{whole}", "--plot", "-"), "name a file"),
        (("{whole}", "--plot", "{whole}/../out.movie"), ".png"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_why(capsys, whole, argv, says):
    status, out, err = call(capsys, *(word.format(whole=whole) for word in argv))
    assert (status, out) == (2, "")
    assert says in err


def test_an_empty_checkpoint_is_a_wrong_call(capsys, tmp_path):
    make_checkpoint(tmp_path, {})
    status, _, err = call(capsys, tmp_path)
    assert status == 2
    assert "is empty" in err


def test_a_plot_without_matplotlib_is_refused_before_any_work(capsys, whole, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "paraload.cli.bench.plot", raising=False)
    monkeypatch.delattr("paraload.cli.bench.plot", raising=False)
    monkeypatch.setattr("paraload.cli._checkpoint.open_reader", lambda *_: pytest.fail("work"))
    status, out, err = call(capsys, whole, "--plot", tmp_path / "out.png")
    assert (status, out) == (2, "")
    assert "pip install paraload[bench]" in err


def test_what_does_not_fit_into_memory_is_not_begun(capsys, whole, monkeypatch):
    monkeypatch.setattr("paraload.cli._checkpoint.available_memory_bytes", lambda: 1 << 10)
    status, out, err = call(capsys, whole, *QUICK)
    assert (status, out) == (2, "")
    assert "takes 2.00 MiB of memory, and 1.00 KiB are free" in err


# ------------------------------------------------------------------------------- and the rest


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return -1


def test_progress_is_shown_on_a_terminal_and_gone_at_the_end(whole, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["bench", str(whole), *QUICK, "--rounds", "2"]) == 0
    shown = terminal.getvalue().split("\r")
    assert any(f"0/3, ? left, check: {TORCH}, 1 worker" in text for text in shown)
    warm = [text for text in shown if "warm: " in text]
    assert any("0/6, ? left" in text for text in warm)
    assert any("5/6, 00:00 left" in text for text in warm)
    assert all(any(arm in text for text in warm) for arm in (TORCH, "itself", "threads, 2 workers"))
    assert shown[-2].isspace()
    assert shown[-1] == ""


def test_a_status_line_does_not_go_over_the_edge(whole, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((40, 20)))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["bench", str(whole), *QUICK]) == 0
    assert max(map(len, terminal.getvalue().split("\r"))) < 40


def test_arms_run_in_rounds_in_an_order_that_changes(capsys, whole, monkeypatch):
    ran = []
    prepare = Case.prepare

    def remember(case, reader):
        ran.append((type(reader).__name__, getattr(reader, "max_workers", None)))
        return prepare(case, reader)

    monkeypatch.setattr(Case, "prepare", remember)
    options = ("--rounds", "4", "--workers", "1,2", "--executors", "threads", "--no-cold")
    call(capsys, whole, *options)
    check, *rounds = (tuple(ran[at : at + 4]) for at in range(0, len(ran), 4))
    assert len(rounds) == 4
    assert all(set(one) == set(check) for one in rounds)
    assert len(set(rounds)) > 2
    ran.clear()
    call(capsys, whole, *options)
    assert tuple(ran[4:8]) == rounds[0], "the same command runs in another order"


def test_ctrl_c_ends_with_130(capsys, whole, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("paraload.cli.bench.measure.random.Random", interrupt)
    status, out, err = call(capsys, whole, *QUICK)
    assert (status, err) == (130, "paraload: interrupted\n")
    assert "recommended" not in out


def test_the_command_runs_from_the_shell(whole, tmp_path):
    command = [sys.executable, "-m", "paraload", "bench", str(whole), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "recommended: " in done.stdout
    assert list(Path(tmp_path).iterdir()) == []
