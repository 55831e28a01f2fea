"""The memory that a pickle asks for is bounded before it is unpickled."""

from __future__ import annotations

import pickle

import pytest

from paraload.core.pickle_scan import ExcessError, require_bounded_memory
from tests.unit.metadata_cases import example

MANY = {str(number) * 30: (number, "x" * 300, b"y" * 70_000) for number in range(40)}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("thing", [example(), MANY, 1 << 9000, "\u1234" * 200, 0.5, bytearray(9)])
def test_what_writers_write_asks_for_little(thing, protocol):
    require_bounded_memory(pickle.dumps(thing, protocol))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"Nr\xff\xff\xff\x7f",
        b"Nr\x00\x00\x10\x00",
        b"Np9999999999\n",
        b"\x96\0\0\0\x20\0\0\0\0",
        b"\x8e" + b"\xff" * 8,
        b"X\xff\xff\xff\x7f",
        b"\x95" + b"\xff" * 8,
        b"\x95" + b"\x0a" + b"\0" * 7 + b"\x95" + b"\0" * 8,
        b"\x95" + b"\x01" + b"\0" * 7 + b"K\x01",
        b"\x95" + b"\x04" + b"\0" * 7 + b"N" + b"C\x08" + b"x" * 8,
        b"\x95" + b"\x02" + b"\0" * 7 + b"I1\n",
        b"N2\x86",
    ],
)
@pytest.mark.parametrize(
    "before", [b"", b"\x8c\x05r\0\0\0\0", b"I1\n", b"X\x01\0\0\0r", b"(K\x8c1"]
)
def test_what_asks_for_more_is_refused(before, opcodes):
    with pytest.raises(ExcessError):
        require_bounded_memory(b"\x80\x04" + before + opcodes + b".")


@pytest.mark.parametrize("data", [b"", b".", b"\x80", b"\x8c\x40x", b"p", b"c\n", b"\xff", b"r\1"])
def test_cut_ones_are_for_the_unpickler(data):
    require_bounded_memory(data)


def test_what_is_behind_the_end_is_not_read():
    require_bounded_memory(b"N." + b"r\xff\xff\xff\xff")
