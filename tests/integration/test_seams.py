"""A storage, a format and a destination that are not local files, torch.save and host memory."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp

from paraload import CheckpointReadError
from paraload.core.results import Located
from paraload.engine.commits import stuck_copies
from paraload.engine.load import Load
from paraload.errors import DtypeMismatchError, StalledReadError
from tests.integration import support
from tests.seams import FlatReader, LateDestination, flat_checkpoint
from tests.sources import MIB, RemoteLikeSource


def model():
    return {
        **{f"big.{n}": torch.randn(3 * MIB // 2) for n in range(4)},
        **{f"small.{n}": torch.randn(7, n + 1) for n in range(40)},
        "huge": torch.randn(5 * MIB),
        "half": torch.randn(900, 1000).half(),
        "none": torch.zeros(0, 3),
    }


def converted(saved):
    """Targets of another dtype, so that every byte passes the destination."""
    return {name: torch.zeros(it.shape, dtype=torch.float64) for name, it in saved.items()}


@pytest.fixture
def checkpoint():
    torch.manual_seed(4)
    saved = model()
    files, metadata = flat_checkpoint(saved, files=3)
    return saved, metadata, files


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_a_whole_load_through_all_three(checkpoint, executor):
    saved, metadata, files = checkpoint
    source, destination = RemoteLikeSource(files, latency_s=0.03), LateDestination()
    reader = FlatReader(metadata, source, destination, executor=executor, max_workers=4)
    targets = converted(saved)
    dcp.load(targets, storage_reader=reader, no_dist=True)
    for name, tensor in saved.items():
        assert torch.equal(targets[name], tensor.double()), name
    report = reader.last_report
    assert report.unverified == {"format has no checksum": len(saved) - 1}  # one has no bytes
    assert report.fallbacks == {}
    assert report.conversions["float16 to float64"] == 1
    assert destination.copies >= len(saved) - 1
    assert destination.under_way == 0


def test_known_layouts_need_no_request_of_their_own(checkpoint):
    saved, metadata, files = checkpoint
    source = RemoteLikeSource(files, latency_s=0.001)
    targets = support.empty_like(saved)
    # Several workers share the last records in shorter requests.
    reader = FlatReader(metadata, source, LateDestination(), max_workers=1)
    dcp.load(targets, storage_reader=reader, no_dist=True)
    support.assert_same(targets, saved)
    nbytes = sum(tensor.numel() * tensor.itemsize for tensor in saved.values())
    assert reader.last_report.bytes_read <= nbytes + 60 * len(saved)
    assert min(end - start for _, start, end in source.requests) > 512
    assert len(source.requests) <= 12


def test_big_records_are_located_without_a_read(checkpoint, monkeypatch):
    saved, metadata, files = checkpoint
    located = []
    really = Load._handle_outcome

    def handle(load, item, outcome):
        if isinstance(outcome, Located):
            located.append(outcome)
        return really(load, item, outcome)

    monkeypatch.setattr(Load, "_handle_outcome", handle)
    source = RemoteLikeSource(files, latency_s=0.001)
    targets = support.empty_like(saved)
    reader = FlatReader(metadata, source, LateDestination())
    dcp.load(targets, storage_reader=reader, no_dist=True)
    support.assert_same(targets, saved)
    assert [outcome.record is not None for outcome in located] == [True], "of the huge one"
    assert min(end - start for _, start, end in source.requests) > 64 << 10, "no headers"


def test_memory_is_the_budget_s_again_only_when_its_copy_is_done(checkpoint):
    saved, metadata, files = checkpoint
    source, destination = RemoteLikeSource(files, latency_s=0.001), LateDestination(polls=30)
    reader = FlatReader(metadata, source, destination, memory_budget_bytes=8 * MIB)
    targets = converted(saved)
    dcp.load(targets, storage_reader=reader, no_dist=True)
    for name, tensor in saved.items():
        assert torch.equal(targets[name], tensor.double()), name
    assert reader.last_report.peak_in_flight_bytes <= 8 * MIB


def test_a_copy_that_fails_is_the_failure_of_its_item(checkpoint):
    saved, metadata, files = checkpoint
    destination = LateDestination(error=RuntimeError("the device is lost"))
    source = RemoteLikeSource(files, latency_s=0.001)
    reader = FlatReader(metadata, source, destination)
    plan = support.plan_for(reader, converted(saved))
    with pytest.raises(CheckpointReadError, match="the device is lost") as caught:
        reader.read_data(*plan)
    assert {failure.fqn for failure in caught.value.failures} == set(saved) - {"none"}


def test_a_copy_that_is_never_done_has_the_load_s_deadline(checkpoint):
    saved, metadata, files = checkpoint
    destination = LateDestination(polls=10**9)
    source = RemoteLikeSource(files, latency_s=0.001)
    for name, text in (("huge", "copied into their targets: 'huge'"), ("half", "item 0 was being")):
        reader = FlatReader(metadata, source, destination, stall_timeout_s=0.3)
        plan = support.plan_for(reader, converted({name: saved[name]}))
        with pytest.raises(StalledReadError, match=text):
            reader.read_data(*plan)
    stuck_copies.clear()


def test_what_a_destination_refuses_is_known_before_the_first_byte(checkpoint):
    saved, metadata, files = checkpoint
    source = RemoteLikeSource(files, latency_s=0.001)
    reader = FlatReader(metadata, source, LateDestination(strict=True), strict=True)
    plan = support.plan_for(reader, converted(saved))
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(*plan)
    assert {type(failure) for failure in caught.value.failures} == {DtypeMismatchError}
    assert source.requests == []
