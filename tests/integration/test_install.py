"""``paraload.install()``: what torch's own readers load, and that nothing of it is left."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

import paraload
from paraload import cli
from paraload.adapters.dcp import install as module
from paraload.core.compat import HuggingFaceStorageReader
from paraload.errors import (
    ChecksumMismatchError,
    IncompatibleTorchError,
    InvalidOptionError,
    MissingMetadataError,
    UnsafeMetadataError,
)
from tests.integration import support
from tests.integration.ranks import run_ranks
from tests.old_torch import (
    HF_READER,
    OWN_METADATA,
    READS_ALL_KEYS,
    QuantizedHuggingFaceStorageReader,
    torch_fsspec,
)

FsspecReader = torch_fsspec.FsspecReader
SOURCE = Path(paraload.__file__).parents[1]
CLASSES = (
    FileSystemReader,
    FsspecReader,
    HuggingFaceStorageReader,
    QuantizedHuggingFaceStorageReader,
)


def attributes():
    """All that ``install()`` could change."""
    return [dict(vars(kind)) for kind in CLASSES]


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = attributes()
    yield
    paraload.uninstall()
    assert attributes() == before
    assert not module._state.active


def load_id(state, folder):
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


# --------------------------------------------------------------------------- who reads through it


def test_a_checkpoint_id(saved, folder):
    installation = paraload.install(max_workers=2)
    support.assert_same(load_id(support.empty_like(saved), folder), saved)
    report = installation.last_report
    assert report.items == len(saved)
    assert report.workers == 2
    assert report.bytes_verified > 0


def test_a_reader_that_was_made_and_imported_before(saved, folder):
    reader = FileSystemReader(folder)
    with paraload.installed() as installation:
        support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert installation.last_report is reader.last_report
    assert type(reader) is FileSystemReader


@READS_ALL_KEYS.needed
def test_keys_and_conversions_of_torch(saved, folder, tmp_path):
    with paraload.installed() as installation:
        part = _load_state_dict_from_keys({"big.0", "step"}, checkpoint_id=folder)
        assert installation.last_report.items == 2
        dcp_to_torch_save(folder, tmp_path / "whole.pt")
        assert installation.last_report.items == len(saved)
    support.assert_same(part, {name: saved[name] for name in ("big.0", "step")})
    support.assert_same(torch.load(tmp_path / "whole.pt"), saved)


def copy_to(url, folder):
    """torch 2.6 cannot write there: it wants a file descriptor."""
    fsspec.filesystem("memory").put(f"{folder}/", f"{url}/", recursive=True)


def test_fsspec(saved, folder):
    url = f"memory://{uuid.uuid4()}"
    copy_to(url, folder)
    with paraload.installed() as installation:
        support.assert_same(load_id(support.empty_like(saved), url), saved)
        assert installation.last_report.items == len(saved)
        installation.last_report = None
        support.assert_same(support.load(FsspecReader(url), support.empty_like(saved)), saved)
        assert installation.last_report.items == len(saved)


class OwnStream(FileSystem):
    opened = 0

    def create_stream(self, path, mode):
        type(self).opened += 1
        return super().create_stream(path, mode)


def test_a_file_system_that_replaces_torchs(saved, folder):
    reader = FileSystemReader(folder)
    reader.fs = OwnStream()
    with paraload.installed():
        support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert OwnStream.opened
    assert reader.last_report.items == len(saved)


def test_metadata_of_one_rank(saved, tmp_path):
    writer = dcp.FileSystemWriter(tmp_path)
    dcp.save(saved, storage_writer=writer, no_dist=True, use_collectives=False)
    with paraload.installed() as installation:
        support.assert_same(load_id(support.empty_like(saved), tmp_path), saved)
    assert installation.last_report.items == len(saved)


def two_files(folder, extra=()):
    folder.mkdir()
    state = {"a": torch.randn(64, 32), "b": torch.randn(7).to(torch.bfloat16), "c": torch.tensor(3)}
    save_file({"a": state["a"], "c": state["c"], **dict(extra)}, folder / "one.safetensors")
    save_file({"b": state["b"]}, folder / "two.safetensors")
    return state


@HF_READER.needed
@pytest.mark.parametrize("threads", [1, 2])
def test_hugging_face(tmp_path, threads):
    state = two_files(tmp_path / "hf")
    reader = HuggingFaceStorageReader(str(tmp_path / "hf"), thread_count=threads)
    with paraload.installed() as installation:
        support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert installation.last_report.items == 3
    assert installation.last_report is reader.last_report


@HF_READER.needed
def test_hugging_face_metadata_stay_torchs(tmp_path):
    two_files(tmp_path / "hf")
    stock = HuggingFaceStorageReader(str(tmp_path / "hf")).read_metadata()
    with paraload.installed():
        here = HuggingFaceStorageReader(str(tmp_path / "hf")).read_metadata()
    assert here.storage_data == stock.storage_data


@HF_READER.needed
def test_sharded_hugging_face_files_of_dcp(saved, tmp_path):
    state = {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
    dcp.save(state, storage_writer=writer, no_dist=True)
    reader = HuggingFaceStorageReader(str(tmp_path))
    with paraload.installed():
        support.assert_same(support.load(reader, support.empty_like(state)), state)
    assert reader.last_report.items == len(state)


@HF_READER.needed
def test_quantised_hugging_face(tmp_path):
    scale = torch.rand(2, 1) + 0.5
    weights = torch.randn(200, 100).to(torch.float8_e4m3fn)
    more = {"q.weight": weights, "q.weight_scale_inv": scale}
    two_files(tmp_path / "hf", more.items())
    weight_map = {
        **dict.fromkeys(("a", "c", *more), "one.safetensors"),
        "b": "two.safetensors",
    }
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    blank = {"q.weight": torch.zeros(200, 100), "a": torch.zeros(64, 32)}

    def loaded():
        reader = QuantizedHuggingFaceStorageReader(str(tmp_path / "hf"))
        state = {name: value.clone() for name, value in blank.items()}
        return support.load(reader, state), reader

    expected, _ = loaded()
    assert expected["q.weight"].any()
    with paraload.installed() as installation:
        state, reader = loaded()
    support.assert_same(state, expected)
    assert installation.last_report is reader.last_report is not None


# --------------------------------------------------------------------------------- subclasses


class OwnReadData(FileSystemReader):
    def read_data(self, plan, planner):
        self.is_own = True
        return super().read_data(plan, planner)


class OwnMetadata(FileSystemReader):
    """As Megatron's: without keyword arguments, and cached."""

    cached = None

    def read_metadata(self):
        if self.cached is None:
            type(self).cached = super().read_metadata()
        return self.cached


