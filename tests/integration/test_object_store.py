"""Whole loads from object stores: the same bits as from a folder, in few requests."""

from __future__ import annotations

import functools
import math
import random
import time
from datetime import UTC, datetime, timedelta

import pytest
import torch
import torch.distributed.checkpoint as dcp
from obstore.store import MemoryStore, from_url
from torch.distributed.checkpoint import FileSystemReader

import paraload
from paraload import CheckpointReadError, ParallelObjectStoreReader
from paraload.errors import InvalidOptionError, MissingMetadataError, StorageReadError
from paraload.options import ReadOptions
from paraload.sources.object_store import ObjectStoreSource
from tests.integration import support
from tests.integration.test_slices import WINDOWS, empty, wanted
from tests.servers import BUCKET, S3_KEYS, faulty_server, s3_options, s3_server

MIB = 1 << 20
S3_URL = f"s3://{BUCKET}/runs/step-1"
REQUEST_BYTES = ObjectStoreSource.limits.efficient_bytes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with records above and below the size of a request, and its state dict."""
    folder = tmp_path_factory.mktemp("ckpt")
    torch.manual_seed(5)
    state = support.example_state() | {
        "w": torch.randn(900, 800),
        "huge": torch.randn(REQUEST_BYTES * 5 // 2 // 4),
        "empty": torch.zeros(0, 3),
        "flags": torch.rand(1000) > 0.5,
        "complex": torch.randn(100, dtype=torch.complex64),
    }
    return folder, support.save(folder, state)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module", autouse=True)  # before the check for leaks begins
def endpoint(checkpoint):
    """A server that has the checkpoint; it keeps long objects in open files."""
    with s3_server() as endpoint:
        upload(from_url(S3_URL, **s3_options(endpoint)), checkpoint[0])
        yield endpoint


@pytest.fixture(params=["memory", "file", "s3", "http"])
def open_reader(request, checkpoint):
    """Makes readers of the checkpoint in one kind of store."""
    folder, _ = checkpoint
    if request.param == "memory":
        store = MemoryStore()
        upload(store, folder, "runs/step-1/")
        return functools.partial(ParallelObjectStoreReader, store, "runs/step-1")
    if request.param == "file":
        return functools.partial(ParallelObjectStoreReader, folder.as_uri())
    if request.param == "s3":
        options = s3_options(request.getfixturevalue("endpoint"))
        return functools.partial(ParallelObjectStoreReader, S3_URL, **options)
    server = request.getfixturevalue("server")
    server.files |= content(folder)
    return functools.partial(ParallelObjectStoreReader, server.url)


@pytest.fixture
def server():
    with faulty_server({}) as server:
        yield server


def upload(store, folder, prefix=""):
    for name, data in content(folder).items():
        store.put(prefix + name, data)


def test_all_bits_are_those_that_torch_reads(checkpoint, open_reader):
    folder, state = checkpoint
    expected, got = support.empty_like(state), support.empty_like(state)
    support.load(FileSystemReader(folder), expected)
    reader = open_reader()
    support.assert_same(support.load(reader, got), expected)
    report = reader.last_report
    assert report.fallbacks == {}
    assert report.unverified == {}
    assert report.retries == 0


def test_a_server_that_refuses_head_is_read_too(checkpoint, server):
    folder, state = checkpoint
    server.files |= content(folder)
    server.choose_fault = lambda method, *_: 405 if method == "HEAD" else None
    got = support.empty_like(state)
    assert paraload.load(got, f"{server.url}/", no_dist=True).retries == 0
    support.assert_same(got, state)
    assert [method for method, *_ in server.requests].count("HEAD") == 1


def test_slices_are_those_of_the_matrix(checkpoint, open_reader):
    _, state = checkpoint
    targets = empty(WINDOWS)
    reader = open_reader()
    reader.read_data(*wanted(reader, targets, WINDOWS)).wait()
    for name, window in WINDOWS.items():
        assert torch.equal(targets[name], state["w"][window]), name


@pytest.mark.parametrize("executor", support.EXECUTORS)
def test_every_executor_reads_s3(checkpoint, endpoint, executor):
    _, state = checkpoint
    options = {"executor": executor, "max_workers": 2, **s3_options(endpoint)}
    reader = ParallelObjectStoreReader(S3_URL, **options)
    support.assert_same(support.load(reader, support.empty_like(state)), state)


def test_a_store_that_cannot_be_sent_to_processes_is_named(checkpoint):
    folder, state = checkpoint
    store = MemoryStore()
    upload(store, folder)
    reader = ParallelObjectStoreReader(store, executor="processes", max_workers=2)
    plan = support.plan_for(reader, support.empty_like(state))
    with pytest.raises(InvalidOptionError, match=r"'MemoryStore'.*use executor='threads'"):
        reader.read_data(*plan)


# Requests


def requests_of(server):
    return [(path, end - start) for method, path, start, end in server.gets if path != ".metadata"]


def test_many_small_records_take_few_requests(tmp_path, server):
    state = {f"layer.{n}.weight": torch.randn(16 << 10) for n in range(2000)}
    support.save(tmp_path, state, files=8)
    server.files |= content(tmp_path)
    reader = ParallelObjectStoreReader(server.url)
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    ideal = sum(
        -(-len(data) // REQUEST_BYTES)
        for path, data in server.files.items()
        if path.endswith(".distcp")
    )
    requests = requests_of(server)
    assert ideal <= len(requests) <= 1.1 * ideal
    assert reader.last_report.reads == len(requests)
    looks = [path for method, path, *_ in server.requests if method == "HEAD"]
    assert len(looks) == 8 + 2, "each file once, and the metadata also after the load"


def test_a_record_below_the_size_of_a_request_is_one_request(tmp_path, server):
    size = REQUEST_BYTES - MIB
    state = {f"w.{n}": torch.randn(size // 4) for n in range(4)}
    support.save(tmp_path, state, files=2)
    server.files |= content(tmp_path)
    reader = ParallelObjectStoreReader(server.url)
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert [nbytes >= size for _, nbytes in requests_of(server)] == [True] * 4


@pytest.mark.parametrize("verify", [True, False])
def test_a_long_record_is_requested_in_parts_that_are_no_shorter_than_needed(
    tmp_path, server, verify
):
    state = {"w": torch.ones(64 * MIB, dtype=torch.uint8)}
    support.save(tmp_path, state)
    server.files |= content(tmp_path)
    reader = ParallelObjectStoreReader(server.url, max_workers=2, verify=verify)
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    lengths = sorted(nbytes for _, nbytes in requests_of(server))
    assert lengths[0] <= 64 << 10, "the header"
    assert lengths[2] >= REQUEST_BYTES // 4, "one may be the rest of the record"


# Faults


@pytest.fixture
def small(tmp_path, server):
    """A checkpoint of many requests on the server."""
    torch.manual_seed(6)
    state = support.save(tmp_path, {f"w.{n}": torch.randn(700_000) for n in range(60)}, files=6)
    server.files |= content(tmp_path)
    return state


def test_random_faults_are_survived_and_counted(server, small):
    kinds = random.Random(8)
    faults = [kinds.choice([503, "cut", "reset", None, None]) for _ in range(20)]
    reader = ParallelObjectStoreReader(server.url, retries=8)
    targets = support.empty_like(small)
    plan = support.plan_for(reader, targets)
    server.faults = list(faults)
    reader.read_data(*plan)
    support.assert_same(targets, small)
    assert reader.last_report.retries == sum(fault is not None for fault in faults) > 5


def test_metadata_and_looks_at_files_are_retried_too(server, small):
    server.head_faults, server.faults, late = [503], ["cut"], [503, 429]
    reader = ParallelObjectStoreReader(
        server.url, progress=lambda _: server.head_faults.extend(late and [late.pop()])
    )
    targets = support.empty_like(small)
    support.load(reader, targets)
    support.assert_same(targets, small)
    assert server.head_faults == server.faults == late == []


def test_a_server_that_dies_for_good_is_one_error(server, small):
    targets = support.empty_like(small)
    reader = ParallelObjectStoreReader(server.url, retries=1)
    plan = support.plan_for(reader, targets)
    server.always = 503
    with pytest.raises(CheckpointReadError, match="503 Service Unavailable") as caught:
        reader.read_data(*plan)
    assert {failure.fqn for failure in caught.value.failures} == set(small)
    assert {type(failure) for failure in caught.value.failures} == {StorageReadError}


def test_a_dead_server_is_an_error_within_the_deadline(server, small):
    reader = ParallelObjectStoreReader(server.url, stall_timeout_s=2)
    plan = support.plan_for(reader, support.empty_like(small))
    server.always = 503
    started_s = time.monotonic()
    with pytest.raises(CheckpointReadError, match="503 Service Unavailable") as caught:
        reader.read_data(*plan)
    assert time.monotonic() - started_s < 2
    assert {type(failure) for failure in caught.value.failures} == {StorageReadError}
    assert len(server.gets) < 500


def test_an_object_that_changes_during_the_load_is_an_error(server, small):
    changed = min(path for path in server.files if path.endswith(".distcp"))
    reader = ParallelObjectStoreReader(
        server.url,
        progress=lambda _: server.versions.update({changed: '"other"'}),
        max_workers=1,
    )
    plan = support.plan_for(reader, support.empty_like(small))
    with pytest.raises(CheckpointReadError, match="replaced while it was read") as caught:
        reader.read_data(*plan)
    assert {failure.path for failure in caught.value.failures} == {changed}


class Credentials:
    """An obstore credential provider, and whether a server accepts what it gave.

    Attributes:
        calls: of the provider; call n gives the access key "key-n".
        first: the first key that the server accepts.
    """

    def __init__(self, lifetime_s=None):
        self.lifetime_s, self.calls, self.first = lifetime_s, 0, 1
        self.ends_s = {}

    def __call__(self):
        self.calls += 1
        expires_at = None
        if self.lifetime_s is not None:
            expires_at = datetime.now(UTC) + timedelta(seconds=self.lifetime_s)
            self.ends_s[self.calls] = time.monotonic() + self.lifetime_s
        return {
            "access_key_id": f"key-{self.calls}",
            "secret_access_key": "very-secret",
            "token": None,
            "expires_at": expires_at,
        }

    def are_valid(self, headers):
        number = int(headers["Authorization"].partition("Credential=key-")[2].partition("/")[0])
        return number >= self.first and time.monotonic() < self.ends_s.get(number, math.inf)


def reader_with(credentials, server, **options):
    """A reader of an S3 bucket that is the server's folder."""
    server.files = {f"{BUCKET}/run/{path}": data for path, data in server.files.items()}
    server.allows = credentials.are_valid
    return ParallelObjectStoreReader(
        f"s3://{BUCKET}/run",
        endpoint=server.url,
        region="eu-west-1",
        credential_provider=credentials,
        **options,
    )


