"""Every failure ends in one error with all details, and leaks nothing."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

import paraload
from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.core.compat import ExtensionRegistry, StreamTransformExtension, ZStandard
from paraload.errors import (
    ChecksumMismatchError,
    FormatError,
    ItemReadError,
    MissingFileError,
    ShortFileError,
    TransformError,
    WorkerDiedError,
)
from tests.integration import hooks, support
from tests.integration.support import EXECUTORS

IN_PROCESSES = ["processes", "pool"]


def failing(folder, saved, executor="threads", **keywords):
    """Load, which must fail; the error and the targets."""
    targets = support.empty_like(saved)
    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2, **keywords)
    plan, planner = support.plan_for(reader, targets)
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(plan, planner)
    return caught.value, targets


def names(error):
    return {failure.fqn for failure in error.failures}


def assert_others_loaded(targets, saved, error):
    for name, value in saved.items():
        if isinstance(value, torch.Tensor) and name not in names(error):
            assert torch.equal(targets[name], value), name


def assert_untouched(targets, saved):
    support.assert_same(targets, support.empty_like(saved))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_missing_file_is_named_and_nothing_is_read(folder, saved, executor):
    lost = support.data_files(folder)[0]
    affected = {name for name, (file, *_) in support.records_of(folder).items() if file == lost}
    lost.unlink()
    error, targets = failing(folder, saved, executor)
    assert names(error) == affected
    assert all(isinstance(failure, MissingFileError) for failure in error.failures)
    assert all(name in str(error) for name in affected)
    assert lost.name in str(error)
    assert_untouched(targets, saved)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_cut_file_is_named_with_what_it_should_have(folder, saved, executor):
    file, offset, length = support.records_of(folder)["big.0"]
    with file.open("r+b") as opened:
        opened.truncate(offset + length // 2)
    error, targets = failing(folder, saved, executor)
    assert "big.0" in names(error)
    failure = next(failure for failure in error.failures if failure.fqn == "big.0")
    assert isinstance(failure, ShortFileError)
    assert failure.expected == f"at least {offset + length} bytes"
    assert failure.got == f"{offset + length // 2} bytes"
    assert_untouched(targets, saved)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", ["big.1", "small.1"])
def test_one_flipped_bit_is_found(folder, saved, executor, name):
    file, offset, length = support.records_of(folder)[name]
    payload = saved[name].numel() * saved[name].element_size()
    support.flip(file, offset + support.PAYLOAD + payload // 2)
    error, targets = failing(folder, saved, executor)
    (failure,) = error.failures
    assert isinstance(failure, ChecksumMismatchError)
    assert (failure.fqn, failure.path) == (name, file.name)
    assert (failure.start, failure.end) == (offset, offset + length)
    assert "CRC-32" in failure.expected
    assert_others_loaded(targets, saved, error)


def test_damaged_bytes_are_loaded_with_verify_false(folder, saved):
    file, offset, _ = support.records_of(folder)["big.1"]
    support.flip(file, offset + support.PAYLOAD + 10_000)
    reader = ParallelFileSystemReader(folder, verify=False)
    got = support.load(reader, support.empty_like(saved))
    assert not torch.equal(got["big.1"], saved["big.1"])
    assert reader.last_report.bytes_verified == 0
    assert reader.last_report.unverified == {"verify=False": len(saved)}


@pytest.mark.parametrize("name", ["big.1", "small.1", "step"])
def test_no_flipped_bit_of_a_record_goes_unseen(tmp_path, name):
    """Every 7th byte of a record in turn: the right tensor, or an error; never another tensor."""
    saved = {"big.1": torch.randn(300, 300), "small.1": torch.ones(9), "step": [1, 2]}
    support.save(tmp_path / "x", saved, files=1)
    file, offset, length = support.records_of(tmp_path / "x")[name]
    ends = range(min(length, 1100)), range(max(0, length - 700), length)
    for at in sorted({n for end in ends for n in end})[::7]:
        support.flip(file, offset + at, bit=1 << (at % 8))
        targets = support.empty_like(saved)
        reader = ParallelFileSystemReader(tmp_path / "x")
        plan, planner = support.plan_for(reader, targets)
        try:
            reader.read_data(plan, planner)
            outcome = None
        except CheckpointReadError as error:
            outcome = error
        if outcome is None:
            support.assert_same(targets, saved)
        else:
            assert names(outcome) == {name}
        support.flip(file, offset + at, bit=1 << (at % 8))


def test_every_broken_file_is_reported_in_one_error(folder, saved):
    for file in support.data_files(folder):
        file.write_bytes(b"")
    error, _ = failing(folder, saved)
    assert names(error) == set(saved)
    first_line, _, _ = str(error).partition("\n")
    assert f"cannot fill {len(saved)} of {len(saved)} items" in first_line
    assert repr(str(folder)) in first_line
    assert all(file.name in str(error) for file in support.data_files(folder))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_error_goes_through_pickle_with_its_notes(folder, saved, executor):
    file, offset, _ = support.records_of(folder)["small.1"]
    support.flip(file, offset + support.PAYLOAD + 100)
    error, _ = failing(folder, saved, executor)
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error)
    assert not hasattr(back, "__notes__"), "the text says everything"
    assert "Traceback" in back.failures[0].traceback_text
    assert [failure.fqn for failure in back.failures] == ["small.1"]
    assert str(error).startswith(f"1 of {len(saved)} items of the checkpoint")
    error, _ = failing(folder, saved, executor, transform=hooks.refuse)
    back = pickle.loads(pickle.dumps(error))
    assert back.__notes__ == error.__notes__
    assert "Traceback" in back.__notes__[0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_traceback_of_a_hook_is_in_the_error(folder, saved, executor):
    error, _ = failing(folder, saved, executor, transform=hooks.refuse)
    assert names(error) == set(saved)
    assert "no key for big.0" in str(error)
    assert any("in refuse" in note for note in error.__notes__)


# ------------------------------------------------------------------ transforms


def test_zstd_is_decoded_by_every_executor(tmp_path):
    state = support.example_state()
    support.save(tmp_path / "z", state, _extensions=[ZStandard()])
    for executor in EXECUTORS:
        reader = ParallelFileSystemReader(tmp_path / "z", executor=executor, max_workers=2)
        support.assert_same(support.load(reader, support.empty_like(state)), state)
        assert reader.last_report.executor == executor


@pytest.mark.parametrize("executor", ["threads", "processes"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_zstd_item_is_named(tmp_path, executor, damage):
    state = support.example_state(big=1, small=2)
    support.save(tmp_path / "z", state, files=1, _extensions=[ZStandard()])
    file, offset, length = support.records_of(tmp_path / "z")["big.0"]
    if damage == "flip":
        support.flip(file, offset + length // 2)
    else:
        data = bytearray(file.read_bytes())
        data[offset + length // 2 : offset + length] = bytes(length - length // 2)
        file.write_bytes(data)
    error, targets = failing(tmp_path / "z", state, executor)
    (failure,) = error.failures
    assert failure.fqn == "big.0"
    assert isinstance(failure, TransformError | ChecksumMismatchError | FormatError)
    assert_others_loaded(targets, state, error)


class Rot(StreamTransformExtension):
    """A user's own transform, registered with the reader as torch has it."""

    @staticmethod
    def from_descriptor(version):
        return Rot()

    @staticmethod
    def registry_name():
        return "stream.rot"

    def get_descriptor(self):
        return "stream.rot/1"

    def transform_to(self, output):
        return Rotating(output)

    def transform_from(self, input):  # noqa: A002 - torch's name
        import io

        return io.BytesIO(input.read().translate(hooks.SCRAMBLED))