class OwnSlice(FileSystemReader):
    slices = 0

    def _slice_file(self, file, sinfo):
        self.slices += 1
        return super()._slice_file(file, sinfo)


class OwnOptions(FileSystemReader):
    """Names of its own that are options of ours."""

    def __init__(self, path):
        super().__init__(path)
        self.options, self.max_workers = {"a": 1}, -1


@pytest.mark.parametrize("kind", [OwnReadData, OwnMetadata, OwnSlice, OwnOptions])
def test_subclasses_keep_what_they_override(saved, folder, kind):
    before = dict(vars(kind))
    reader = kind(folder)
    with paraload.installed() as installation:
        assert vars(kind) == before
        support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert installation.last_report is reader.last_report
    assert getattr(reader, "is_own", True)
    assert getattr(reader, "slices", len(saved)) == len(saved)
    assert getattr(reader, "cached", None) is not None or kind is not OwnMetadata


def test_a_subclass_that_reads_by_itself_is_left_alone(saved, folder):
    class Own(FileSystemReader):
        read_data = module.stock(FileSystemReader).read_data

    with paraload.installed() as installation:
        support.assert_same(support.load(Own(folder), support.empty_like(saved)), saved)
    assert installation.last_report is None


def test_readers_of_paraload_keep_their_options(saved, folder):
    reader = paraload.ParallelFileSystemReader(folder, max_workers=3)
    with paraload.installed(max_workers=1) as installation:
        support.load(reader, support.empty_like(saved))
    assert reader.last_report.workers == 3
    assert installation.last_report is None


# ------------------------------------------------------------------------------------- options