def test_credentials_that_expire_during_the_load_are_renewed(server, small):
    credentials = Credentials(lifetime_s=1.0)
    server.latency_s = 0.1
    reader = reader_with(credentials, server, max_workers=2)
    targets = support.empty_like(small)
    started_s = time.monotonic()
    support.load(reader, targets)
    assert time.monotonic() - started_s > 2, "long enough for two expiries"
    support.assert_same(targets, small)
    assert credentials.calls > 2
    assert reader.last_report.retries == 0


def test_credentials_that_are_revoked_during_the_load_are_renewed(server, small):
    credentials = Credentials()
    reader = reader_with(
        credentials, server, progress=lambda _: setattr(credentials, "first", 2), max_workers=2
    )
    targets = support.empty_like(small)
    support.load(reader, targets)
    support.assert_same(targets, small)
    assert credentials.calls == 2
    assert reader.last_report.retries == 0


def test_access_that_is_denied_for_good_is_an_error_at_once(server, small):
    credentials = Credentials()
    reader = reader_with(
        credentials, server, progress=lambda _: setattr(credentials, "first", 99), max_workers=2
    )
    plan = support.plan_for(reader, support.empty_like(small))
    with pytest.raises(CheckpointReadError, match=f"s3://{BUCKET}/run denies access") as caught:
        reader.read_data(*plan)
    assert credentials.calls == 2, "tried once with fresh ones"
    failure = caught.value.failures[0]
    assert type(failure) is StorageReadError
    assert failure.path.endswith(".distcp")
    assert failure.path in str(failure)
    assert "Check the credentials" in str(failure)
    assert "very-secret" not in str(caught.value)


