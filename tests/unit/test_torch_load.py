"""What paraload asks of a record that torch has loaded."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from paraload.errors import FormatError
from paraload.formats import torch_load
from tests.faults.content import claims, deflated


def saved(tensor, **keywords):
    stream = io.BytesIO()
    torch.save(tensor, stream, **keywords)
    return stream.getvalue()


@pytest.mark.parametrize("shape", [(5000,), (50, 100)])
def test_a_storage_that_is_longer_than_the_record_is_damage(shape):
    record = claims(1 << 40)(torch.arange(5000.0).reshape(shape))
    with pytest.raises(FormatError):
        torch_load.load_tensor(memoryview(record))


@pytest.mark.parametrize("keywords", [{}, {"_use_new_zipfile_serialization": False}])
def test_whatever_torch_returned(monkeypatch, keywords):
    record = saved(torch.zeros(10), **keywords)
    assert zipfile.is_zipfile(io.BytesIO(record)) is not bool(keywords)
    monkeypatch.setattr(torch, "load", lambda *_, **__: torch.zeros(10_000))
    with pytest.raises(FormatError, match="more elements than it has bytes for"):
        torch_load.load_tensor(memoryview(record))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(10_000), torch.nn.Parameter(torch.zeros(10_000)), torch.zeros(1).expand(10_000)],
)
def test_elements_that_take_little_room_are_no_damage(tensor):
    record = deflated(tensor)
    assert len(record) < 10_000
    assert torch.equal(torch_load.load_tensor(memoryview(record)), tensor)