def test_options_reach_every_step(saved, folder):
    targets = {name: value.double() if name == "big.0" else value for name, value in saved.items()}
    with paraload.installed(strict=True), pytest.raises(dcp.api.CheckpointException) as caught:
        load_id(support.empty_like(targets), folder)
    assert "strict" in str(caught.value)
    calls = []
    with paraload.installed(paraload.ReadOptions(progress=calls.append), max_workers=1):
        load_id(support.empty_like(saved), folder)
    assert calls


def test_the_environment_sets_options(saved, folder, monkeypatch):
    monkeypatch.setenv("PARALOAD_MAX_WORKERS", "3")
    with paraload.installed() as installation:
        load_id(support.empty_like(saved), folder)
    assert installation.last_report.workers == 3


def test_a_wrong_option_changes_nothing():
    before = attributes()
    with pytest.raises(InvalidOptionError, match="max_worker"):
        paraload.install(max_worker=3)
    assert attributes() == before


def test_each_load_is_logged(saved, folder, caplog):
    with caplog.at_level(logging.INFO, "paraload"), paraload.installed():
        load_id(support.empty_like(saved), folder)
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert line.startswith(f"{folder}: loaded {len(saved)} items")


def test_no_password_is_logged_or_in_an_error(saved, folder, caplog):
    url = f"memory://me:secret@host/{uuid.uuid4()}"
    copy_to(url, folder)
    with caplog.at_level(logging.INFO, "paraload"), paraload.installed(strict=True):
        support.load(FsspecReader(url), support.empty_like(saved))
        wrong = {"big.0": torch.zeros_like(saved["big.0"], dtype=torch.float64)}
        with pytest.raises(dcp.api.CheckpointException) as caught:
            support.load(FsspecReader(url), wrong)
    [line] = [it.getMessage() for it in caplog.records if it.name == "paraload"]  # torch logs it
    assert line.startswith("memory://host/")
    [(error, _)] = caught.value.failures.values()
    assert "secret" not in str(error)
    with paraload.installed(), pytest.raises(MissingMetadataError) as missing:
        FsspecReader(f"{url}/elsewhere").read_metadata()
    assert "secret" not in str(missing.value)


# -------------------------------------------------------------------------------------- errors


def test_damage_is_an_error(saved, folder):
    path, offset, length = support.records_of(folder)["big.1"]
    support.flip(path, offset + length // 2)
    state = support.empty_like(saved)
    load_id(state, folder)  # torch does not notice
    with paraload.installed(), pytest.raises(dcp.api.CheckpointException) as caught:
        load_id(support.empty_like(saved), folder)
    [(error, _)] = caught.value.failures.values()
    assert isinstance(error, paraload.CheckpointReadError)
    assert isinstance(error.failures[0], ChecksumMismatchError)


class Foreign:
    pass


def test_metadata_run_no_code(saved, folder):
    with support.rewritten(folder) as metadata:
        metadata.storage_meta.extra = Foreign()
    with paraload.installed(), pytest.raises(UnsafeMetadataError, match="Foreign"):
        FileSystemReader(folder).read_metadata()
    with paraload.installed(allow_globals=[Foreign]):
        FileSystemReader(folder).read_metadata()


def test_another_torch_is_one_error_with_its_version(monkeypatch):
    def read_data(self, plan, planner, something_new):
        pass

    monkeypatch.setattr(FileSystemReader, "read_data", read_data)
    before = attributes()
    with pytest.raises(IncompatibleTorchError) as caught:
        paraload.install()
    assert attributes() == before
    assert f"torch {torch.__version__}: FileSystemReader.read_data takes" in str(caught.value)
    assert "something_new" in str(caught.value)
    monkeypatch.delattr(FileSystemReader, "read_data")
    with pytest.raises(IncompatibleTorchError, match=r"read_data is not a method of its own"):
        paraload.install()
    monkeypatch.undo()


def test_metadata_of_torch_before_2_9_take_no_arguments(saved, folder, monkeypatch):
    stock = FileSystemReader.read_metadata
    monkeypatch.setattr(FileSystemReader, "read_metadata", lambda self: stock(self))
    with paraload.installed() as installation:
        support.assert_same(
            support.load(FileSystemReader(folder), support.empty_like(saved)), saved
        )
        assert FileSystemReader.read_metadata is module._read_metadata
    assert installation.last_report.items == len(saved)
    monkeypatch.undo()


def test_a_private_name_that_is_gone_is_the_same_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "paraload.adapters.dcp.hf_stock", None)
    monkeypatch.delattr("paraload.adapters.dcp.hf_stock", raising=False)
    with pytest.raises(IncompatibleTorchError, match="hf_stock"):
        paraload.install()


