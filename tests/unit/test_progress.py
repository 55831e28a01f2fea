"""The progress bar and the report."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import io
import json
import logging
import re
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from paraload import ReadProgress, ReadReport
from paraload.progress import ProgressBar, is_quiet_rank, progress_hook
from paraload.report import format_bytes


def progress(done, total=4 << 20, files=2):
    return ReadProgress(
        bytes_done=done,
        bytes_total=total,
        items_done=int(done == total),
        items_total=1,
        files_done=int(done == total),
        files_total=files,
        seconds=0.5,
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar() as bar:
        bar(progress(0))
        bar(progress(4 << 20))
    return stream.getvalue()


def test_the_bar_shows_bytes_rate_and_files_on_a_terminal(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    text = drawn(monkeypatch, Terminal())
    assert "100%" in text
    assert "Loading: " in text
    assert "4.00 MiB/4.00 MiB [" in text
    assert "1/2 files" in text
    assert re.search(r"[KMG]iB/s", text)


def snapshots(*seconds):
    """Of a load of 100 MiB that takes 100 s."""
    for second in seconds:
        yield dataclasses.replace(progress(second << 20, 100 << 20), seconds=float(second))


def test_lines_are_logged_where_there_is_no_terminal(monkeypatch, caplog):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, "paraload")
    with ProgressBar() as bar:
        for snapshot in snapshots(1, 9, 10, 11, 19, 20, 99, 100):
            bar(snapshot)
    first, _, last, end = [record.message for record in caplog.records]
    assert first.startswith("loading checkpoint: 10.00 MiB of 100.00 MiB (10%), 0 of 2 files in ")
    assert first.endswith(" 10.0 s (1.00 MiB/s, 90 s left)")
    assert last.endswith(" 99.0 s (1.00 MiB/s, 1 s left)")
    assert end.endswith(" (100%), 1 of 2 files in 100.0 s (1.00 MiB/s)")
    assert sys.stderr.getvalue() == ""


def test_lines_go_to_standard_error_where_the_log_shows_warnings_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    text = drawn(monkeypatch, io.StringIO())
    assert text.startswith("paraload: loading checkpoint: 4.00 MiB of 4.00 MiB (100%), ")
    assert text.count("\n") == 1


def test_an_empty_load_is_complete(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with ProgressBar("verifying") as bar:
        bar(dataclasses.replace(progress(0, 0), seconds=0.0))
    assert "verifying checkpoint: 0 B of 0 B (100%)" in sys.stderr.getvalue()


class Kernel:
    config = frozenset({"IPKernelApp"})


@pytest.mark.parametrize("shell", [Kernel, None])
def test_a_notebook_without_widgets_has_the_bar_as_text(monkeypatch, shell):
    monkeypatch.delenv("RANK", raising=False)
    ipython = SimpleNamespace(get_ipython=lambda: shell and shell())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = drawn(monkeypatch, io.StringIO())
    assert ("Loading: 100%|" in text) == (shell is Kernel)


def test_half_of_ipython_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_hook(None, None) as hook:
        assert hook is None


def test_a_notebook_with_widgets_has_a_widget(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    ipython = SimpleNamespace(get_ipython=Kernel)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "tqdm.notebook", SimpleNamespace(tqdm=Widget))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ipywidgets")
    drawn(monkeypatch, io.StringIO())
    assert Widget.shown == [(4 << 20, 4 << 20)]


class Widget:
    """In place of tqdm's, which needs ipywidgets."""

    shown: ClassVar[list] = []
    n = 0

    def __init__(self, *, desc, total, bar_format):
        self.total = total

    def set_postfix_str(self, text, refresh):
        pass

    def update(self, more):
        self.n += more

    def refresh(self):
        self.shown.append((self.n, self.total))

    def close(self):
        pass


class Gone(Terminal):
    """A terminal that is closed in the middle."""

    def write(self, text):
        if "0%" in text and "100%" not in text:
            return super().write(text)
        raise BrokenPipeError(32, "Broken pipe")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed(), object()])
def test_it_is_silent_where_there_is_no_standard_error(monkeypatch, caplog, stream):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar() as bar:
        bar(progress(0))
        bar(progress(4 << 20))
    assert caplog.text == ""


def test_a_bar_whose_terminal_goes_away_ends_alone(monkeypatch, caplog):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "stderr", Gone())
    with ProgressBar() as bar:
        bar(progress(0))
        bar(progress(4 << 20))
        bar(progress(4 << 20))
    del bar
    gc.collect()
    assert [record.message for record in caplog.records] == [
        "the progress bar stopped: BrokenPipeError: [Errno 32] Broken pipe"
    ]


def test_a_bar_whose_terminal_is_gone_at_its_end(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar() as bar:
        bar(progress(0))
        terminal.close()
    assert bar._bar.disable


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
@pytest.mark.parametrize(("rank", "quiet"), [("", False), ("0", False), ("1", True), ("7", True)])
def test_one_rank_of_a_job_shows_it(monkeypatch, variable, rank, quiet):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(variable, rank)
    assert is_quiet_rank() is quiet


def test_torchrun_counts_the_ranks_of_its_own_job(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not is_quiet_rank()


def test_other_ranks_draw_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert drawn(monkeypatch, Terminal()) == ""


def test_progress_has_its_rate():
    assert progress(1 << 20).bytes_per_second == 2 << 20


REPORT = ReadReport(
    bytes_needed=3 << 30,
    bytes_read=(3 << 30) + 1024,
    bytes_verified=3 << 30,
    reads=200,
    items=12,
    files=8,
    seconds=1.5,
    workers=2,
    executor="threads",
)


def test_a_report_is_a_short_text():
    assert str(REPORT) == (
        "loaded 12 items, 3.00 GiB from 8 files in 1.500 s (2.00 GiB/s, threads, 2 workers)\n"
        "read 3.00 GiB in 200 requests, CRC-32 checked for 3.00 GiB"
    )


def test_it_says_what_was_slow_and_what_was_not_checked():
    report = ReadReport(
        **{
            **REPORT.to_dict(),
            "fallbacks": {"compressed archive": 2},
            "unverified": {"read in part": 3},
            "retries": 1,
        }
    )
    text = str(report)
    assert "not checked: read in part (3)" in text
    assert "slow paths: compressed archive (2)" in text
    assert "retried requests: 1" in text


def test_it_goes_through_json():
    assert json.loads(json.dumps(REPORT.to_dict()))["bytes_needed"] == 3 << 30


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (5 << 40, "5.00 TiB")],
)
def test_bytes_for_people(nbytes, text):
    assert format_bytes(nbytes) == text
