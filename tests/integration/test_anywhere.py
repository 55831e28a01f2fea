"""load, read, verify, manifests and the commands take folders and URLs, DCP and safetensors."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import fsspec
import obstore
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemReader

import paraload
from paraload import CheckpointReadError, ParallelHuggingFaceReader, ParallelObjectStoreReader
from paraload.cli import main
from paraload.cli.bench.advice import Advice, Setting
from paraload.core.compat import HuggingFaceStorageReader
from paraload.errors import (
    FormatError,
    InvalidOptionError,
    MetadataError,
    MissingFileError,
    MissingMetadataError,
    StalledReadError,
    StorageReadError,
)
from paraload.manifest import compare_manifest, write_manifest
from paraload.metadata.folder_contents import names_of_parent
from paraload.sources.object_store import ObjectStoreSource
from tests.event_loop import start_event_loop
from tests.integration import support
from tests.servers import BUCKET, S3_KEYS, faulty_server, s3_options, s3_server

DCP = {
    "big": torch.arange(300_000.0).reshape(300, 1000),
    "small": torch.ones(3, 5).bfloat16(),
    "step": 7,
}
TENSORS = {name: value for name, value in DCP.items() if isinstance(value, torch.Tensor)}


def save_dcp(folder):
    support.save(folder, DCP, files=2)
    return DCP


def save_safetensors(folder):
    save_file({"big": TENSORS["big"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"small": TENSORS["small"]}, folder / "model-00002-of-00002.safetensors")
    (folder / "config.json").write_text("{}")
    return TENSORS


@pytest.fixture(scope="module", autouse=True)
def _event_loop():
    start_event_loop()


@contextmanager
def in_folder(folder):
    yield str(folder), {}


@contextmanager
def as_file_url(folder):
    yield folder.as_uri(), {}


@contextmanager
def in_s3(folder):
    with s3_server() as endpoint:
        options = s3_options(endpoint)
        url = f"s3://{BUCKET}/runs/step-1000"
        store = obstore.store.from_url(url, **options)
        for file in folder.iterdir():
            obstore.put(store, file.name, file.read_bytes())
        yield url, {**S3_KEYS, "endpoint": endpoint}


PLACES = {"folder": in_folder, "file URL": as_file_url, "S3": in_s3}
KINDS = {"DCP": save_dcp, "safetensors": save_safetensors}


@pytest.fixture(params=[(place, kind) for place in PLACES for kind in KINDS], ids=" ".join)
def checkpoint(request, tmp_path):
    place, kind = request.param
    folder = tmp_path / "step-1000"
    folder.mkdir()
    state = KINDS[kind](folder)
    with PLACES[place](folder) as (url, storage):
        yield state, url, storage


def test_every_entry_point(checkpoint, tmp_path, capsys):
    state, url, storage = checkpoint
    targets = support.empty_like(state)
    report = paraload.load(targets, url, no_dist=True, **storage)
    support.assert_same(targets, state)
    has_checksum = "step" in state
    assert report.unverified == ({} if has_checksum else {"format has no checksum": 2})

    support.assert_same(paraload.read(url, **storage), state)
    assert list(paraload.read(url, "sm*", max_workers=2, **storage)) == ["small"]

    found = paraload.verify(url, **storage)
    assert found.ok, found
    assert (found.remarks, found.tensors) == ((), 2)
    unverifiable = 0 if has_checksum else sum(it.nbytes for it in TENSORS.values())
    assert found.bytes_unverifiable == unverifiable

    manifest = tmp_path / "manifest.json"
    assert write_manifest(url, manifest, **storage) == 3
    assert paraload.verify(url, manifest=manifest, **storage).ok
    written = json.loads(manifest.read_text())
    next(iter(written["files"].values()))["digest"] = "0" * 64
    manifest.write_text(json.dumps(written))
    assert not paraload.verify(url, manifest=manifest, **storage).ok

    options = [text for item in storage.items() for text in ("--storage", "=".join(item))]
    capsys.readouterr()
    for command in ("inspect", "load", "verify"):
        assert main([command, url, "--json", "-", *options]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["path"] in {url, url.removeprefix("file://")}
    assert main(["bench", url, "--json", "-", *QUICK, *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["states"]) == ["remote" if storage else "warm"]
    has_torch = not storage and (has_checksum or HuggingFaceStorageReader is not FileSystemReader)
    executors = [arm["executor"] for arm in answer["arms"]]
    assert executors == [None] * has_torch + ["auto", "threads"]
    assert main(["inspect", url, *options]) == 0
    shown = capsys.readouterr().out
    assert "big" in shown
    assert "very-secret" not in shown


def test_a_web_server_without_listings(tmp_path):
    save_dcp(tmp_path)
    files = {f"ckpt/{file.name}": file.read_bytes() for file in tmp_path.iterdir()}
    with faulty_server(files) as server:
        url = f"{server.url}/ckpt"
        targets = support.empty_like(DCP)
        paraload.load(targets, url, no_dist=True)
        support.assert_same(targets, DCP)
        assert paraload.verify(url).ok
        with pytest.raises(CheckpointReadError, match=r"not-there/\.metadata: no such file"):
            paraload.load(targets, f"{server.url}/not-there", no_dist=True)


def test_damage_is_found_from_afar(tmp_path):
    save_dcp(tmp_path)
    path, offset, length = support.records_of(tmp_path)["big"]
    support.flip(path, offset + length // 2)
    with in_s3(tmp_path) as (url, storage):
        found = paraload.verify(url, **storage)
        assert [problem.kind for problem in found.problems] == ["checksum"]
        with pytest.raises(CheckpointReadError, match="CRC-32"):
            paraload.load(support.empty_like(DCP), url, no_dist=True, **storage)


def test_one_safetensors_file(tmp_path, capsys):
    file = tmp_path / "adapter.safetensors"
    save_file(TENSORS, file)
    with in_s3(tmp_path) as (url, storage):
        support.assert_same(paraload.read(f"{url}/adapter.safetensors", **storage), TENSORS)
    support.assert_same(paraload.read(file), TENSORS)
    assert main(["inspect", str(file)]) == 0
    assert "big" in capsys.readouterr().out


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "legacy"])
def test_one_file_of_torch_save(tmp_path, is_archive):
    def save(state):
        torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=is_archive)
        return (tmp_path / "model.pt").read_bytes()

    save(DCP)
    (tmp_path / "empty.pth").touch()
    with in_s3(tmp_path) as (url, storage):
        support.assert_same(paraload.read(f"{url}/model.pt", **storage), DCP)
        assert list(paraload.read(f"{url}/model.pt", "sm*", **storage)) == ["small"]
        with pytest.raises(FormatError, match="EOFError") as caught:
            paraload.read(f"{url}/empty.pth", **storage)
        assert caught.value.path == f"{url}/empty.pth"
        with pytest.raises(MissingFileError, match=f"'other.pt'.*{url}"):
            paraload.read(f"{url}/other.pt", **storage)
    state = {**DCP, "longer than a request": torch.randn(3 << 20)}
    data = save(state)
    with faulty_server({"hub/model.pt": data}) as server:
        server.faults = [503, "cut"]
        url = f"{server.url.replace('//', '//me:s3cret@')}/hub/model.pt?download=true"
        support.assert_same(paraload.read(url), state)
        assert len(server.ranges) >= len(data) // (8 << 20) + 2
        assert server.queries == {"download=true"}
        server.files["hub/my model.pt"] = data
        quoted = f"{server.url}/hub/my%20model.pt"
        assert list(paraload.read(quoted, "small")) == ["small"]
        server.files["hub/model.pt"] = data[:-100]
        with pytest.raises(FormatError, match="a dict of tensors") as caught:
            paraload.read(url)
        assert caught.value.path == f"{server.url}/hub/model.pt"


class Broken:
    def state_dict(self):
        raise ZeroDivisionError

    def load_state_dict(self, state):
        raise AssertionError


def test_connections_are_closed_after_errors_too(web_dcp, tmp_path):
    web_dcp.files |= {"bad/.metadata": b"no pickle", "bad/empty.pt": b""}
    url, bad = f"{web_dcp.url}/ckpt", f"{web_dcp.url}/bad"
    (tmp_path / "no-manifest").write_text("{}")
    for load in (
        lambda: paraload.read(url, "nothing like this"),
        lambda: paraload.load({"not there": torch.ones(1)}, url, no_dist=True),
        lambda: paraload.load({"model": Broken()}, url, no_dist=True),
        lambda: paraload.read(f"{bad}/empty.pt"),
        lambda: paraload.read(f"{bad}/not-there.pt"),
        lambda: paraload.verify(bad),
        lambda: list(compare_manifest(url, tmp_path / "no-manifest")),
        lambda: ParallelHuggingFaceReader(bad).read_metadata(),
    ):
        kinds = InvalidOptionError, CheckpointReadError, ZeroDivisionError
        with pytest.raises(kinds) as caught:
            load()
        until_s = time.monotonic() + 5
        while web_dcp.connections and time.monotonic() < until_s:
            time.sleep(0.01)
        assert web_dcp.connections == set(), caught


def test_a_storage_that_does_not_answer_is_not_asked_for_anything_else():
    with faulty_server({}) as server:
        server.choose_fault = lambda *_: 503
        options = {**S3_KEYS, "endpoint": server.url, "retries": 1}
        with pytest.raises(MetadataError, match="503 Service Unavailable"):
            paraload.load({}, "s3://bucket/ckpt", no_dist=True, **options)
        assert [path for _, path, *_ in server.requests] == ["bucket/ckpt/.metadata"] * 2
        with pytest.raises(StorageReadError, match="503 Service Unavailable") as caught:
            paraload.read("s3://bucket/ckpt/model.pt", **options)
        assert caught.value.path == "model.pt"


def test_storage_options_are_not_repeated_in_errors(capsys):
    assert main(["inspect", "s3://bucket/step", "--storage", "very-secret"]) == 2
    err = capsys.readouterr().err
    assert "expected NAME=VALUE" in err
    assert "very-secret" not in err


@pytest.fixture
def web(tmp_path):
    """A server of a safetensors checkpoint that obstore cannot list."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    with faulty_server(
        {"hub/model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    ) as it:
        yield it


@pytest.fixture
def web_dcp(tmp_path):
    """A server of a DCP checkpoint."""
    save_dcp(tmp_path)
    with faulty_server({f"ckpt/{it.name}": it.read_bytes() for it in tmp_path.iterdir()}) as it:
        yield it


QUICK = ("--rounds", "1", "--workers", "2", "--executors", "threads", "--no-cold")


def test_bench_measures_a_web_server(web_dcp, capsys, monkeypatch):
    url = f"{web_dcp.url}/ckpt"
    found = Advice(
        setting=Setting("threads", 2), is_fastest=True, speedups={}, torch_is_faster=False
    )
    monkeypatch.setattr("paraload.cli.bench.measure.advise", lambda *_: found)
    assert main(["bench", url, *QUICK]) == 0
    fs = fsspec.filesystem("http")  # torch's reader leaves its connections open
    fs.close_session(fs.loop, fs._session)
    fs.clear_instance_cache()
    out = capsys.readouterr().out
    assert "torch's FsspecReader, paraload with each setting" in out
    assert "from the server, medians of 1 round" in out
    assert "cold" not in out
    assert f"storage_reader=ParallelObjectStoreReader('{url}'" in out
    assert main(["bench", url.replace("http://", "http://me:very-secret@"), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "very-secret" not in out + err
    assert "not measured: its file systems have options and credentials of their own" in out
    assert f"storage_reader=ParallelObjectStoreReader('{url}'" in out


def test_bench_says_why_torch_has_no_part_in_it(capsys, tmp_path, web):
    assert main(["bench", f"{web.url}/hub/model.safetensors", *QUICK]) == 0
    has_reader = HuggingFaceStorageReader is not FileSystemReader
    none = "not measured: this version has no reader of safetensors"
    remote = "not measured: its reader of safetensors takes local folders only"
    assert (remote if has_reader else none) in capsys.readouterr().out
    half = {"half": torch.arange(4.0)}
    for number in range(2):
        sharding = {"half": {"saved_offsets": [4 * number]}}
        save_file(
            half,
            tmp_path / f"shard-{number}.safetensors",
            {"DCP_SHARDING_INFO": json.dumps(sharding)},
        )
    (tmp_path / "model.safetensors").unlink()
    assert main(["bench", str(tmp_path), *QUICK]) == 0
    out = capsys.readouterr().out
    sharded = "not measured: it cannot read a single chunk of a sharded tensor"
    assert (sharded if has_reader else none) in out
    assert "2 tensors in 2 files" in out


def test_bench_runs_without_the_package_safetensors(capsys, tmp_path, monkeypatch):
    save_file({"w": torch.arange(4.0)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert main(["bench", str(tmp_path), *QUICK]) == 0
    has_reader = HuggingFaceStorageReader is not FileSystemReader
    none = "not measured: this version has no reader of safetensors"
    package = "not measured: its reader of safetensors needs the package safetensors"
    assert (package if has_reader else none) in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", ["hub", "hub?download=true", "hub/model.safetensors?download=true"]
)
def test_safetensors_on_a_web_server_have_their_usual_name(web, path):
    support.assert_same(paraload.read(f"{web.url}/{path}"), TENSORS)
    assert web.queries == {path.partition("?")[2]}


def test_a_server_that_is_busy_for_a_moment_does_not_change_what_is_found(web):
    web.head_faults = [503, 503]
    support.assert_same(paraload.read(f"{web.url}/hub"), TENSORS)
    assert web.head_faults == []


def test_a_server_that_does_not_answer_is_not_awaited_for_longer_than_asked(web):
    web.latency_s = 60
    started_s = time.monotonic()
    with pytest.raises(StalledReadError, match=r"hub/\.metadata' was being read"):
        paraload.read(f"{web.url}/hub", stall_timeout_s=1)
    assert time.monotonic() - started_s < 2.5, "choosing the reader has waited for it already"
    assert len(web.requests) == 1


def test_the_parent_of_checkpoints_names_the_newest(tmp_path):
    for step, save in (("step-9", save_safetensors), ("step-10", save_dcp)):
        (tmp_path / step).mkdir()
        save(tmp_path / step)
    with s3_server() as endpoint:
        store = obstore.store.from_url(f"s3://{BUCKET}/runs", **s3_options(endpoint))
        for file in tmp_path.rglob("*.*"):
            obstore.put(store, file.relative_to(tmp_path).as_posix(), file.read_bytes())
        storage = {**S3_KEYS, "endpoint": endpoint}
        with pytest.raises(
            MissingMetadataError, match="newest of 2 checkpoints below this folder is 'step-10'"
        ):
            paraload.read(f"s3://{BUCKET}/runs/", **storage)
        with pytest.raises(MissingMetadataError, match="there are no files here"):
            paraload.read(f"s3://{BUCKET}/run", **storage)
        with pytest.raises(CheckpointReadError, match="Check the name of the bucket"):
            paraload.load({}, "s3://another/run", no_dist=True, **storage)


def test_what_is_below_a_folder_is_not_listed(tmp_path):
    """A prefix without ``.metadata`` may have millions of objects below it."""
    for run in range(30):
        folder = tmp_path / f"run-{run}"
        (folder / "logs").mkdir(parents=True)
        for number in range(10):
            (folder / "logs" / str(number)).touch()
    save_dcp(tmp_path / "run-7")
    save_dcp(tmp_path / "run-25")
    source = ObjectStoreSource(tmp_path.as_uri())
    names = names_of_parent(source)
    assert names == [*(f"run-{n}/logs/" for n in range(10, 25)), *names[15:]]
    assert "run-25/.metadata" in names
    words = "the only checkpoint below this folder is 'run-25'"
    with pytest.raises(MissingMetadataError, match=words):
        ParallelObjectStoreReader(tmp_path.as_uri()).read_metadata()


def test_what_choosing_a_reader_found_is_not_asked_again(web_dcp, capsys):
    url = f"{web_dcp.url}/ckpt"
    files = [path for path in web_dcp.files if path.endswith(".distcp")]

    def looks(call, *args):
        web_dcp.requests.clear()
        call(*args)
        found = [path for method, path, *_ in web_dcp.requests if method == "HEAD"]
        return found.count("ckpt/.metadata"), {found.count(path) for path in files}

    assert looks(paraload.read, url) == (2, {1}), "the metadata before and after the load"
    assert looks(paraload.verify, url) == (1, {1})
    assert looks(main, ["inspect", url]) == (1, {1})
    assert looks(main, ["load", url]) == (2, {1})


@pytest.mark.parametrize("as_url", [False, True], ids=["path", "URL"])
def test_a_manifest_beside_safetensors_is_not_part_of_them(tmp_path, as_url):
    file, manifest = tmp_path / "model.safetensors", tmp_path / "manifest.json"
    save_file(TENSORS, file)
    for place in (file, tmp_path):
        path = place.as_uri() if as_url else place
        assert [write_manifest(path, manifest) for _ in range(2)] == [1, 1]
        assert paraload.verify(path, manifest=manifest).ok


def test_a_reader_of_folders_takes_no_url_later_either(tmp_path):
    reader = paraload.ParallelFileSystemReader(tmp_path)
    with pytest.raises(InvalidOptionError, match="'s3://bucket/step' is a URL"):
        reader.reset("s3://me:secret@bucket/step")


INDEXED = "model.safetensors.index.json"


def serve_safetensors(folder):
    """A server of an indexed folder of safetensors, which cannot be listed."""
    save_safetensors(folder)
    weight_map = {
        "big": "model-00001-of-00002.safetensors",
        "small": "model-00002-of-00002.safetensors",
    }
    (folder / INDEXED).write_text(json.dumps({"weight_map": weight_map}))
    return faulty_server({f"ckpt/{path.name}": path.read_bytes() for path in folder.iterdir()})


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_is_told_also_where_metadata_are_missing(tmp_path, status):
    with serve_safetensors(tmp_path) as server:
        server.choose_fault = lambda _, path, __: status if "safetensors" in path else None
        with pytest.raises(MetadataError, match=f"{status}.*{INDEXED}") as caught:
            paraload.read(f"{server.url}/ckpt")
        assert not isinstance(caught.value, MissingMetadataError)


def test_each_request_of_a_look_is_retried(tmp_path, monkeypatch):
    monkeypatch.setattr("paraload.sources.retrying.random", SimpleNamespace(uniform=lambda *_: 0))
    asked = []

    def every_third(*request):
        asked.append(request)
        return 503 if len(asked) % 3 == 0 else None

    with serve_safetensors(tmp_path) as server:
        server.choose_fault = every_third
        found = paraload.read(f"{server.url}/ckpt")
    assert found.keys() == TENSORS.keys()
    assert len(asked) < 40