# ------------------------------------------------------------------------- install and uninstall


def test_everything_is_as_it_was():
    before = attributes()
    for _ in range(2):
        paraload.install()
        paraload.install(max_workers=2)
        assert attributes() != before
        paraload.uninstall()
        assert attributes() == before
        paraload.uninstall()
        assert attributes() == before


def test_the_last_call_decides(saved, folder):
    paraload.install(max_workers=1)
    with paraload.installed(max_workers=2) as inner:
        again = paraload.install(max_workers=3)
        load_id(support.empty_like(saved), folder)
        assert inner.last_report.workers == again.last_report.workers == 3
        paraload.uninstall()
        load_id(support.empty_like(saved), folder)
        assert inner.last_report.workers == 2
        assert again.last_report.workers == 3
    assert FileSystemReader.read_data.__module__ == FileSystemReader.__module__


def test_nested_blocks_end_with_the_outermost(saved, folder):
    before = attributes()
    with paraload.installed(max_workers=2) as outer:
        with pytest.raises(KeyError), paraload.installed(max_workers=1):
            raise KeyError
        load_id(support.empty_like(saved), folder)
    assert outer.last_report.workers == 2
    assert attributes() == before


def test_threads_overlap(saved, folder):
    before = attributes()
    failures = []

    def work():
        try:
            for _ in range(5):
                with paraload.installed() as installation:
                    support.assert_same(load_id(support.empty_like(saved), folder), saved)
                    assert installation.last_report is not None
        except BaseException as error:  # noqa: BLE001 - for the test's thread
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert attributes() == before


def test_what_others_put_on_top_stays(saved, folder, monkeypatch):
    paraload.install()
    ours = FileSystemReader.read_data
    calls = []

    def read_data(self, plan, planner):
        calls.append(self)
        return ours(self, plan, planner)

    monkeypatch.setattr(FileSystemReader, "read_data", read_data)
    paraload.uninstall()
    assert FileSystemReader.read_data is read_data
    reader = FileSystemReader(folder)
    support.assert_same(support.load(reader, support.empty_like(saved)), saved)
    assert calls == [reader]
    assert not hasattr(reader, "last_report")  # ours calls torch's while nothing is installed
    with paraload.installed() as installation:
        support.load(reader, support.empty_like(saved))
        assert installation.last_report is not None
    assert FileSystemReader.read_data is read_data
    support.load(reader, support.empty_like(saved))
    monkeypatch.undo()  # puts ours back, which was there when the test replaced it
    assert FileSystemReader.read_data is ours
    FileSystemReader.read_data = module._originals[FileSystemReader, "read_data"]


@OWN_METADATA.needed
def test_torch_finds_the_parameter_that_it_looks_for():
    before = inspect.signature(FileSystemReader.read_metadata).parameters
    with paraload.installed():
        assert inspect.signature(FileSystemReader.read_metadata).parameters.keys() == before.keys()
        assert "kwargs" in inspect.signature(FileSystemReader(".").read_metadata).parameters


def test_comparisons_get_torchs_own_methods(saved, folder, capsys):
    own = FileSystemReader.read_data
    assert module.stock(FileSystemReader) is FileSystemReader
    with paraload.installed() as installation:
        stock = module.stock(FileSystemReader)
        assert stock.read_data is own
        assert module.stock(FsspecReader).read_data is own
        assert issubclass(stock, FileSystemReader)
        support.assert_same(support.load(stock(folder), support.empty_like(saved)), saved)
        words = ["bench", str(folder), "--rounds", "1", "--workers", "1", "--no-cold"]
        assert cli.main([*words, "--executors", "threads"]) == 0
        assert installation.last_report is None
    assert "torch's reader" in capsys.readouterr().out


# ------------------------------------------------------------------------------------- programs

