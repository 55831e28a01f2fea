"""A reader of another storage only says what its source is: metadata come from there as well."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp

import paraload
from paraload import CheckpointReadError
from paraload.adapters.dcp import load as load_module
from paraload.adapters.dcp.source_reader import SourceReader
from paraload.errors import ChangedFileError, MetadataError, MissingMetadataError
from paraload.sources.urls import without_credentials
from tests.integration import support
from tests.sources import RemoteLikeSource, UnavailableError


class RemoteReader(SourceReader):
    def __init__(self, source, **keywords):
        super().__init__("remote://bucket/step-1000", **keywords)
        self.source = source

    def _make_source(self):
        return self.source


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(3)
    state = support.save(tmp_path, support.example_state())
    return state, contents(tmp_path)


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_a_checkpoint_loads_from_its_source_alone(checkpoint, executor):
    state, files = checkpoint
    source = RemoteLikeSource(files, latency_s=0.001)
    reader = RemoteReader(source, executor=executor, max_workers=2)
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert reader.last_report.fallbacks == {}
    assert (".metadata", 0, len(files[".metadata"])) in source.requests


def test_a_busy_storage_is_asked_for_the_metadata_again(checkpoint):
    state, files = checkpoint
    reader = RemoteReader(RemoteLikeSource(files, latency_s=0, busy=2), retries=2)
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    with pytest.raises(MetadataError, match="503 Slow Down") as caught:
        RemoteReader(RemoteLikeSource(files, latency_s=0, busy=9), retries=1).read_metadata()
    assert isinstance(caught.value.__cause__, UnavailableError)


def test_metadata_longer_than_a_request_come_in_several(checkpoint, monkeypatch):
    _, files = checkpoint
    source = RemoteLikeSource(files, latency_s=0)
    monkeypatch.setattr(type(source), "limits", source.limits.__class__(max_request_bytes=64 << 10))
    monkeypatch.setattr("paraload.metadata.file_bytes._PIECE_BYTES", 1 << 30)
    padded = files[".metadata"] + bytes(200_000)  # behind the pickle
    source.files[".metadata"] = padded
    RemoteReader(source).read_metadata()
    ranges = [(start, end) for path, start, end in source.requests if path == ".metadata"]
    assert ranges[0] == (0, 64 << 10)
    assert ranges[-1][1] == len(padded)
    assert len(ranges) == -(-len(padded) // (64 << 10))


def test_a_missing_file_is_named_by_the_path_of_the_reader(checkpoint):
    _, files = checkpoint
    del files[".metadata"]
    reader = RemoteReader(RemoteLikeSource(files, latency_s=0))
    with pytest.raises(
        MissingMetadataError, match=r"remote://bucket/step-1000/\.metadata: no such"
    ):
        reader.read_metadata()


class Listing(RemoteLikeSource):
    def list_files(self):
        return iter(self.files)


def test_ranks_with_metadata_of_their_own_are_named(checkpoint):
    _, files = checkpoint
    files["__0.metadata"] = files["__2.metadata"] = files.pop(".metadata")
    reader = RemoteReader(Listing(files, latency_s=0))
    with pytest.raises(MissingMetadataError, match="ranks 0, 2 have separate metadata"):
        reader.read_metadata()
    assert list(reader.ranks_with_metadata()) == [0, 2]
    assert list(RemoteReader(RemoteLikeSource(files)).ranks_with_metadata()) == []


def test_load_takes_the_metadata_of_the_rank(checkpoint, monkeypatch):
    state, files = checkpoint
    files["__0.metadata"] = files.pop(".metadata")
    source = Listing(files, latency_s=0)

    def made(_, storage_options=None, **keywords):
        return RemoteReader(source, **keywords)

    monkeypatch.setattr(load_module, "reader_for", made)
    targets = support.empty_like(state)
    report = paraload.load(targets, "remote://bucket/step-1000", no_dist=True)
    support.assert_same(targets, state)
    assert report.items == len(state)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_file_that_changes_during_the_load_is_an_error(checkpoint, name):
    state, files = checkpoint
    source = RemoteLikeSource(files, latency_s=0)
    reader = RemoteReader(source)
    targets = support.empty_like(state)
    plan, planner = support.plan_for(reader, targets)
    real = planner.load_bytes
    changed = files[name][:-1] + bytes([files[name][-1] ^ 1])

    def rewrite(*args):
        source.files[name] = changed
        real(*args)

    planner.load_bytes = rewrite
    with pytest.raises(CheckpointReadError) as caught:
        reader.read_data(plan, planner)
    assert isinstance(caught.value, ChangedFileError)
    assert caught.value.paths == (name,)


def test_the_checkpoint_may_be_another_one_the_next_time(checkpoint):
    state, files = checkpoint
    reader = RemoteReader(RemoteLikeSource(files, latency_s=0))
    assert RemoteReader.validate_checkpoint_id("s3://bucket/step")
    assert not RemoteReader.validate_checkpoint_id("/folder")
    dcp.load(
        support.empty_like(state),
        checkpoint_id="remote://other",
        storage_reader=reader,
        no_dist=True,
    )
    assert reader.checkpoint_id == "remote://other"


def test_each_load_makes_a_source_of_its_own(tmp_path):
    reader = RemoteReader(None)
    for value in (1.0, 2.0):
        saved = support.save(tmp_path / str(value), {"w": torch.full((9,), value)})
        reader.source = RemoteLikeSource(contents(tmp_path / str(value)), latency_s=0)
        support.assert_same(support.load(reader, support.empty_like(saved)), saved)


def test_texts_have_no_credentials():
    signed = "https://me:secret@host:9000/bucket/step?X-Amz-Signature=secret#secret"
    assert without_credentials(signed) == "https://host:9000/bucket/step"
    assert without_credentials("s3://bucket/step") == "s3://bucket/step"
    assert without_credentials("memory:///step") == "memory:///step"
