"""What a pickle says again and again is taken at a glance, and means what pickle says it means."""

from __future__ import annotations

import io
import pickle
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from paraload import _metadata_tables, _plain_metadata
from paraload._late_metadata import LateMetadata
from paraload._plain_metadata import NotPlainError, columns_in
from paraload._plain_pickle import PlainPickle
from paraload._unpickler import unpickle
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
    """A model with a few kinds of entries, of which each has its chunks in storage."""
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


def read(data):
    return LateMetadata(columns_in(data), None)


class Counted(PlainPickle):
    """Knows how many pairs were obeyed opcode by opcode."""

    obeyed = 0

    def pair(self, is_whole):
        Counted.obeyed += 1
        return super().pair(is_whole)


NAMES = [f"layers.{number}.weight" for number in range(3000)]


@pytest.mark.parametrize("kinds", [(1,), (1, 2, 2, 3), (0, 1), range(9)])
@pytest.mark.parametrize("descriptors", [None, ("stream.zstd/1",)])
def test_most_pairs_are_taken_at_a_glance(monkeypatch, kinds, descriptors):
    monkeypatch.setattr(_plain_metadata, "PlainPickle", Counted)
    monkeypatch.setattr(Counted, "obeyed", 0)
    made = many(NAMES, kinds, [0, 300, 70_000], descriptors)
    data = pickle.dumps(made)
    same(read(data), pickle.loads(data))
    pairs = len(made.state_dict_metadata) + len(made.storage_data)
    # Each kind is read once; and a pair with a frame's beginning in it, every 64 KiB.
    assert 0 < Counted.obeyed < 200 + len(data) / 30_000 < pairs / 5


@pytest.mark.parametrize("protocol", [4, 5])
def test_numbers_of_all_lengths(protocol):
    data = pickle.dumps(many(NAMES[:400], (1, 2, 3), NUMBERS), protocol)
    same(read(data), pickle.loads(data))


def test_without_frames():
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, 4)
    pickler.framer.start_framing = lambda: None
    pickler.dump(many(NAMES[:300], (1, 2), NUMBERS))
    assert stream.getvalue()[2] != 0x95
    same(read(stream.getvalue()), pickle.loads(stream.getvalue()))


def test_without_a_memo():
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 4)
    pickler.fast = True
    pickler.dump(many(NAMES[:30], (1, 2), NUMBERS))
    assert b"\x94" not in stream.getvalue()[9:]
    same(read(stream.getvalue()), pickle.loads(stream.getvalue()))


def test_a_path_that_looks_like_numbers():
    made = many(NAMES[:20], (1,), [5])
    for at, info in enumerate(made.storage_data.values()):
        info.relative_path = f"{at % 5}h*K\x05h+K\x05ub"
    data = pickle.dumps(made)
    same(read(data), pickle.loads(data))


def test_numbers_in_another_order():
    made = many(NAMES[:20], (1,), [0])
    for at, info in enumerate(made.storage_data.values()):
        info.__dict__ = {"relative_path": "a", "length": 7, "offset": 7 * at}
    made.storage_data[next(iter(made.storage_data))].offset = 7
    data = pickle.dumps(made)
    same(read(data), pickle.loads(data))


@pytest.mark.parametrize(("there", "instead"), [(b"j", b"J"), (b"J", b"j")])
def test_an_index_is_no_number_and_a_number_no_index(there, instead):
    """The opcodes differ in one bit, and these pairs are not obeyed opcode by opcode."""
    data = pickle.dumps(many(NAMES[:300], (1,), [70_000]))
    # An attribute's value: the name of an index, or the offset of an info.
    value = rb"\)\x81\x94\}\x94\(j....(j)" if there == b"j" else rb"j....(J)\x70\x11\x01\x00j"
    found = list(re.finditer(value, data, re.DOTALL))[200]
    damaged = data[: found.start(1)] + instead + data[found.end(1) :]
    with pytest.raises(NotPlainError):
        read(damaged)


some_names = st.lists(
    st.text(max_size=8)
    | st.sampled_from(["\x94" * 3, "ub\x8c", "u" * 300, "é" * 128, "a.b.c.d", "\ud800"]),
    unique=True,
    max_size=40,
).map(lambda names: [name for name in names if "\0" not in name])


@given(
    some_names,
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=5),
    st.sampled_from([4, 5]),
)
@settings(max_examples=200, deadline=None)
def test_any_model_is_read_as_pickle_reads_it(names, kinds, numbers, protocol):
    data = pickle.dumps(many(names, kinds, numbers), protocol)
    same(read(data), pickle.loads(data))


@given(st.integers(), st.sampled_from([(1, 2), (0, 3, 3)]))
@settings(max_examples=400, deadline=None)
def test_damage_is_seen_as_pickle_sees_it(seed, kinds):
    chance = random.Random(seed)
    data = bytearray(pickle.dumps(many(NAMES[:20], kinds, NUMBERS)))
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data))
        if chance.randint(0, 1):
            data[at] = chance.choice(data)
        else:
            other, length = chance.randrange(len(data)), chance.randint(1, 120)
            data[at : at + chance.choice((0, length))] = data[other : other + length]
    try:
        found = read(bytes(data))
    except NotPlainError:
        return
    try:
        expected = unpickle(bytes(data))
    except Exception:  # noqa: BLE001 - damage where nothing is lost, as in the length of a frame
        return
    same(found, expected)


def test_what_does_not_repeat_itself_is_not_looked_at_for_ever(monkeypatch):
    looked = []

    class Looks:
        def match(self, data, at):
            looked.append(at)

    monkeypatch.setattr(_metadata_tables.Entries, "looks", Looks())
    names = [f"{number}" for number in range(3000)]
    entries = {name: tensor((number, 1), ()) for number, name in enumerate(names)}
    data = pickle.dumps(Metadata(entries, {}, {}))
    same(read(data), pickle.loads(data))
    assert len(looked) == 1000