SCRIPT = """
import json, multiprocessing, os, sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

def is_here(_):
    from torch.distributed.checkpoint import FileSystemReader
    return FileSystemReader.read_data.__module__

def main(folder):
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    state = {"w": torch.zeros(1000)}
    dcp.load(state, checkpoint_id=folder)
    assert torch.equal(state["w"], torch.arange(1000.0))
    in_child = None
    if "RANK" not in os.environ:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            in_child = pool.map(is_here, [0])[0]
    here = is_here(0), in_child, __name__, sys.argv, sys.path[0]
    # In one write, since ranks share the stream.
    print(json.dumps(here) + os.linesep, end="", flush=True)
    if "RANK" in os.environ:
        dist.barrier()
        os._exit(0)  # threads of gloo sometimes abort the exit of the interpreter
    if "fail" in sys.argv:
        raise LookupError("the script's own")

if __name__ == "__main__":
    main(sys.argv[1])
"""
OURS = "paraload.adapters.dcp.install"


@pytest.fixture
def program(tmp_path):
    dcp.save({"w": torch.arange(1000.0)}, checkpoint_id=tmp_path / "ckpt", no_dist=True)
    (tmp_path / "program.py").write_text(SCRIPT)
    return tmp_path


@pytest.fixture
def started(tmp_path):
    """Runs python as if the wheel were installed; its startup file is what matters here."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "paraload-install.pth").write_bytes((SOURCE / "paraload-install.pth").read_bytes())
    (site / "sitecustomize.py").write_text("import site; site.addsitedir(__file__[:-17])")

    def run(*words, status=0, **environment):
        paths = os.pathsep.join([str(site), str(SOURCE)])
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, words)],
            check=False,
            env=os.environ | {"PYTHONPATH": paths} | environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=110,
        )
        assert done.returncode == status, done.stderr
        return done

    return run


def answers(done):
    lines = done.stdout.splitlines()  # torch 2.8 prints others, which begin with "[Gloo]"
    return [json.loads(line) for line in lines if line[:1] == "[" and line[:2] != "[G"]


def test_an_unchanged_script(program, started):
    path = program / "program.py"
    done = started("-m", "paraload", "run", path, program / "ckpt", "-m", "--help")
    argv = [str(path), str(program / "ckpt"), "-m", "--help"]
    assert answers(done) == [[OURS, OURS, "__main__", argv, str(program)]]


def test_an_unchanged_module(program, started):
    done = started("-m", "paraload", "run", "-m", "program", program / "ckpt", "-x")
    argv = [str(program / "program.py"), str(program / "ckpt"), "-x"]
    assert answers(done) == [[OURS, OURS, "__main__", argv, str(program)]]


def test_the_variable_is_enough(program, started):
    [(here, in_child, *_)] = answers(started("program.py", program / "ckpt", PARALOAD_INSTALL="1"))
    assert here == in_child == OURS


def test_without_the_variable_nothing_is_imported(started):
    code = "import sys; print([name for name in sys.modules if name.startswith('paraload')])"
    for environment in ({}, {"PARALOAD_INSTALL": ""}, {"PARALOAD_INSTALL": "0"}):
        assert started("-c", code, **environment).stdout == "[]\n"
    code = "import sys; print([finder for finder in sys.meta_path if 'paraload' in repr(finder)])"
    assert started("-c", code, PARALOAD_INSTALL="off").stdout == "[]\n"
    code = "import sys; print('torch' in sys.modules, 'paraload' in sys.modules)"
    assert started("-c", code, PARALOAD_INSTALL="1").stdout == "False True\n"


@pytest.mark.parametrize(
    "first",
    [
        "torch.distributed.checkpoint.filesystem",
        "paraload.adapters.dcp.reader_config",
        "paraload.adapters.dcp.install",
    ],
)
def test_whatever_is_imported_first(started, first):
    code = (
        f"import {first}, torch.distributed.checkpoint as dcp;"
        " print(dcp.FileSystemReader.read_data.__module__);"
        " import paraload; paraload.uninstall();"
        " print(dcp.FileSystemReader.read_data.__module__)"
    )
    lines = started("-c", code, PARALOAD_INSTALL="1").stdout.split()
    assert lines == [OURS, FileSystemReader.__module__]


def test_looking_for_the_module_does_not_import_it(started):
    code = (
        "import sys, importlib.util as u;"
        " assert u.find_spec('torch.distributed.checkpoint').origin;"
        " import torch.distributed.checkpoint as dcp;"
        " print(dcp.FileSystemReader.read_data.__module__,"
        " [finder for finder in sys.meta_path if 'paraload' in repr(finder)])"
    )
    assert started("-c", code, PARALOAD_INSTALL="1").stdout == f"{OURS} []\n"


def test_a_wrong_value_is_said(started):
    done = started("-c", "print('runs')", PARALOAD_INSTALL="perhaps")
    assert "PARALOAD_INSTALL='perhaps': expected 1 or 0" in done.stderr


def test_errors_of_the_program_are_its_own(program, started):
    words = ("-m", "paraload", "run", program / "program.py", program / "ckpt", "fail")
    done = started(*words, status=1)
    assert done.stderr.rstrip().endswith("LookupError: the script's own")
    (program / "exits.py").write_text("import sys; sys.exit(7)")
    assert started("-m", "paraload", "run", "exits.py", status=7).stderr == ""


OUTLIVED = """
import pickle, sys, threading

