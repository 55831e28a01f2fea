"""The time line of a report, its bound, and the trace that Perfetto opens."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import pytest
import torch

from paraload import ParallelFileSystemReader, ReadReport, load
from paraload.core.results import ReadTally, TaskResult
from paraload.core.tasks import ReadTask
from paraload.engine.timeline import Timeline
from paraload.report import TaskTiming
from paraload.report.trace import throughput_steps, trace_of, workers_of
from paraload.testing import make_checkpoint

MIB = 1 << 20


def timing(worker="paraload-0", path="f.distcp", **values):
    defaults = {"start": 0, "end": 8, "bytes_read": 8, "started_s": 0.0, "ended_s": 1.0}
    return TaskTiming(worker=worker, path=path, **(defaults | values))


def report(*timeline, seconds=1.0, tasks=None):
    return ReadReport(
        bytes_needed=1,
        bytes_read=sum(one.bytes_read for one in timeline),
        bytes_verified=1,
        reads=1,
        items=1,
        files=1,
        seconds=seconds,
        workers=2,
        executor="threads",
        tasks=len(timeline) if tasks is None else tasks,
        timeline=timeline,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace") / "checkpoint"
    state = {f"big.{n}": torch.randn(MIB // 2) for n in range(3)}
    state |= {f"small.{n}": torch.randn(64) for n in range(20)}
    make_checkpoint(folder, state, files=2)
    return folder


def load_it(checkpoint, **options):
    reader = ParallelFileSystemReader(checkpoint)
    entries = reader.read_metadata().state_dict_metadata.items()
    state = {name: torch.empty(entry.size) for name, entry in entries}
    return load(state, checkpoint, no_dist=True, **options)


# ------------------------------------------------------------------------- the time line


@pytest.mark.parametrize("executor", ["sequential", "threads", "processes", "pool"])
def test_a_report_has_what_each_worker_read_and_when(checkpoint, executor):
    done = load_it(checkpoint, executor=executor, max_workers=2)
    line = done.timeline
    assert (done.executor, done.tasks) == (executor, len(line))
    assert sum(one.bytes_read for one in line) == done.bytes_read
    assert {one.path for one in line} == set(done.file_timings) == {"__0_0.distcp", "__0_1.distcp"}
    assert all(0 <= one.started_s <= one.ended_s <= done.seconds for one in line)
    assert [one.started_s for one in line] == sorted(one.started_s for one in line)
    for one in line:
        assert 0 <= one.start < one.end <= (checkpoint / one.path).stat().st_size
        checksum_bytes = 24  # behind the range
        assert 0 < one.bytes_read <= one.end - one.start + checksum_bytes
    names = {one.worker.partition("-")[0] for one in line}
    here = "MainThread"  # it reads too where processes start
    assert names <= ({"paraload"} if executor in {"sequential", "threads"} else {here, "process"})


def test_the_time_line_is_not_printed_or_in_the_json(checkpoint):
    done = load_it(checkpoint)
    assert "timeline" not in done.to_dict()
    assert "TaskTiming" not in repr(done)
    assert len(json.dumps(done.to_dict())) < 2000
    assert pickle.loads(pickle.dumps(done)) == done


# ---------------------------------------------------------------------------------- its bound


def result(number, path, worker, nbytes=10):
    task = ReadTask(path=path, start=number * 10, end=number * 10 + nbytes, items=())
    return TaskResult(
        task=task,
        outcomes=(),
        tally=ReadTally(reads=1, bytes_read=nbytes),
        started_s=100.0 + number,
        ended_s=100.5 + number,
        worker=worker,
    )


@pytest.mark.parametrize("tasks", [1, 99, 100, 101, 1000, 12_345])
def test_a_full_time_line_joins_neighbours_and_loses_nothing(tasks):
    line = Timeline(started_s=100.0, max_entries=100)
    for number in range(tasks):
        path = f"file-{number * 5 // tasks}"
        line.add(result(number, path, worker=f"paraload-{number % 3}"))
        assert len(line.entries()) <= 100
    entries = line.entries()
    assert line.tasks == tasks == sum(entry.tasks for entry in entries)
    assert sum(entry.bytes_read for entry in entries) == 10 * tasks
    assert min(entry.started_s for entry in entries) == 0.0
    assert max(entry.ended_s for entry in entries) == tasks - 0.5
    assert {entry.path for entry in entries} == {f"file-{n * 5 // tasks}" for n in range(tasks)}
    # Evenly: the beginning is not coarser than the end, a task is no longer than its neighbours.
    if tasks > 100:
        assert max(entry.tasks for entry in entries) <= 4 * tasks / 100
    for entry in entries:
        assert entry.end - entry.start >= entry.bytes_read
        assert entry.ended_s - entry.started_s <= 3 * entry.tasks


def test_a_time_line_without_neighbours_ends_and_counts_on():
    line = Timeline(started_s=100.0, max_entries=100)
    for number in range(1000):
        line.add(result(number, f"file-{number}", worker="paraload-0"))
    assert len(line.entries()) == 100
    assert line.tasks == 1000
    written = trace_of(report(*line.entries(), tasks=line.tasks))
    assert written["otherData"]["tasks_not_shown"] == 900


# ---------------------------------------------------------------------------------- the trace


def check_trace(trace):
    """The rules of the Trace Event Format for the phases that are used here."""
    assert isinstance(trace["traceEvents"], list)
    assert trace["displayTimeUnit"] in {"ms", "ns"}
    named = set()
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["args"], dict)
        match event["ph"]:
            case "M":
                assert event["name"] in {"process_name", "thread_name", "thread_sort_index"}
                key = "sort_index" if event["name"] == "thread_sort_index" else "name"
                assert isinstance(event["args"][key], int if key == "sort_index" else str)
                assert "ts" not in event
                if event["name"] == "thread_name":
                    named.add((event["pid"], event["tid"]))
            case "X":
                assert event["ts"] >= 0
                assert event["dur"] >= 0
                assert (event["pid"], event["tid"]) in named
            case "C":
                assert event["ts"] >= 0
                assert all(value >= 0 for value in event["args"].values())
            case other:
                pytest.fail(f"no event of phase {other!r} is written")


def of_phase(trace, phase):
    return [event for event in trace["traceEvents"] if event["ph"] == phase]


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_written_trace_is_in_the_trace_event_format(checkpoint, tmp_path, executor):
    done = load_it(checkpoint, executor=executor, max_workers=2)
    done.write_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    check_trace(trace)
    spans = of_phase(trace, "X")
    assert sum(span["args"]["bytes"] for span in spans) == done.bytes_read
    assert max(span["ts"] + span["dur"] for span in spans) <= done.seconds * 1e6
    assert len({span["tid"] for span in spans}) == len(workers_of(done.timeline))
    # The counter's steps hold the same bytes.
    counters = of_phase(trace, "C")
    rates = [(event["ts"] / 1e6, event["args"]["GiB/s"] * 2**30) for event in counters]
    held = sum(r * (b - a) for (a, r), (b, _) in pairwise(rates))
    assert held == pytest.approx(done.bytes_read, rel=0.02)


def test_times_are_microseconds_and_tracks_are_workers():
    trace = trace_of(
        report(
            timing("paraload-10", "a/b.distcp", start=5, end=25, bytes_read=20, ended_s=0.5),
            timing("paraload-2", started_s=0.25, ended_s=0.75, tasks=3, bytes_read=1 << 30),
        )
    )
    check_trace(trace)
    process, *threads = of_phase(trace, "M")
    assert process["args"]["name"] == "paraload load (threads, 2 workers)"
    names = {e["tid"]: e["args"]["name"] for e in threads if e["name"] == "thread_name"}
    assert names == {1: "paraload-2", 2: "paraload-10"}
    first, second = of_phase(trace, "X")
    assert (first["name"], first["tid"], first["ts"], first["dur"]) == ("b.distcp", 2, 0, 500_000)
    assert first["args"] == {
        "file": "a/b.distcp",
        "start": 5,
        "end": 25,
        "bytes": 20,
        "GiB/s": 0.0,
    }
    assert (second["ts"], second["dur"]) == (250_000, 500_000)
    assert (second["args"]["GiB/s"], second["args"]["tasks"]) == (2.0, 3)


def test_a_load_of_nothing_has_a_trace_too():
    trace = trace_of(report(seconds=0.0))
    check_trace(trace)
    assert [event["ph"] for event in trace["traceEvents"]] == ["M"]


@pytest.mark.parametrize(
    ("started_s", "ended_s"), [(0.0, 2.0), (0.5, 0.5), (0.501, 0.502), (1.99, 2.0), (0.123, 1.7)]
)
def test_throughput_keeps_every_byte(started_s, ended_s):
    line = [timing(started_s=started_s, ended_s=ended_s, bytes_read=1000)]
    steps = throughput_steps(line, 2.0)
    assert sum(rate * 0.01 for _, rate in steps) == pytest.approx(1000)
    inside = [at for at, rate in steps if rate]
    assert inside[0] <= started_s < inside[0] + 0.01 + 1e-9
    assert inside[-1] <= ended_s <= inside[-1] + 0.01 + 1e-9
