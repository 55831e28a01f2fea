"""Mutators that know the structure: opcodes of pickles, entries of archives, places of records.

Each takes good bytes and ``chance``, which is like a ``random.Random``: hypothesis brings one that
it can shrink, the atheris targets one that is seeded with the fuzzer's bytes.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import struct
import warnings
import zlib
from functools import lru_cache
from itertools import pairwise

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

__all__ = [
    "flipped",
    "mutated_checkpoint",
    "mutated_pickle",
    "mutated_record",
    "mutated_safetensors",
]

NUMBERS = (0, 1, 2, 3, 7, 63, 64, 255, 256, 700, 1024, 65535, 65536, (1 << 31) - 1, 1 << 31)
HUGE = ((1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def flipped(data, chance):
    """Bits flipped, bytes cut out, doubled, or moved."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        at, to = sorted(chance.randint(0, len(data)) for _ in range(2))
        kind = chance.randint(0, 6)
        if kind <= 2 and at < len(data):
            data[at] ^= 1 << chance.randint(0, 7)
        elif kind == 3 and at < len(data):
            data[at] = chance.randint(0, 255)
        elif kind == 4:
            del data[at : min(to, at + 40)]
        elif kind == 5:
            data[at:at] = data[at : min(to, at + 40)]
        else:
            del data[to:]
    return bytes(data)


# ------------------------------------------------------------------------------------- pickles


def _name(module, name):
    return f"c{module}\n{name}\n".encode()