class Mine:
    pass

def late():
    threading.main_thread().join()
    print(sys.argv[1:], isinstance(pickle.loads(pickle.dumps(Mine())), Mine), __spec__ is None)

threading.Thread(target=late).start()
"""


@pytest.mark.parametrize("words", [["lasts.py"], ["-m", "lasts"], ["folder"]], ids=" ".join)
def test_what_outlives_the_program_finds_its_classes(started, tmp_path, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "lasts.py").write_text(OUTLIVED)
    (tmp_path / "folder" / "__main__.py").write_text(OUTLIVED)
    done = started("-m", "paraload", "run", *words, "-x")
    assert done.stdout == f"['-x'] True {words == ['lasts.py']}\n"


def test_a_script_finds_its_files_from_any_folder(started, tmp_path):
    (tmp_path / "moves.py").write_text("import os; os.chdir('/'); print(open(__file__).read())")
    assert "chdir" in started("-m", "paraload", "run", "moves.py").stdout


def test_a_wrong_option_of_the_environment_is_an_error_at_once(started, tmp_path):
    (tmp_path / "runs.py").write_text("print('runs')")
    words = ("-m", "paraload", "run", "runs.py")
    done = started(*words, status=2, PARALOAD_MAX_WORKERS="many")
    assert done.stdout == ""
    assert done.stderr == (
        "paraload: environment variable PARALOAD_MAX_WORKERS='many': expected a whole number\n"
    )


def test_an_import_that_failed_does_not_leave_torchs_readers(started):
    code = """if True:
        for _ in range(2):
            try:
                import torch.distributed.checkpoint
            except ValueError as error:
                print(error)
    """
    done = started("-c", code, PARALOAD_INSTALL="1", PARALOAD_MAX_WORKERS="many")
    assert done.stdout.count("PARALOAD_MAX_WORKERS='many'") == 2


def test_a_call_that_is_wrong(started):
    done = started("-m", "paraload", "run", "missing.py", status=2)
    assert done.stderr == "paraload: missing.py: no such file\n"
    for words in ([], ["-m"]):
        done = started("-m", "paraload", "run", *words, status=2)
        assert "name a script" in done.stderr


def test_torchrun(program, started):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += ["-m", "paraload", "run", program / "program.py", program / "ckpt"]
    found = answers(started(*words, OMP_NUM_THREADS="1"))
    assert [here[0] for here in found] == [OURS, OURS]


# --------------------------------------------------------------------------------------- ranks


def load_on_ranks(folder):
    rank = torch.distributed.get_rank()
    state = {f"w{rank}": torch.zeros(100), "both": torch.zeros(3, 4)}
    with paraload.installed() as installation:
        dcp.load(state, checkpoint_id=f"{folder}/ckpt")
    is_right = torch.equal(state[f"w{rank}"], torch.full((100,), float(rank)))
    is_right &= torch.equal(state["both"], torch.ones(3, 4))
    stock = FileSystemReader.read_data.__module__
    return [is_right, installation.last_report.items, stock]


def test_two_ranks(tmp_path):
    state = {"w0": torch.zeros(100), "w1": torch.ones(100), "both": torch.ones(3, 4)}
    dcp.save(state, checkpoint_id=tmp_path / "ckpt", no_dist=True)
    assert run_ranks(load_on_ranks, tmp_path) == [[True, 2, FileSystemReader.__module__]] * 2
