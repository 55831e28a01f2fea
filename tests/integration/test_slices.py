"""Slices of big matrices: what is read for them, and which items share it."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from paraload import CheckpointReadError, ParallelFileSystemReader
from paraload.testing import FaultySource
from tests.integration import support

SHAPE = (900, 800)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    matrix = torch.randn(SHAPE)
    support.save(folder, {"w": matrix, "v": torch.randn(SHAPE)}, files=2)
    return folder, matrix


def wanted(reader, targets, windows, fqn="w"):
    """A plan that reads a window of one matrix into each target."""
    items = [
        ReadItem(
            type=LoadItemType.TENSOR,
            dest_index=MetadataIndex(name),
            dest_offsets=torch.Size((0, 0)),
            storage_index=MetadataIndex(fqn, torch.Size((0, 0))),
            storage_offsets=torch.Size((rows.start, columns.start)),
            lengths=torch.Size((rows.stop - rows.start, columns.stop - columns.start)),
        )
        for name, (rows, columns) in windows.items()
    ]
    planner = DefaultLoadPlanner()
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, True)
    planner.set_up_planner(dict(targets), metadata, True)
    return LoadPlan(items), planner


ROWS = slice(0, 900)
WINDOWS = {
    "left": (ROWS, slice(0, 100)),
    "middle": (ROWS, slice(350, 450)),
    "overlapping": (ROWS, slice(400, 500)),
    "right": (ROWS, slice(700, 800)),
}


def empty(windows):
    return {
        name: torch.full((rows.stop - rows.start, columns.stop - columns.start), -7.0)
        for name, (rows, columns) in windows.items()
    }


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_columns_of_one_matrix_are_read_once_for_all_who_want_them(saved, executor):
    folder, matrix = saved
    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2)
    targets = empty(WINDOWS)
    reader.read_data(*wanted(reader, targets, WINDOWS)).wait()
    for name, window in WINDOWS.items():
        assert torch.equal(targets[name], matrix[window]), name
    report = reader.last_report
    assert report.bytes_needed == 4 * 900 * 100 * 4
    assert matrix.nbytes * 0.99 < report.bytes_read < matrix.nbytes * 1.01
    # One look at the header, and the matrix in a few pieces: not four times that.
    assert report.reads < 20


#: Columns of a matrix so wide that what lies between them is worth going past.
NARROW = {name: (ROWS, slice(at, at + 9)) for name, at in (("one", 0), ("two", 5), ("last", 3991))}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    matrix = torch.randn(900, 4000)
    support.save(folder, {"w": matrix})
    return folder, matrix


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_of_narrow_columns_nothing_else_is_read(wide, executor):
    folder, matrix = wide
    reader = ParallelFileSystemReader(folder, executor=executor, max_workers=2)
    targets = empty(NARROW)
    targets["two"] = torch.zeros(9, 900).t()  # through a buffer
    reader.read_data(*wanted(reader, targets, NARROW)).wait()
    for name, window in NARROW.items():
        assert torch.equal(targets[name], matrix[window]), name
    report = reader.last_report
    assert report.bytes_needed == 3 * 900 * 9 * 4
    assert report.bytes_needed < report.bytes_read < report.bytes_needed + 10_000
    assert report.reads < 20


def test_a_source_that_cannot_read_rows_reads_through_them(wide):
    class Reader(ParallelFileSystemReader):
        def _make_source(self):
            return FaultySource(super()._make_source())

    folder, matrix = wide
    reader, targets = Reader(folder), empty(NARROW)
    reader.read_data(*wanted(reader, targets, NARROW)).wait()
    for name, window in NARROW.items():
        assert torch.equal(targets[name], matrix[window]), name
    assert reader.last_report.bytes_read > matrix.nbytes


def test_who_cannot_share_reads_alone(saved):
    folder, matrix = saved
    windows = WINDOWS | {
        "few": (slice(0, 5), slice(0, 10)),
        "lower": (slice(450, 900), slice(5, 9)),
    }
    targets = empty(windows)
    targets["right"] = torch.zeros(100, 900, dtype=torch.float64).t()
    reader = ParallelFileSystemReader(folder)
    reader.read_data(*wanted(reader, targets, windows)).wait()
    for name, window in windows.items():
        assert torch.equal(targets[name], matrix[window].to(targets[name].dtype)), name


@pytest.mark.parametrize("executor", ["sequential", "threads", "processes"])
@pytest.mark.parametrize(("matrix", "windows"), [("saved", WINDOWS), ("wide", NARROW)])
def test_a_file_that_ends_early_fails_all_who_share_it(
    matrix, windows, tmp_path, executor, monkeypatch, request
):
    folder, _ = request.getfixturevalue(matrix)
    reader = ParallelFileSystemReader(folder, executor=executor)
    plan, planner = wanted(reader, empty(windows), windows)
    path, _, _ = support.records_of(folder)["w"]
    content = path.read_bytes()
    # The records are located, and then the file is cut.
    (tmp_path / path.name).write_bytes(content)
    reader.path = tmp_path
    whole = type(reader).read_data

    from paraload.engine import load as _engine

    assemble = _engine.Load._assemble

    def cut_first(self, *located):
        with (tmp_path / path.name).open("r+b") as file:
            file.truncate(len(content) // 2)
        return assemble(self, *located)

    monkeypatch.setattr(_engine.Load, "_assemble", cut_first)
    with pytest.raises(CheckpointReadError) as caught:
        whole(reader, plan, planner)
    failures = caught.value.failures
    assert {failure.fqn for failure in failures} == {"w"}
    assert len(failures) == len(windows)
    assert len({id(failure) for failure in failures}) == len(failures)
    assert all("ends too early" in str(failure) for failure in failures)


@pytest.mark.parametrize("window", [(slice(100, 300), slice(0, 800)), (ROWS, slice(5, 6))])
def test_a_slice_is_what_torch_makes_of_it(saved, window):
    folder, matrix = saved
    got, expected = empty({"w": window}), empty({"w": window})
    for reader, targets in (
        (ParallelFileSystemReader(folder), got),
        (FileSystemReader(folder), expected),
    ):
        reader.read_data(*wanted(reader, targets, {"w": window})).wait()
    assert torch.equal(got["w"], expected["w"])
    assert torch.equal(got["w"], matrix[window])


@pytest.mark.parametrize("is_transposed", [False, True])
def test_rows_are_read_at_once_unless_they_are_spread_over_their_record(tmp_path, is_transposed):
    matrix = torch.randn(3000, 1000)
    if is_transposed:
        matrix = matrix.t().contiguous().t()  # the first rows are all over the file
    support.save(tmp_path, {"w": matrix})
    windows = {"few": (slice(0, 80), slice(0, 1000))}
    reader = ParallelFileSystemReader(tmp_path, max_workers=2)
    targets = {"few": torch.empty_like(matrix[:80])}  # in the same order of dimensions
    reader.read_data(*wanted(reader, targets, windows)).wait()
    assert torch.equal(targets["few"], matrix[:80])
    report = reader.last_report
    assert (report.tasks == 1) is not is_transposed
    assert report.unverified == {"read in part": 1}
