"""Checkpoints on servers that others wrote: nginx as web server and as S3, azurite as Azure."""

from __future__ import annotations

import base64
import os
import time
import traceback

import pytest
import torch
from obstore.store import from_url
from safetensors.torch import save_file

import paraload
from paraload import ParallelFsspecReader, ParallelObjectStoreReader
from paraload.errors import CheckpointReadError, MissingMetadataError, StorageReadError
from tests.azure import KEY, azure_options, azure_server
from tests.event_loop import start_event_loop
from tests.integration import support
from tests.servers import BUCKET, nginx_server

FILES, FILE_BYTES = 8, 512 << 10
WRONG_KEY = base64.b64encode(b"a key of another account").decode()


@pytest.fixture(autouse=True, scope="session")
def _event_loop():
    start_event_loop()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders with checkpoints: ``dcp``, ``wide`` and ``safetensors``."""
    root = tmp_path_factory.mktemp("buckets")
    for name in ("dcp", "wide", "safetensors"):
        (root / name).mkdir()
    return root


@pytest.fixture(scope="module")
def state(root):
    return support.save(root / "dcp", support.example_state())


@pytest.fixture(scope="module")
def wide(root):
    """As many files as tensors, of the same length."""
    state = {f"w.{n}": torch.randn(FILE_BYTES // 4) for n in range(FILES)}
    return support.save(root / "wide", state, files=FILES)


@pytest.fixture(scope="module")
def tensors(root, state):
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    half = len(tensors) // 2
    for number, names in enumerate((list(tensors)[:half], list(tensors)[half:])):
        part = {name: tensors[name] for name in names}
        save_file(part, root / "safetensors" / f"model-0000{number + 1}-of-00002.safetensors")
    return tensors


@pytest.fixture(scope="module", autouse=True)  # before the check for leaks begins
def nginx(root, state, wide, tensors):
    with nginx_server(root, bytes_per_second=FILE_BYTES) as url:
        yield url


@pytest.fixture(scope="module", autouse=True)
def azure(root, state, tensors):
    """The endpoint of a server with all files of ``root``."""
    with azure_server() as endpoint:
        options = azure_options(endpoint)
        store = from_url(f"az://{BUCKET}", **options, client_options={"allow_http": True})
        for file in (file for name in ("dcp", "safetensors") for file in (root / name).iterdir()):
            store.put(file.relative_to(root).as_posix(), file.read_bytes())
        del store
        yield endpoint


@pytest.fixture
def s3(nginx):
    """The options of clients without credentials."""
    return {"endpoint": nginx, "skip_signature": True, "region": "eu-west-1"}


@pytest.fixture
def gs(nginx):
    return {
        "google_base_url": nginx,
        "google_skip_signature": True,
        "client_options": {"allow_http": True},
    }


@pytest.fixture(params=["HTTP", "S3", "Google", "Azure"])
def place(request, nginx, azure, s3, gs):
    """URL of the folder with all checkpoints, and the options of its storage."""
    return {
        "HTTP": (f"{nginx}/full", {}),
        "S3": ("s3://full", s3),
        "Google": ("gs://full", gs),
        "Azure": (f"az://{BUCKET}", azure_options(azure)),
    }[request.param]


def test_all_bits_arrive(place, state):
    url, options = place
    reader = ParallelObjectStoreReader(f"{url}/dcp", **options)
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert reader.last_report.unverified == {}
    assert reader.last_report.retries == 0


def test_all_bits_arrive_through_fsspec(nginx, state):
    reader = ParallelFsspecReader(f"{nginx}/full/dcp")
    support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert reader.last_report.unverified == {}


def test_load_read_and_verify_choose_the_reader(place, state):
    url, options = place
    targets = support.empty_like(state)
    paraload.load(targets, f"{url}/dcp", no_dist=True, **options)
    support.assert_same(targets, state)
    assert paraload.verify(f"{url}/dcp", **options).ok
    assert list(paraload.read(f"{url}/dcp", "small.1", **options)) == ["small.1"]


def test_safetensors_of_an_s3_bucket_are_listed(s3, tensors):
    support.assert_same(paraload.read("s3://full/safetensors", **s3), tensors)


def test_safetensors_of_a_container_are_listed(azure, tensors):
    url = f"az://{BUCKET}/safetensors"
    support.assert_same(paraload.read(url, **azure_options(azure)), tensors)


def test_a_rate_for_each_connection_is_no_limit_for_the_load(nginx, wide):
    targets = support.empty_like(wide)
    began_s = time.monotonic()
    paraload.load(targets, f"{nginx}/rated/wide", no_dist=True)
    took_s = time.monotonic() - began_s
    support.assert_same(targets, wide)
    assert took_s < FILES / 2, "one connection takes a second for each file"


def test_a_file_that_was_cut_is_named(nginx, root, state):
    cut = root / "cut"
    cut.mkdir()
    for file in (root / "dcp").iterdir():
        (cut / file.name).write_bytes(file.read_bytes())
    victim = support.data_files(cut)[0]
    os.truncate(victim, victim.stat().st_size // 2)
    with pytest.raises(CheckpointReadError, match=f"ShortFileError: .*{victim.name}"):
        paraload.load(support.empty_like(state), f"{nginx}/full/cut", no_dist=True)


@pytest.mark.parametrize("bucket", ["full", "other"])
def test_a_checkpoint_that_is_not_there_is_named(s3, bucket):
    with pytest.raises((MissingMetadataError, StorageReadError), match=f"s3://{bucket}/none"):
        paraload.load({}, f"s3://{bucket}/none", no_dist=True, **s3)


def test_a_wrong_key_is_told_and_not_shown(azure, state):
    targets = support.empty_like(state)
    with pytest.raises(StorageReadError, match=f"az://{BUCKET}/dcp denies access: 403") as raised:
        paraload.load(
            targets, f"az://{BUCKET}/dcp", no_dist=True, **azure_options(azure, key=WRONG_KEY)
        )
    text = repr(raised.value) + "".join(traceback.format_exception(raised.value))
    assert WRONG_KEY not in text
    assert KEY not in text
    support.assert_same(targets, support.empty_like(state))


def test_a_container_that_is_not_there_is_named(azure):
    with pytest.raises(StorageReadError, match="az://other/dcp: 404 Not Found"):
        paraload.load({}, "az://other/dcp", no_dist=True, **azure_options(azure))
