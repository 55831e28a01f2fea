"""The metadata of models with many entries is read as pickle reads it."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from paraload.metadata.unpickler import unpickle
from tests.unit.metadata_cases import same, tensor

#: Around the limits of the opcodes that hold a number.
NUMBERS = [0, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62]


def entry_of(kind):
    if kind == 0:
        return BytesStorageMetadata()
    size = (kind * 50, 300)
    chunks = [((row, 0), (50, 300)) for row in range(0, kind * 50, 50)]
    return tensor(size, chunks, torch.bfloat16 if kind % 2 else torch.float32)


def many(names, kinds, numbers, descriptors=None):
    """A model with a few kinds of entries, each with its chunks in storage."""
    entries, storage, paths = {}, {}, {}
    for at, name in enumerate(names):
        entries[name] = entry = entry_of(kinds[at % len(kinds)])
        paths[name] = tuple(name.split(".", at % 3))
        chunks = getattr(entry, "chunks", [None])
        for number, chunk in enumerate(chunks):
            index = MetadataIndex(name, chunk and chunk.offsets, number if chunk else None)
            place = numbers[(at + number) % len(numbers)], numbers[(at * 7) % len(numbers)]
            info = _StorageInfo(f"__{number}_0.distcp", *place)
            if descriptors is not None and at % 2:
                info.transform_descriptors = [*descriptors]
            storage[index] = info
    return Metadata(entries, paths, storage)


NAMES = [f"layers.{number}.weight" for number in range(3000)]


@pytest.mark.parametrize("kinds", [(1,), (1, 2, 2, 3), (0, 1), range(9)])
@pytest.mark.parametrize("descriptors", [None, ("stream.zstd/1",)])
def test_many_entries_of_a_few_kinds(kinds, descriptors):
    made = many(NAMES, kinds, [0, 300, 70_000], descriptors)
    data = pickle.dumps(made)
    same(unpickle(data), pickle.loads(data))


@pytest.mark.parametrize("protocol", [4, 5])
def test_numbers_of_all_lengths(protocol):
    data = pickle.dumps(many(NAMES[:400], (1, 2, 3), NUMBERS), protocol)
    same(unpickle(data), pickle.loads(data))


def test_without_frames():
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, 4)
    pickler.framer.start_framing = lambda: None
    pickler.dump(many(NAMES[:300], (1, 2), NUMBERS))
    assert stream.getvalue()[2] != 0x95
    same(unpickle(stream.getvalue()), pickle.loads(stream.getvalue()))


def test_without_a_memo():
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 4)
    pickler.fast = True
    pickler.dump(many(NAMES[:30], (1, 2), NUMBERS))
    assert b"\x94" not in stream.getvalue()[9:]
    same(unpickle(stream.getvalue()), pickle.loads(stream.getvalue()))


def test_a_path_that_looks_like_numbers():
    made = many(NAMES[:20], (1,), [5])
    for at, info in enumerate(made.storage_data.values()):
        info.relative_path = f"{at % 5}h*K\x05h+K\x05ub"
    data = pickle.dumps(made)
    same(unpickle(data), pickle.loads(data))


def test_numbers_in_another_order():
    made = many(NAMES[:20], (1,), [0])
    for at, info in enumerate(made.storage_data.values()):
        info.__dict__ = {"relative_path": "a", "length": 7, "offset": 7 * at}
    made.storage_data[next(iter(made.storage_data))].offset = 7
    data = pickle.dumps(made)
    same(unpickle(data), pickle.loads(data))


some_names = st.lists(
    st.text(max_size=8)
    | st.sampled_from(["\x94" * 3, "ub\x8c", "u" * 300, "é" * 128, "a.b.c.d", "\ud800"]),
    unique=True,
    max_size=40,
)


@given(
    some_names,
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=5),
    st.sampled_from([4, 5]),
)
@settings(max_examples=200, deadline=None)
def test_any_model_is_read_as_pickle_reads_it(names, kinds, numbers, protocol):
    data = pickle.dumps(many(names, kinds, numbers), protocol)
    same(unpickle(data), pickle.loads(data))


def test_entries_that_do_not_repeat_each_other():
    entries = {f"{number}": tensor((number, 1), ()) for number in range(3000)}
    data = pickle.dumps(Metadata(entries, {}, {}))
    same(unpickle(data), pickle.loads(data))
