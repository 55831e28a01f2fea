"""Every format passes the contract suite."""

from __future__ import annotations

import io
import pickle

import pytest
import torch

from paraload.core.records import TensorRecord
from paraload.formats import Unsupported
from paraload.formats.torch_zip import TorchZipFormat
from paraload.testing import FormatContract


def record(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def payload(tensor):
    storage = torch.tensor([], dtype=torch.uint8).set_(tensor.detach().untyped_storage())
    return storage.numpy().tobytes()


TENSORS = [
    torch.arange(5.0),
    torch.arange(60, dtype=torch.int16).view(3, 4, 5),
    torch.arange(60.0).view(6, 10).t(),
    torch.tensor(3.5, dtype=torch.float64),
    torch.zeros(0, 4),
    torch.ones(3, dtype=torch.bool),
    torch.arange(4).to(torch.complex64),
    torch.arange(40_000, dtype=torch.uint8),
    torch.arange(8.0)[2:6],
    torch.nn.Parameter(torch.ones(2, 2)),
    torch.ones(3).to(torch.float8_e4m3fn),
    torch.ones(3).to(torch.uint16),
]


class TestTorchZip(FormatContract):
    @pytest.fixture
    def item_format(self):
        return TorchZipFormat()

    @pytest.fixture
    def records(self):
        return {record(tensor): payload(tensor) for tensor in TENSORS}

    def test_dtype_shape_and_strides_are_torch_s(self, item_format):
        for tensor in TENSORS:
            data = record(tensor)
            found = item_format.locate(data, len(data))
            assert f"torch.{found.dtype}" == str(tensor.dtype)
            assert (found.shape, found.strides) == (tuple(tensor.shape), tensor.stride())
            assert found.storage_offset == tensor.storage_offset()

    def test_equal_headers_are_parsed_once(self, item_format, monkeypatch):
        from paraload.formats import torch_zip

        one, two = record(torch.ones(9)), record(torch.zeros(9))
        first = item_format.locate(one, len(one))
        monkeypatch.setattr(torch_zip, "_parse", None)
        assert item_format.locate(two, len(two)) is first

    @pytest.mark.parametrize(
        "value",
        [
            {"a": torch.ones(2)},
            [1, 2],
            torch.ones(3, dtype=torch.complex64).conj(),
        ],
        ids=["dict", "list", "conj"],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_other_objects_than_plain_tensors_are_left_to_torch(self, item_format, value):
        data = record(value)
        assert isinstance(item_format.locate(data, len(data)), Unsupported)

    def test_a_pickle_that_would_run_code_runs_none(self, item_format, capsys):
        class Evil:
            def __reduce__(self):
                return print, ("code has run",)

        data = record(Evil())
        assert isinstance(item_format.locate(data, len(data)), Unsupported)
        assert capsys.readouterr().out == ""

    def test_it_pickles_without_its_cache(self, item_format):
        data = record(torch.ones(3))
        item_format.locate(data, len(data))
        twin = pickle.loads(pickle.dumps(item_format))
        assert isinstance(twin.locate(data, len(data)), TensorRecord)
