"""Quantised tensors: their scales are in the record, so commands cannot make targets for them."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

import paraload
from paraload.cli import main
from paraload.testing import make_checkpoint
from tests.integration.support import rewritten

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

EXECUTORS = ("threads", "processes")
X = torch.arange(24.0).reshape(4, 6)
SCALES, ZEROS = torch.rand(4, dtype=torch.float64) + 0.1, torch.arange(4)


def per_channel(dtype, zeros=ZEROS, scales=SCALES):
    return torch.quantize_per_channel(X, scales, zeros, 0, dtype)


def _kinds():
    warnings.simplefilter("ignore")  # torch calls them deprecated
    return {
        "qint8": torch.quantize_per_tensor(X, 0.5, 3, torch.qint8),
        "quint8": torch.quantize_per_tensor(X, 0.5, 3, torch.quint8),
        "qint32": torch.quantize_per_tensor(X, 0.5, 3, torch.qint32),
        "scalar": torch.quantize_per_tensor(torch.tensor(1.0), 0.5, 0, torch.qint8),
        "big": torch.quantize_per_tensor(torch.ones(600, 600), 0.5, 0, torch.qint8),
        "empty": torch.quantize_per_tensor(torch.zeros(0, 3), 0.5, 0, torch.qint8),
        "channels": per_channel(torch.qint8),
        "channels of quint8": per_channel(torch.quint8),
        "channels of qint32": per_channel(torch.qint32),
        "float zeros": per_channel(torch.quint8, ZEROS.float(), SCALES.float()),
    }


with warnings.catch_warnings():
    KINDS = _kinds()
PLAIN = {"plain": torch.arange(5), "note": {"step": 3}}


def call(capsys, *argv):
    status = main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err


@pytest.fixture
def folder(tmp_path):
    dcp.save({**KINDS, **PLAIN}, checkpoint_id=tmp_path, no_dist=True)
    return tmp_path


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_command_loads_all_kinds(folder, capsys, executor):
    status, out, err = call(capsys, "load", folder, "--executor", executor, "--json", "-")
    assert (status, err) == (0, "")
    assert json.loads(out)["report"]["items"] == len(KINDS) - 1 + len(PLAIN)  # "empty" has nothing


@pytest.mark.parametrize("zstd", [False, True])
def test_compressed_ones_too(tmp_path, capsys, zstd):
    make_checkpoint(tmp_path, {"w": KINDS["channels"]}, zstd=zstd)
    assert call(capsys, "load", tmp_path)[0] == 0


@pytest.mark.parametrize("name", KINDS)
def test_other_commands_take_them(tmp_path, capsys, name):
    dcp.save({"w": KINDS[name], **PLAIN}, checkpoint_id=tmp_path, no_dist=True)
    assert paraload.verify(tmp_path).ok
    assert call(capsys, "inspect", tmp_path)[0] == 0


def test_bench_takes_them(folder, capsys):
    words = ["bench", folder, "--rounds", 1, "--workers", 1, "--executors", "threads", "--no-cold"]
    assert call(capsys, *words)[0] == 0


def blank(stored):
    """As a model has it before the load: the same scheme, another scale."""
    if stored.qscheme() == torch.per_tensor_affine:
        return torch._empty_affine_quantized(
            stored.shape, scale=1.0, zero_point=0, dtype=stored.dtype
        )
    return torch._empty_per_channel_affine_quantized(
        stored.shape,
        scales=torch.ones_like(stored.q_per_channel_scales()),
        zero_points=torch.zeros_like(stored.q_per_channel_zero_points()),
        axis=0,
        dtype=stored.dtype,
    )


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_load_has_the_values_that_torch_loads(folder, executor):
    state, expected = ({name: blank(it) for name, it in KINDS.items()} for _ in range(2))
    paraload.load(state, folder, no_dist=True, executor=executor, max_workers=2)
    dcp.load(expected, storage_reader=FileSystemReader(folder), no_dist=True)
    for name, tensor in expected.items():
        assert torch.equal(state[name].int_repr(), tensor.int_repr()), name
        assert torch.equal(state[name].int_repr(), KINDS[name].int_repr()), name


def test_a_record_of_another_tensor_is_an_error(folder, capsys):
    with rewritten(folder) as metadata:
        metadata.state_dict_metadata["qint8"].properties.dtype = torch.quint8
    status, _, err = call(capsys, "load", folder)
    assert status == 1
    for words in ("'qint8'", "__0_0.distcp", "torch.quint8", "torch.qint8", "bytes ["):
        assert words in err


def test_a_damaged_record_is_an_error(folder, capsys):
    with rewritten(folder) as metadata:
        infos = {index.fqn: info for index, info in metadata.storage_data.items()}
    info = infos["big"]
    file = folder / info.relative_path
    data = bytearray(file.read_bytes())
    data[info.offset + 100_000] ^= 1
    file.write_bytes(data)
    status, _, err = call(capsys, "load", folder)
    assert (status, "'big'" in err) == (1, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", torch.Size([0, 2**62, 2**62])),  # no bytes, and more strides than numbers
        ("dtype", torch.bits8),
    ],
)
def test_what_torch_cannot_make_is_an_error_that_names_it(folder, capsys, name, value):
    with rewritten(folder) as metadata:
        entry = metadata.state_dict_metadata["plain"]
        setattr(entry.properties if name == "dtype" else entry, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status, _, err = call(capsys, "load", folder)
    assert (status, "'plain'" in err) == (1, True)


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float32])
def test_more_than_memory_holds_is_refused(folder, capsys, dtype):
    with rewritten(folder) as metadata:
        entry = metadata.state_dict_metadata["plain"]
        entry.size, entry.properties.dtype = torch.Size([2**50]), dtype
    status, _, err = call(capsys, "load", folder)
    assert (status, "of memory" in err) == (2, True)
