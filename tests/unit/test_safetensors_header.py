"""Headers of safetensors files: what is in them, and each way to be wrong."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from paraload.errors import FormatError, ShortFileError
from paraload.formats import Unsupported
from paraload.formats.safetensors import (
    MAX_HEADER_BYTES,
    SafetensorsFormat,
    header_end,
    parse_header,
)

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    **{
        name: getattr(torch, dtype)
        for name, dtype in (("F8_E8M0", "float8_e8m0fnu"), ("F4", "float4_e2m1fn_x2"))
        if hasattr(torch, dtype)  # from torch 2.7 and 2.8 on
    },
}


def entry(**changes):
    return {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} | changes


def file_of(header, data=b"ab"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def parse(file):
    return parse_header(file, len(file), path="a.safetensors")


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_that_the_library_writes(name):
    tensor = torch.arange(12, dtype=torch.uint8).repeat(16).view(DTYPES[name]).reshape(3, -1)
    if name == "BOOL":
        tensor = torch.ones(3, 4, dtype=torch.bool)
    file = save({"x": tensor})
    assert f'"{name}"'.encode() in file
    [found] = parse(file).tensors
    assert getattr(torch, found.layout.dtype) == tensor.dtype
    assert found.layout.shape == tuple(tensor.shape)
    assert found.layout.strides == tensor.stride()
    assert found.end - found.start == tensor.numel() * tensor.itemsize == found.layout.end
    assert file[found.start : found.end] == tensor.view(torch.uint8).numpy().tobytes()


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=6),
    dtypes=st.lists(st.sampled_from(sorted(DTYPES.keys() - {"F4", "BOOL"})), min_size=6),
    # Without tensors, the library writes an empty dictionary as something that is not JSON.
    metadata=st.none() | st.dictionaries(st.text(), st.text(), min_size=1, max_size=3),
)
def test_what_the_library_writes_is_what_is_found(shapes, dtypes, metadata):
    tensors = {
        f"t{number}": torch.zeros(shape, dtype=DTYPES[name])
        for number, (shape, name) in enumerate(zip(shapes, dtypes, strict=False))
    }
    file = save(tensors, metadata)
    found = parse(file)
    assert {it.name: it.layout.shape for it in found.tensors} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert found.metadata == (metadata or {})
    ends = [len(file)] if tensors else []
    assert [it.end for it in found.tensors][-1:] == ends


def test_equal_tensors_share_one_layout():
    first, second = parse(save({"a": torch.zeros(3), "b": torch.ones(3)})).tensors
    assert first.layout is second.layout


def test_more_than_the_header_may_be_given_and_no_more_is_needed():
    file = save({"a": torch.zeros(300)})
    end = header_end(file[:8], len(file), path="")
    assert parse_header(file[:end], len(file), path="") == parse(file)


FAULTS = {
    "empty": (b"", ShortFileError, "the file is empty.*got 0 bytes.*cut short"),
    "five bytes": (b"\x10\0\0\0\0", ShortFileError, "ends too early.*got 5 bytes"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 132\n",
        FormatError,
        "a Git LFS pointer.*git lfs pull",
    ),
    "zip": (b"PK\x03\x04" + bytes(50), FormatError, "a zip archive, probably of torch.save"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(50), FormatError, "a GGUF file"),
    "HTML": (b"<!DOCTYPE html><html></html>", FormatError, "an HTML or XML page"),
    "noise": (struct.pack("<Q", 20) + bytes(60), FormatError, "not a safetensors file"),
    "endless header": (
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}",
        FormatError,
        "at most 100000000 bytes, got one of 100000001 bytes",
    ),
    "cut in the header": (file_of({"a": entry()})[:30], ShortFileError, "ends inside its header"),
    "cut in the data": (
        file_of({"a": entry()})[:-1],
        ShortFileError,
        "ends before its data do.*1 too few.*The download was cut short",
    ),
    "trailing": (
        file_of({"a": entry()}, b"abcde"),
        FormatError,
        "3 bytes after the data of the last tensor.*safetensors itself refuses it",
    ),
    "trailing without tensors": (file_of({}, b"a"), FormatError, "1 byte after the data"),
    "not JSON": (file_of(b"{x}"), FormatError, "the header is not valid: Expecting"),
    "not UTF-8": (file_of(b'{"\xff":1}'), FormatError, "byte 2 is not UTF-8"),
    "constant": (file_of(b'{"a":NaN}'), FormatError, "NaN is not JSON"),
    "surrogate": (file_of(b'{"\\ud800":1}'), FormatError, "half of a surrogate pair"),
    "deep": (file_of(b'{"a":' + b"[" * 100_000), FormatError, "nested too deeply"),
    "leading space": (file_of(b" {}", b""), FormatError, "not a safetensors file"),
    "twice": (
        file_of(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2)),
        FormatError,
        "'a' occurs twice",
    ),
    "twice in metadata": (
        file_of(b'{"__metadata__":{"x":"1","x":"2"}}', b""),
        FormatError,
        "twice",
    ),
    "metadata": (
        file_of({"__metadata__": {"x": 1}}, b""),
        FormatError,
        "must map strings to strings",
    ),
    "no entry": (file_of({"a": [1]}), FormatError, "'a': the header does not say where"),
    "offsets": (file_of({"a": entry(data_offsets=[2, 0])}), FormatError, "expected data_offsets"),
    "float": (file_of({"a": entry(data_offsets=[0, 2.0])}), FormatError, "expected data_offsets"),
    "true": (file_of({"a": entry(data_offsets=[0, True])}), FormatError, "expected data_offsets"),
    "negative": (file_of({"a": entry(data_offsets=[-1, 1])}), FormatError, "expected data_off"),
    "dtype": (file_of({"a": entry(dtype="F3")}), FormatError, "unknown dtype.*BF16.*got 'F3'"),
    "list dtype": (file_of({"a": entry(dtype=["U8"])}), FormatError, "unknown dtype"),
    "F6": (file_of({"a": entry(dtype="F6_E2M3")}), FormatError, "torch has no such dtype"),
    "shape": (file_of({"a": entry(shape=[-2])}), FormatError, "no valid shape"),
    "float shape": (file_of({"a": entry(shape=[2.0])}), FormatError, "no valid shape"),
    "no shape": (file_of({"a": entry(shape=None)}), FormatError, "no valid shape"),
    "length": (
        file_of({"a": entry(shape=[3])}),
        FormatError,
        r"expected 3 bytes for U8 of shape \[3\], got data_offsets \[0, 2\]",
    ),
    "half a byte": (file_of({"a": entry(dtype="F4", shape=[4, 1])}), FormatError, "whole bytes"),
    "F4 scalar": (file_of({"a": entry(dtype="F4", shape=[])}), FormatError, "whole bytes"),
    "huge": (file_of({"a": entry(shape=[1 << 40, 1 << 40, 0])}), FormatError, "impossible"),
    "many sizes": (file_of({"a": entry(shape=[1 << 62] * 99_999)}), FormatError, "impossible"),
    "late": (
        file_of({"a": entry(data_offsets=[1, 3])}, b"xab"),
        FormatError,
        "its data leave a gap after the header",
    ),
    "gap": (
        file_of({"a": entry(), "b": entry(data_offsets=[3, 5])}, b"ab.cd"),
        FormatError,
        r"'b': its data leave a gap after those of 'a'.*from byte \d+ of",
    ),
    "overlap": (
        file_of({"a": entry(), "b": entry(data_offsets=[1, 3])}, b"abc"),
        FormatError,
        "'b': its data overlap those of 'a'",
    ),
    "empty one inside": (
        file_of({"a": entry(), "b": entry(shape=[0], data_offsets=[1, 1])}),
        FormatError,
        "'b': its data overlap",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_names_the_file_and_says_what_is_wrong(fault):
    file, kind, text = FAULTS[fault]
    with pytest.raises(kind, match=text) as caught:
        parse(file)
    assert type(caught.value) is kind
    assert caught.value.path == "a.safetensors"
    assert "file 'a.safetensors'" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_the_library_accepts_and_its_writer_does_not_write():
    """Spaces behind the JSON, fields of later versions, no metadata, empty tensors anywhere."""
    header = {
        "__metadata__": None,
        "b": entry(shape=[0, 3], data_offsets=[0, 0]),
        "a": entry(sha="x"),
        "c": entry(shape=[5, 0], data_offsets=[2, 2]),
    }
    file = file_of(json.dumps(header).encode() + b" \n ")
    assert [it.name for it in parse(file).tensors] == ["b", "a", "c"]


def test_the_format_looks_at_no_record():
    fmt = SafetensorsFormat()
    assert not fmt.has_checksum
    assert isinstance(fmt.locate(b"{}", 2), Unsupported)