class Rotating:
    def __init__(self, output):
        self.output = output

    def write(self, data):
        return self.output.write(bytes(data).translate(hooks.SCRAMBLED))

    def tell(self):
        return self.output.tell()

    def flush(self):
        self.output.flush()

    def close(self):
        self.output.flush()


def registry():
    known = ExtensionRegistry()
    known.extensions["stream.rot"] = Rot
    return known


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_extension_of_the_user_is_used(tmp_path, executor):
    state = support.example_state(big=2, small=2)
    support.save(tmp_path / "r", state, _extensions=[Rot()])
    reader = ParallelFileSystemReader(tmp_path / "r", registry(), executor=executor, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(state)), state)


def test_an_unknown_descriptor_is_a_typed_error(tmp_path):
    state = support.example_state(big=1, small=1)
    support.save(tmp_path / "r", state, _extensions=[Rot()])
    error, _ = failing(tmp_path / "r", state)
    assert names(error) == set(state)
    assert all(isinstance(failure, TransformError) for failure in error.failures)
    assert "no decoder for transform 'stream.rot/1'" in str(error)
    assert "_extension_registry" in str(error)


# ----------------------------------------------------------------- workers that die, loads that end


@pytest.mark.parametrize("executor", IN_PROCESSES)
def test_a_killed_worker_is_an_error_within_seconds(folder, saved, executor):
    reader = ParallelFileSystemReader(
        folder, executor=executor, max_workers=2, slice_file=hooks.kill_worker
    )
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    started = time.monotonic()
    with pytest.raises(WorkerDiedError, match=r"worker process died.*\.distcp.*bytes \["):
        reader.read_data(plan, planner)
    assert time.monotonic() - started < 20


class Stopped(Exception):  # noqa: N818 - no error at all
    pass


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", [Stopped, KeyboardInterrupt])
def test_a_progress_callback_that_raises_stops_the_load(folder, saved, executor, kind):
    calls = []

    def progress(snapshot):
        calls.append(snapshot)
        raise kind("enough")

    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2, progress=progress)
    plan, planner = support.plan_for(reader, support.empty_like(saved))
    with pytest.raises(kind, match="enough"):
        reader.read_data(plan, planner)
    assert len(calls) == 1
    assert reader.last_report is None