def test_a_missing_checkpoint_is_named(server):
    with pytest.raises(MissingMetadataError, match=f"{server.url}/step-1/.metadata"):
        ParallelObjectStoreReader(f"{server.url}/step-1").read_metadata()


# Options


def test_names_of_read_options_are_ours_and_all_others_obstore_s(endpoint):
    options = ReadOptions(retries=5)
    reader = ParallelObjectStoreReader(
        f"s3://{BUCKET}/x", options=options, max_workers=3, **s3_options(endpoint)
    )
    assert (reader.options.retries, reader.options.max_workers) == (5, 3)
    assert reader._store_options == s3_options(endpoint)
    with pytest.raises(InvalidOptionError, match="'no_such' is not valid for store 'S3'"):
        ParallelObjectStoreReader(f"s3://{BUCKET}/x", no_such=3)
    with pytest.raises(InvalidOptionError, match="'max_worker'; did you mean 'max_workers'"):
        ParallelObjectStoreReader(f"s3://{BUCKET}/x", max_worker=3)
    with pytest.raises(InvalidOptionError, match="max_workers=0"):
        ParallelObjectStoreReader(f"s3://{BUCKET}/x", max_workers=0)


def test_no_secret_is_in_the_path_of_a_reader(checkpoint):
    url = "https://me:s3cret@host/step-1?sig=t0ken"
    reader = ParallelObjectStoreReader(url)
    assert reader.path == reader.checkpoint_id == "https://host/step-1"
    reader.reset(reader.checkpoint_id)
    assert reader._url == url
    source = ParallelObjectStoreReader(S3_URL, **S3_KEYS)._make_source()
    assert repr(source) == f"ObjectStoreSource({S3_URL!r})"


def test_a_url_that_cannot_be_parsed_is_refused_without_its_password():
    for call in (functools.partial(paraload.load, {}), paraload.read, paraload.verify):
        with pytest.raises(InvalidOptionError, match=r"^http://\[bad/x: not a valid URL"):
            call("http://me:s3cret@[bad/x")


def test_dcp_may_name_another_checkpoint_each_time(checkpoint, tmp_path):
    folder, state = checkpoint
    reader = ParallelObjectStoreReader(tmp_path.as_uri())
    targets = support.empty_like(state)
    dcp.load(targets, checkpoint_id=folder.as_uri(), storage_reader=reader, no_dist=True)
    support.assert_same(targets, state)
    assert reader.checkpoint_id == folder.as_uri()


def test_it_is_exported():
    assert paraload.ParallelObjectStoreReader is ParallelObjectStoreReader
