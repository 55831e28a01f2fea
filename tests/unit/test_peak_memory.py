"""Peak memory of some work, with child processes counted once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from benchmarks import peak_memory
from benchmarks.peak_memory import PeakMemory

MIB = 1 << 20


def test_peak_memory_is_what_was_held_at_once():
    with PeakMemory() as memory:
        for _ in range(3):
            bytearray(32 * MIB).rfind(b"x")  # its pages are touched, and given back
    # The kernel counts pages for each core, and adds them up now and then.
    assert 31 * MIB < memory.peak_bytes < 48 * MIB


@dataclass
class Process:
    words: list[str]

    def cmdline(self):
        return self.words


@pytest.mark.parametrize(
    ("words", "known_s", "may_be_us"),
    [
        (["python", "train.py"], 0.0, True),  # between vfork and exec
        ([], 0.0, True),  # in exec
        (["python", "-c", "spawn_main()"], 0.0, False),
        (["python", "train.py"], 5.0, False),  # forked
    ],
)
def test_a_child_that_still_shares_our_memory_is_not_counted(words, known_s, may_be_us):
    us = Process(["python", "train.py"])
    assert peak_memory._may_be_us(Process(words), us, known_s) == may_be_us