def test_progress_goes_up_to_the_end(folder, saved):
    seen = []
    reader = ParallelFileSystemReader(folder, max_workers=2, progress=seen.append)
    support.load(reader, support.empty_like(saved))
    assert [s.bytes_done for s in seen] == sorted(s.bytes_done for s in seen)
    assert seen[-1].items_done == seen[-1].items_total == len(saved)
    assert seen[-1].files_done == seen[-1].files_total == 3
    assert seen[-1].bytes_done == seen[-1].bytes_total == reader.last_report.bytes_needed


INTERRUPTED = """
    import os, signal, sys, threading, time, warnings
    warnings.filterwarnings("ignore")
    from multiprocessing.shared_memory import SharedMemory
    import psutil, torch
    import torch.distributed.checkpoint as dcp
    from paraload import ParallelFileSystemReader
    from tests.integration import support

    folder, executor = sys.argv[1:]
    targets = {name: torch.zeros(500, 1000) for name in map("w{}".format, range(60))}
    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2)
    plan, planner = support.plan_for(reader, targets)

    segments = []
    create = SharedMemory.__init__

    def noting(self, *args, **keywords):
        create(self, *args, **keywords)
        segments.append(self.name)

    SharedMemory.__init__ = noting

    def held():
        children = [child.pid for child in psutil.Process().children(recursive=True)]
        shm = [name for name in segments if os.path.exists(f"/dev/shm/{name}")]
        return len(os.listdir("/proc/self/fd")), threading.active_count(), children, shm

    before = held()
    interrupted = 0
    for delay in (0.001, 0.004, 0.01, 0.03, 0.1, 0.2, 0.3):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()  # on a busy machine the signal is there before this returns
            while True:
                reader.read_data(plan, planner)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert held() == before, (delay, held(), before)
    reader.read_data(plan, planner)
    print("interrupted", interrupted)
"""


@pytest.mark.parametrize("executor", EXECUTORS)
def test_ctrl_c_at_any_moment_leaves_nothing_behind(tmp_path, executor):
    support.save(tmp_path / "x", {f"w{n}": torch.randn(500, 1000) for n in range(60)})
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(tmp_path / "x"), executor],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert child.stdout == "interrupted 7\n", child.stderr
    assert child.returncode == 0


def test_a_sigint_of_the_whole_group_is_the_caller_s_alone(tmp_path):
    """As a terminal does it: worker processes get the signal too, and must not print tracebacks."""
    support.save(tmp_path / "x", {f"w{n}": torch.randn(500, 1000) for n in range(60)})
    code = """
        import sys, warnings
        warnings.filterwarnings("ignore")
        import torch, paraload
        targets = {name: torch.zeros(500, 1000) for name in map("w{}".format, range(60))}
        print("ready", flush=True)
        while True:
            paraload.load(targets, sys.argv[1], executor="processes", max_workers=2, no_dist=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "x")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.6)
        child.send_signal(0)
        import os

        os.killpg(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()
    assert child.returncode != 0
    assert errors.count("Traceback") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_paraload_load_raises_the_error_itself_where_there_is_no_group(folder, saved):
    support.data_files(folder)[0].unlink()
    with pytest.raises(CheckpointReadError) as caught:
        paraload.load(support.empty_like(saved), folder, no_dist=True)
    assert isinstance(caught.value.failures[0], ItemReadError)


@pytest.mark.parametrize("known_size", [True, False])
def test_a_record_that_inflates_beyond_what_it_can_be_is_an_error(tmp_path, known_size):
    import zstandard

    from paraload.testing import make_checkpoint

    make_checkpoint(tmp_path, {"w": torch.arange(100), "note": "text"}, zstd=True, files=1)
    (file,) = support.data_files(tmp_path)
    bomb = zstandard.ZstdCompressor()
    nbytes = 1 << 30
    stream = bomb.compressobj(size=nbytes if known_size else -1)
    data = b"".join(stream.compress(bytes(1 << 20)) for _ in range(nbytes >> 20)) + stream.flush()
    file.write_bytes(data)
    with support.rewritten(tmp_path) as metadata:
        for info in metadata.storage_data.values():
            info.offset, info.length = 0, len(data)
    targets = {"w": torch.zeros(100, dtype=torch.int64), "note": None}
    reader = ParallelFileSystemReader(tmp_path)
    plan, planner = support.plan_for(reader, targets)
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(plan, planner)
    assert {type(failure) for failure in caught.value.failures} == {TransformError}
    assert {failure.fqn for failure in caught.value.failures} == {"w", "note"}
    assert "more than it can be" in str(caught.value) or "longer than it can" in str(caught.value)
