"""The comparison with other readers, without any of them installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from PIL import Image
from torch.distributed.checkpoint import FileSystemWriter

from benchmarks import checkpoints, page_cache, remote
from benchmarks.arms import Arm
from benchmarks.cases import whole_case
from benchmarks.checkpoints import Checkpoints
from benchmarks.nginx import nginx
from benchmarks.page import BENCH, RIVALS, RIVALS_S3, seen_from
from benchmarks.rivals import __main__ as command
from benchmarks.rivals import contest, s3
from benchmarks.rivals import s3_contestants as s3_contestants_module
from benchmarks.rivals.chart import draw
from benchmarks.rivals.contest import Cache, Result, measure, probe
from benchmarks.rivals.contestants import ALWAYS, CONTESTANTS, RAW, Contestant, Side
from benchmarks.rivals.formats import DCP, FLASHPACK, TORCH_SAVE, in_format
from benchmarks.rivals.loaders import copying, torch_load
from benchmarks.rivals.report import fastest_first, rivals_table
from benchmarks.rivals.s3_contestants import s3_contestants
from benchmarks.rounds import Timing
from tests.old_torch import FSSPEC_OPTIONS, HF_WRITER

REPOSITORY = Path(__file__).parents[2]
TORCH = version("torch")
RIVAL_MODULES = {
    "fastsafetensors",
    "flashpack",
    "multistorageclient",
    "olmo_core",
    "runai_model_streamer",
    "s3fs",
    "s3torchconnector",
    "safetensors",
    "torch_checkpointing",
}
S3_CONTESTANTS = s3_contestants("http://127.0.0.1:1", "bucket")
STOCK, RAW_LIMIT, OURS = (
    next(c for c in CONTESTANTS if c.name == name)
    for name in ("torch FileSystemReader", RAW, "paraload threads")
)


@pytest.fixture(scope="module", autouse=True)
def _fonts(tmp_path_factory):
    """The font files that matplotlib opens once and keeps are not a leak of the test that draws."""
    result = result_of(paraload_threads=(1.0,), raw_limit=(1.0,))
    draw(tmp_path_factory.mktemp("fonts") / "any.png", [result], CONTESTANTS)


@pytest.fixture(autouse=True)
def whole_cache(tmp_path_factory, monkeypatch):
    """Stands in for the file that empties the page cache of the whole machine."""
    stand_in = tmp_path_factory.mktemp("proc") / "drop_caches"
    monkeypatch.setattr(page_cache, "DROP_CACHES", stand_in)
    return stand_in


@pytest.fixture
def case(tmp_path):
    """Four tensors in two files."""
    state = {f"w{n}": torch.arange(1000 + n, dtype=torch.bfloat16) for n in range(4)}
    folder = tmp_path / "checkpoint"
    writer = FileSystemWriter(folder, single_file_per_rank=True, thread_count=2)
    dcp.save(state, storage_writer=writer, no_dist=True)
    return whole_case(folder)


def contestant(name, load, **fields):
    return Contestant(arm=copying(name, load), group="test", **fields)


def importing(_folder):
    """What the loader of a missing library does."""
    __import__("a_library_that_nobody_has")
    yield from ()


MISSING = contestant("missing", importing, package="a-library-that-does-not-exist")


def result_of(**seconds):
    timings = {name.replace("_", " "): Timing(seconds=values) for name, values in seconds.items()}
    return Result(
        files=8,
        place="page cache warm",
        payload_bytes=3 << 30,
        timings=timings,
        others_cores=0.04,
    )


# --------------------------------------------------------------------------- who takes part


def test_nothing_of_a_rival_is_imported_before_it_runs():
    modules = "benchmarks.rivals.__main__, benchmarks.rivals.s3"
    code = f"import sys, {modules}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not RIVAL_MODULES & set(done.stdout.split())


def test_names_are_keys_and_the_reference_comes_first():
    assert len({c.name for c in CONTESTANTS}) == len(CONTESTANTS)
    assert CONTESTANTS[0].name == "torch FileSystemReader"
    assert set(ALWAYS) <= {c.group for c in CONTESTANTS}
    assert {c.side for c in CONTESTANTS if c.group == "paraload"} == {Side.OURS}


def test_names_over_s3_are_keys_and_the_limit_comes_first():
    assert len({c.name for c in S3_CONTESTANTS}) == len(S3_CONTESTANTS)
    assert [c.side for c in S3_CONTESTANTS][:2] == [Side.LIMIT, Side.OURS]
    assert {c.group for c in S3_CONTESTANTS if c.side is Side.RIVAL} == {
        "s3fs",
        "s3torchconnector",
        "runai",
    }


def test_every_package_is_pinned():
    lines = (REPOSITORY / "benchmarks/rivals/requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", pin) for pin in pins)
    pinned = {pin.partition("==")[0] for pin in pins}
    everyone = (*CONTESTANTS, *S3_CONTESTANTS)
    assert {c.package for c in everyone} - {None, "torch", "paraload"} <= pinned
    assert "torch" not in pinned  # constraints.txt has it


def test_a_version_is_reported_or_that_it_is_missing():
    assert STOCK.version == TORCH
    assert RAW_LIMIT.version == "-"
    assert MISSING.version == "not installed"


# --------------------------------------------------------------------------- formats and loaders


def test_another_format_has_the_same_tensors_in_the_same_files(case):
    assert in_format(case, DCP) is case
    written = in_format(case, TORCH_SAVE)
    assert in_format(case, TORCH_SAVE) is written  # once
    assert written.targets is case.targets
    parts = [torch.load(path) for path in page_cache.files_below(written.folder)]
    assert len(parts) == 2
    assert sorted(name for part in parts for name in part) == ["w0", "w1", "w2", "w3"]
    assert all(
        torch.equal(tensor, torch.arange(1000 + int(name[1:]), dtype=torch.bfloat16))
        for part in parts
        for name, tensor in part.items()
    )


def test_a_loader_is_charged_with_the_copy(case):
    prepared = copying("torch.load", torch_load).prepare(in_format(case, TORCH_SAVE))
    case.targets["w3"].zero_()
    prepared.run()
    assert torch.equal(case.targets["w3"], torch.arange(1003, dtype=torch.bfloat16))


def test_settings_end_with_the_run(case, monkeypatch):
    monkeypatch.setenv("RIVAL_A", "before")
    seen = []

    def load(_folder):
        seen.append((os.environ["RIVAL_A"], os.environ["RIVAL_B"]))
        raise OSError("broken")
        yield

    arm = copying("rival", load, {"RIVAL_A": "1", "RIVAL_B": "2"})
    with pytest.raises(OSError, match="broken"):
        arm.prepare(case).run()
    assert seen == [("1", "2")]
    assert os.environ["RIVAL_A"] == "before"
    assert "RIVAL_B" not in os.environ


# --------------------------------------------------------------------------- the contest


def test_all_who_want_a_format_that_cannot_be_written_fail_alike(case):
    rivals = [contestant(name, torch_load, file_format=FLASHPACK) for name in ("a", "b")]
    reason = "ModuleNotFoundError: No module named 'flashpack'"
    assert probe(rivals, case) == {"a": reason, "b": reason}


def test_who_cannot_run_says_why(case):
    def load(_folder):
        raise RuntimeError("no GPU\n  was found")
        yield

    contestants = [STOCK, MISSING, contestant("needs a GPU", load), OURS]
    assert probe(contestants, case) == {
        "missing": "ModuleNotFoundError: No module named 'a_library_that_nobody_has'",
        "needs a GPU": "RuntimeError: no GPU was found",
    }


@pytest.mark.parametrize("cache", Cache)
def test_every_run_begins_with_the_cache_in_its_named_state(case, cache, monkeypatch):
    seen = []
    for state in Cache:
        bring = getattr(contest, f"ensure_{state}")
        monkeypatch.setattr(
            contest, f"ensure_{state}", lambda files, s=state, b=bring: (seen.append(s), b(files))
        )
    rival = contestant("rival", lambda f: seen.append(f) or torch_load(f), file_format=TORCH_SAVE)
    result = measure([STOCK, OURS, rival], case, files=2, cache=cache, rounds=2)
    folder = in_format(case, TORCH_SAVE).folder
    before = [seen[n - 1] for n, event in enumerate(seen) if event == folder]
    # Once to be checked, twice as asked for, four times more since it takes so little.
    assert before == [cache] * 7
    assert set(seen) == {cache, folder}
    rounds = {name: len(timing.seconds) for name, timing in result.timings.items()}
    assert rounds == {STOCK.name: 6, OURS.name: 6, "rival": 6}
    assert result.payload_bytes == case.payload_bytes


def test_a_slow_contestant_has_only_the_requested_rounds(case, monkeypatch):
    runs = []
    monkeypatch.setattr(contest, "_BRIEF_S", 0.0)
    rival = contestant("rival", lambda f: runs.append(f) or torch_load(f), file_format=TORCH_SAVE)
    result = measure([STOCK, rival], case, files=2, cache=Cache.WARM, rounds=2)
    assert len(runs) == 3
    assert len(result.timings["rival"].seconds) == 2


def test_a_contestant_that_loads_other_bytes_ends_the_run(case):
    def load(folder):
        for name, tensor in torch_load(folder):
            yield name, tensor + 1

    wrong = contestant("wrong", load, file_format=TORCH_SAVE)
    with pytest.raises(RuntimeError, match="'wrong' loaded other bytes into 'w0'"):
        measure([STOCK, wrong], case, files=2, cache=Cache.WARM, rounds=1)


def test_the_page_cache_is_emptied_and_filled_for_given_files_only(tmp_path, whole_cache):
    file, empty = tmp_path / "file", tmp_path / "empty"
    empty.touch()
    with file.open("wb") as stream:
        stream.write(os.urandom(1 << 20))
        os.fsync(stream.fileno())
    page_cache.ensure_cold([file, empty])
    assert page_cache.resident_fraction([file]) == 0
    assert not whole_cache.exists()
    with file.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no more than was asked for
        stream.read(64 << 10)
    assert page_cache.resident_fraction([file, empty]) == 1 / 16
    page_cache.ensure_warm([file, empty])
    assert page_cache.resident_fraction([file]) == 1
    assert page_cache.resident_fraction([empty]) == 1


def test_a_cache_that_cannot_be_dropped_is_reported(tmp_path, whole_cache, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    monkeypatch.setattr(page_cache, "resident_fraction", lambda _: 0.5)
    with pytest.raises(RuntimeError, match=r"only 50% of .* stays in the page cache"):
        page_cache.ensure_warm([file])
    with pytest.raises(RuntimeError, match=r"50% of .* stays in the page cache"):
        page_cache.ensure_cold([file])
    assert whole_cache.read_text() == "1\n"  # the last resort


# --------------------------------------------------------------------------- tables, picture, page


def test_the_table_has_the_fastest_first_and_the_absent_last():
    contestants = [STOCK, MISSING, RAW_LIMIT, OURS]
    result = result_of(
        torch_FileSystemReader=(6.0,), raw_limit=(0.9, 1.0, 1.2), paraload_threads=(1.5, 2.0, 1.6)
    )
    assert [c.name for c in fastest_first(result, contestants)] == [RAW, OURS.name, STOCK.name]
    table = rivals_table(result, contestants, {"missing": "ImportError: gone"})
    shape = "3.00 GiB of bf16 in 8 files, page cache warm"
    assert table.title == f"{shape} (others kept 0.0 cores busy)"
    assert table.rows == (
        ("raw limit", "-", "DCP", "1.000", "3.00", "1.00", "0.900..1.200"),
        ("paraload threads", OURS.version, "DCP", "1.600", "1.88", "0.62", "1.500..2.000"),
        ("torch FileSystemReader", TORCH, "DCP", "6.000", "0.50", "0.17", "one run"),
        ("missing", "not installed", "DCP", "not run", "-", "-", "ImportError: gone"),
    )


def test_the_picture_shows_ours_in_colour_and_is_small(tmp_path):
    timings = {c.name: Timing(seconds=(1.0 + (c.side is Side.RIVAL),)) for c in CONTESTANTS}
    warm = Result(files=8, place="warm", payload_bytes=1 << 30, timings=timings, others_cores=0)
    target = tmp_path / "rivals.png"
    draw(target, [warm, replace(warm, place="cold")], CONTESTANTS)
    assert target.stat().st_size < 100 << 10
    with Image.open(target) as image:
        assert image.format == "PNG"
        pixels = {colour: n for n, colour in image.convert("RGB").getcolors(1 << 16)}
    ours, rivals = pixels[228, 87, 46], pixels[180, 185, 193]
    assert 10_000 < ours < rivals  # bars, not only letters


def test_the_section_of_the_page_is_the_tables_as_printed(tmp_path):
    result = result_of(torch_FileSystemReader=(6.0,), raw_limit=(1.0,))
    table = rivals_table(result, [STOCK, RAW_LIMIT, MISSING], {"missing": "E" * 200})
    content = RIVALS.section([table], "cores: 2", "rivals.png")
    assert content.startswith("Printed by `make bench-rivals`; cores: 2.\n\n![")
    assert f"](rivals.png)\n\n### {table.title}\n\n| reader" in content
    assert "E" * 200 in content  # an error is never cut
    assert "![" not in RIVALS.section([table], "cores: 2", None)
    page = tmp_path / "docs" / "page.md"
    assert seen_from(page, tmp_path / "docs" / "rivals.png") == "rivals.png"
    assert seen_from(page, tmp_path / "rivals.png") == "../rivals.png"


def test_only_what_is_between_the_comments_is_rewritten(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{RIVALS.begin}\nold\n{RIVALS.end}\nafter\n")
    for _ in range(2):
        RIVALS.rewrite(page, "new")
        assert page.read_text() == f"before\n{RIVALS.begin}\n\nnew\n\n{RIVALS.end}\nafter\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        RIVALS.begin,
        f"{RIVALS.end}{RIVALS.begin}",
        f"{RIVALS.begin}{RIVALS.end}{RIVALS.begin}{RIVALS.end}",
    ],
)
def test_a_page_without_one_place_is_left_alone(tmp_path, text):
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="has no place between"):
        RIVALS.rewrite(page, "new")
    assert page.read_text() == text


@pytest.mark.parametrize("place", [BENCH, RIVALS, RIVALS_S3])
def test_the_readme_has_the_places(place):
    assert place.begin in place.require_in(REPOSITORY / "benchmarks/README.md")


# --------------------------------------------------------------------------- the command


def test_one_command_makes_tables_picture_json_and_page(case, tmp_path, monkeypatch, capsys):
    once = Arm(name="once", prepare=STOCK.arm.prepare, is_slow=True)
    contestants = (STOCK, RAW_LIMIT, OURS, Contestant(arm=once, group="literal"), MISSING)
    monkeypatch.setattr(command, "CONTESTANTS", contestants)
    monkeypatch.setattr(command, "_GROUPS", ("torch", "raw", "paraload", "literal", "test"))
    monkeypatch.setattr(Checkpoints, "llama", lambda _, files: case.folder)
    monkeypatch.setattr(Checkpoints, "tiny", lambda _: case.folder)
    page, plot, figures = (tmp_path / name for name in ("page.md", "plot.png", "figures.json"))
    page.write_text(f"{RIVALS.begin}\n{RIVALS.end}\n")
    files = ["--plot", str(plot), "--readme", str(page), "--json", str(figures)]
    assert command.main(["--rounds", "2", "--folder", str(tmp_path), *files]) == 0
    out = capsys.readouterr().out
    titles = [line.partition(" (others")[0] for line in out.splitlines() if "page cache" in line]
    assert titles == [
        "0.00 GiB of bf16 in 8 files, page cache warm",
        "0.00 GiB of bf16 in 8 files, page cache cold",
        "0.00 GiB of bf16 in 1 file, page cache warm",
    ]
    assert out.count("No module named 'a_library_that_nobody_has'") == 3
    assert page.read_text().count("### 0.00 GiB") == 3
    assert "](plot.png)" in page.read_text()
    content = json.loads(figures.read_text())
    assert content["readers"]["paraload threads"]["version"] == OURS.version
    assert list(content["not run"]) == ["missing"]
    warm, cold, _ = content["results"]
    assert (warm["place"], cold["place"]) == ("page cache warm", "page cache cold")
    assert len(warm["timings"]["once"]["seconds"]) == 1
    assert "once" not in cold["timings"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint", "page.md", "plot.png", "figures.json"}


def test_a_cache_that_cannot_be_emptied_is_a_note(case, tmp_path, monkeypatch, capsys):
    def refuse(_files):
        raise PermissionError(13, "Permission denied", "/proc/sys/vm/drop_caches")

    monkeypatch.setattr(contest, "ensure_cold", refuse)
    monkeypatch.setattr(command, "CONTESTANTS", (STOCK, RAW_LIMIT))
    monkeypatch.setattr(Checkpoints, "llama", lambda _, files: case.folder)
    monkeypatch.setattr(Checkpoints, "tiny", lambda _: case.folder)
    assert command.main(["--rounds", "1", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("page cache warm") == 2
    reason = "[Errno 13] Permission denied: '/proc/sys/vm/drop_caches'"
    assert f"; page cache cold: not measured, {reason}; " in out


# --------------------------------------------------------------------------- over S3


@pytest.fixture
def _small(monkeypatch):
    shapes = {f"w{n}": (1000 + n,) for n in range(8)}
    for kind in ("remote", "tiny"):
        monkeypatch.setitem(checkpoints._SHAPES, kind, lambda: shapes)


def choose(monkeypatch, *names):
    """Let only these take part, and all in this process: each other one would import torch."""

    def chosen(*where):
        return tuple(c for c in s3_contestants(*where) if c.name in {remote.RAW, *names})

    monkeypatch.setattr(s3, "s3_contestants", chosen)
    monkeypatch.setattr(
        s3._Processes,
        "ask",
        lambda self, question, *where, **more: question(self.load(*where, **more)),
    )


@pytest.mark.usefixtures("_small")
@HF_WRITER.needed
def test_readers_of_s3_are_checked_and_timed(tmp_path, monkeypatch, capsys):
    missing = "S3StorageReader of s3torchconnector"  # no part of the project
    choose(monkeypatch, "paraload, DCP", "paraload, safetensors", missing)
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text(f"{RIVALS_S3.begin}\n{RIVALS_S3.end}\n")
    options = ["--rounds", "2", "--folder", str(tmp_path)]
    assert s3.main([*options, "--json", str(figures), "--readme", str(page)]) == 0
    titles = [line for line in page.read_text().splitlines() if line.startswith("###")]
    assert [title.partition(" (others")[0] for title in titles] == [
        "### 0.00 GiB of bf16 in 8 files, S3, 32 MiB/s for each connection",
        "### 0.00 GiB of bf16 in 1 file, S3, 32 MiB/s for each connection",
        "### 0.00 GiB of bf16 in 8 files, S3, no limit",
    ]
    content = json.loads(figures.read_text())
    reason = "ModuleNotFoundError: No module named 's3torchconnector'"
    assert content["not run"] == {missing: reason}
    for result in content["results"]:
        rounds = {name: len(timing["seconds"]) for name, timing in result["timings"].items()}
        assert rounds == {name: 2 for name in content["readers"] if name != missing}
    assert capsys.readouterr().out.count(reason) == 3


@HF_WRITER.needed
@pytest.mark.usefixtures("_small")
def test_a_reader_of_s3_that_loads_other_bytes_ends_the_run(tmp_path, monkeypatch):
    choose(monkeypatch, "paraload, DCP")
    monkeypatch.setattr(s3_contestants_module.paraload, "load", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="'paraload, DCP' loaded other bytes into 'w0'"):
        s3.main(["--folder", str(tmp_path)])


@FSSPEC_OPTIONS.needed
def test_a_process_answers_for_its_contestant(case):
    root = case.folder.parent
    with (
        nginx(root, bytes_per_second=1 << 30) as endpoint,
        closing(s3._Processes(endpoint)) as processes,
    ):
        for question in (s3._checked, s3._seconds):
            answer = processes.ask(question, "torch FsspecReader, s3fs", "full", case.folder)
            assert answer
    resource_tracker._resource_tracker._stop()  # Python keeps it for more processes


def test_a_slow_reader_of_s3_runs_once():
    seconds = {"fast": 1.0, "slow": 60.0}

    def ask(question, name):
        once = Timing(seconds=(seconds[name],))
        return once if question is s3._checked else seconds[name] + 1

    timings = s3._timings(ask, list(seconds), rounds=3)
    assert {name: timing.seconds for name, timing in timings.items()} == {
        "fast": (2.0, 2.0, 2.0),
        "slow": (60.0,),
    }