HOME = "torch.distributed.checkpoint.metadata"
SNIPPETS = (
    *(b"0", b"1", b"2", b"(", b"N", b"}", b"]", b")", b"\x8f", b"t", b"l", b"d", b"a", b"e"),
    *(b"s", b"u", b"b", b"R", b"o", b"\x81", b"\x92", b"\x93", b"\x94", b"\x85", b"\x86", b"\x87"),
    *(b"\x90", b"\x91", b"\x97", b"\x98", b"Q", b".", b"\x88", b"\x89", b"K\x00", b"\x8c\x01x"),
    *(b"r\xff\xff\xff\x7f", b"r\x00\x00\x00\x04", b"j\xff\xff\xff\xff", b"q\x00", b"h\x00"),
    *(
        b"\x95" + b"\xff" * 8,
        b"\x95" + b"\x08" + b"\0" * 7,
        b"B\xff\xff\xff\x7f",
        b"T\xff\xff\xff\x7f",
    ),
    *(b"\x8e" + b"\xff" * 7 + b"\x7f", b"\x96\0\0\0\x20\0\0\0\0", b"\x8d\0\0\0\0\1\0\0\0"),
    *(b"\x8b\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255, b"I" + b"9" * 5000 + b"\n", b"Fnan\n"),
    *(b"p9999999999\n", b"g0\n", b"Px\n", b"NQ", b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\0\0\0"),
    *(b")\x85" * 50, b"]" + b"2\x85" * 3, b"N" + b"2\x86" * 60, b"N" + b"\x85" * 500),
    *(_name("os", "system"), _name("builtins", "eval"), _name("torch", "Size")),
    *(_name(HOME, "Metadata"), _name(HOME, "TensorProperties"), _name(HOME, "MetadataIndex")),
    *(
        _name("torch", "float64"),
        _name("collections", "OrderedDict"),
        _name("pathlib", "PosixPath"),
    ),
    b"}" + b"N2\x86" + b"2\x86" * 40 + b"Ns",  # a key whose hash takes 2^40 steps
    b"(" + _name("os", "system").replace(b"c", b"i", 1),
)


@lru_cache(64)
def _opcodes(data):
    """The bytes of each opcode of a good pickle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # odd escapes in what is text no more
        places = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    return tuple(data[a:b] for a, b in pairwise(places))


def mutated_pickle(data, chance):
    """The pickle with opcodes swapped, left out, doubled, put in, and with other arguments."""
    if chance.randint(0, 7) == 0:
        return flipped(data, chance)
    ops = list(_opcodes(data))
    if chance.randint(0, 3):
        ops = [op for op in ops if op[:1] != b"\x95"]  # without frames, lengths may change
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        _mutate(ops, chance)
    return b"".join(ops)


def _mutate(ops, chance):
    at, other = (chance.randint(0, len(ops) - 1) for _ in range(2))
    kind = chance.randint(0, 7)
    if kind == 0:
        ops[at], ops[other] = ops[other], ops[at]
    elif kind == 1 and len(ops) > 1:
        del ops[at]
    elif kind == 2:
        ops.insert(at, ops[other])
    elif kind == 3:
        ops.insert(at, chance.choice(SNIPPETS))
    elif kind == 4:
        ops[at] = chance.choice(SNIPPETS)
    elif kind == 5:
        ops[at:at] = ops[other : other + chance.randint(1, 30)]
    else:
        ops[at] = _other_argument(ops[at], ops[other], chance)


def _other_argument(op, other, chance):
    code, body = op[:1], op[1:]
    sizes = {b"K": 1, b"M": 2, b"J": 4, b"h": 1, b"j": 4, b"q": 1, b"r": 4, b"\x95": 8}
    if (size := sizes.get(code)) is not None:
        number = chance.choice((*NUMBERS, *HUGE, chance.randint(0, 3000)))
        return code + (number % (1 << (8 * size))).to_bytes(size, "little")
    if code == b"\x8c" and other[:1] == b"\x8c":
        return other
    if code in {b"\x8c", b"X", b"B", b"C", b"c"} and body:
        at = chance.randint(0, len(body) - 1)
        return code + body[:at] + bytes([chance.randint(0, 255)]) + body[at + 1 :]
    return op


# ------------------------------------------------------------------------------------- records

_LOCAL = b"PK\x03\x04"
_DESCRIPTOR = b"PK\x07\x08"
_CENTRAL = b"PK\x01\x02"
_ENDS = (b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
#: Offset and size of the numbers behind each signature.
_FIELDS = {
    _LOCAL: ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    _DESCRIPTOR: ((4, 4), (8, 4), (12, 4)),
    _CENTRAL: ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)),
    _ENDS[0]: ((8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    _ENDS[1]: ((4, 8), (24, 8), (32, 8), (40, 8), (48, 8)),
    _ENDS[2]: ((4, 4), (8, 8), (16, 4)),
}


def mutated_record(data, chance):
    """A ``torch.save`` archive with other headers, another ``data.pkl``, another payload."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        step = chance.choice((flipped, _other_field, _other_field, _other_pickle, _other_name))
        data = step(data, chance)
    return data


def _places(data, signature):
    found, at = [], -1
    while (at := data.find(signature, at + 1)) >= 0:
        found.append(at)
    return found


def _other_field(data, chance):
    signature = chance.choice(tuple(_FIELDS))
    if not (places := _places(data, signature)):
        return data
    offset, size = chance.choice(_FIELDS[signature])
    at = chance.choice(places) + offset
    if at + size > len(data):
        return data
    number = int.from_bytes(data[at : at + size], "little")
    others = (*NUMBERS, *HUGE, number + 1, number - 1, number * 2, number ^ 8, number + 64)
    number = chance.choice(others) % (1 << (8 * size))
    return data[:at] + number.to_bytes(size, "little") + data[at + size :]


def _other_name(data, chance):
    names = (b"data/0", b"data/1", b"data.pkl", b"byteorder", b"little", b"bigxyz", b"version")
    return data.replace(chance.choice(names), chance.choice(names), chance.randint(1, 3))


def _other_pickle(data, chance):
    """Another ``data.pkl``, often with the checksum and the sizes that go with it."""
    end = data.find(_DESCRIPTOR)
    if not data.startswith(_LOCAL) or end < 0 or len(data) < 30:
        return data
    name_bytes, extra_bytes = struct.unpack_from("<2H", data, 26)
    start = 30 + name_bytes + extra_bytes
    try:
        pickled = mutated_pickle(data[start:end], chance)
    except ValueError:
        return data  # damaged by an earlier step
    # An object with a matching checksum is another object: undetectable.
    is_tensor = b"_rebuild" in data[start:end]
    if chance.randint(0, 3) == 0 or not is_tensor:
        return data[:start] + pickled + data[end:]
    sums = struct.pack("<3I", zlib.crc32(pickled), len(pickled), len(pickled))
    fixed = data[:start] + pickled + _DESCRIPTOR + sums + data[end + 16 :]
    return _with_central(fixed, zlib.crc32(pickled), len(pickled))


def _with_central(data, crc, size):
    """The first entry of the central directory has the checksum too."""
    at = data.find(_CENTRAL)
    if at < 0 or at + 28 > len(data):
        return data
    return data[: at + 16] + struct.pack("<3I", crc, size, size) + data[at + 28 :]


# --------------------------------------------------------------------------------- checkpoints


def mutated_checkpoint(files, chance):
    """``name -> bytes`` with another metadata, other files, or both."""
    files = dict(files)
    if chance.randint(0, 2):
        files[".metadata"] = _other_metadata(files[".metadata"], chance)
    names = sorted(set(files) - {".metadata"})
    if chance.randint(0, 1):
        for name in chance.sample(names, 1):
            files[name] = mutated_record(files[name], chance)
    return files


def _other_metadata(data, chance):
    if chance.randint(0, 2) == 0:
        return mutated_pickle(data, chance)
    metadata = pickle.loads(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        chance.choice((_other_place, _other_place, _other_chunk, _other_entry))(metadata, chance)
    return pickle.dumps(metadata, chance.choice((2, 4, 5)))


def _other_place(metadata, chance):
    places = list(metadata.storage_data.items())
    if not places:
        return
    index, place = chance.choice(places)
    kind = chance.randint(0, 7)
    number = chance.choice((*NUMBERS, *HUGE, -1, -(1 << 40), chance.randint(0, 9000)))
    nearby = chance.choice((-64, -1, 1, 64))
    if kind == 0:
        place.offset = number
    elif kind == 1:
        place.length = number
    elif kind == 2:
        place.offset += nearby
    elif kind == 3:
        place.length += nearby
    elif kind == 4:
        paths = (
            "",
            ".",
            "..",
            "/etc/passwd",
            "../x",
            "a\0b",
            ".metadata",
            "__0_1.distcp",
            "\udc80",
        )
        place.relative_path = chance.choice(paths)
    elif kind == 5:
        metadata.storage_data[index] = chance.choice(places)[1]
    elif kind == 6:
        del metadata.storage_data[index]
    else:
        place.transform_descriptors = chance.choice(([], ["stream.zstd/1"], ["x"], [""] * 3))


def _other_chunk(metadata, chance):
    name = chance.choice(sorted(metadata.state_dict_metadata))
    entry = metadata.state_dict_metadata[name]
    chunks = getattr(entry, "chunks", None)
    if not chunks:
        return
    kind = chance.randint(0, 4)
    chunk = chance.choice(chunks)
    if kind == 0:
        chunk.sizes = _other_size(chunk.sizes, chance)
    elif kind == 1:
        chunk.offsets = _other_size(chunk.offsets, chance)
        metadata.storage_data[MetadataIndex(name, chunk.offsets, 0)] = chance.choice(
            list(metadata.storage_data.values())
        )
    elif kind == 2:
        chunks.append(ChunkStorageMetadata(chunk.offsets, chunk.sizes))
    elif kind == 3:
        chunks.remove(chunk)
    else:
        entry.size = _other_size(entry.size, chance)


def _other_size(size, chance):
    numbers = list(size)
    kind = chance.randint(0, 3)
    if kind == 0 or not numbers:
        numbers.append(chance.choice(NUMBERS))
    elif kind == 1:
        numbers.pop()
    else:
        numbers[chance.randint(0, len(numbers) - 1)] = chance.choice((*NUMBERS, -1, 1 << 40))
    return torch.Size(numbers)


def _other_entry(metadata, chance):
    entries = metadata.state_dict_metadata
    name, other = (chance.choice(sorted(entries)) for _ in range(2))
    kind = chance.randint(0, 3)
    if kind == 0:
        entries[name] = entries[other]
    elif kind == 1 and len(entries) > 1:
        del entries[name]
    elif kind == 2 and hasattr(entries[name], "properties"):
        entries[name].properties.dtype = chance.choice((torch.float64, torch.int16, torch.bool))
    else:
        metadata.planner_data = chance.choice((None, {}, [], {"a": ("b",)}))


# ---------------------------------------------------------------------------------- safetensors

DTYPES = ("F32", "U8", "I64", "BF16", "F4", "F6_E2M3", "F8_E8M0", "C64", "F3", "f32", "", None, 7)
WORDS = ("__metadata__", "dtype", "shape", "data_offsets", "w", "\ud800", "a\0b", "\u00e9")


def mutated_safetensors(data, chance):
    """Another header with its length, other data, or anything."""
    header_bytes = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + header_bytes])
    except (ValueError, RecursionError):
        return flipped(data, chance)
    payload = data[8 + header_bytes :]
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        _other_header_field(header, chance)
    text = json.dumps(header).encode()
    if chance.randint(0, 3) == 0:
        text = flipped(text, chance)
    text += chance.choice((b"", b"", b"   ", b"\n", b"\0", b"x"))
    if chance.randint(0, 5) == 0:
        payload = flipped(payload, chance) + bytes(chance.randint(0, 9))
    length = len(text)
    if chance.randint(0, 7) == 0:
        length = chance.choice((*NUMBERS, *HUGE[:1], length + 1, max(0, length - 1), 100_000_001))
    made = struct.pack("<Q", length) + text + payload
    return flipped(made, chance) if chance.randint(0, 7) == 0 else made


def _other_header_field(header, chance):
    if not isinstance(header, dict) or not header:
        return
    name = chance.choice(sorted(header))
    entry = header[name]
    kind = chance.randint(0, 8)
    if kind == 0 or not isinstance(entry, dict):
        header[chance.choice(WORDS)] = entry
    elif kind == 1:
        del header[name]
    elif kind == 2:
        header[name] = chance.choice((None, [], 1, "x", list(entry.values()), {"format": "pt"}))
    elif kind == 3:
        entry["dtype"] = chance.choice(DTYPES)
    elif kind == 4:
        entry[chance.choice(WORDS)] = chance.choice((0, -1, 0.5, 1e300, [[]], {}, True))
    elif kind == 5 and entry:
        del entry[chance.choice(sorted(entry))]
    else:
        field = entry.get(chance.choice(("shape", "data_offsets", "data_offsets")))
        if isinstance(field, list):
            at = chance.randint(0, len(field))
            other = chance.choice((*NUMBERS, *HUGE, -1, -0, 2.0, True, "1", None))
            field[at : at + chance.randint(0, 1)] = [other][: chance.randint(0, 1)]
