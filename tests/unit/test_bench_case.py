"""What ``paraload bench`` reads, in which order, and the raw limit of it."""

from __future__ import annotations

import pytest
import torch

from paraload.cli._bench_arms import RAW, make_arms
from paraload.cli._bench_case import Case, Record, chosen, records_of
from paraload.cli._checkpoint import read_metadata
from paraload.cli._raw import pieces_of, read_raw
from paraload.cli._rounds import interleaved
from paraload.testing import make_checkpoint


def record(path, start, nbytes):
    shape = (nbytes,)
    return Record(
        index=None, path=path, start=start, end=start + nbytes, shape=shape, dtype=torch.uint8
    )


@pytest.mark.parametrize(
    ("limit_bytes", "expected"),
    [
        (1000, ["b0", "a0", "a1", "a2", "b1", "c0"]),
        (65, ["b0", "a0", "a1", "b1", "c0"]),
        (60, ["b0", "a0", "a1", "c0"]),  # b1 does not fit, a1 does
        (30, ["b0", "a0", "c0"]),
        (25, ["b0", "a0"]),
        (1, ["a0"]),  # at least one
    ],
)
def test_a_part_is_taken_from_all_files_in_turn(limit_bytes, expected):
    records = {
        "b0": record("b", 0, 10),
        "a0": record("a", 0, 10),
        "a1": record("a", 10, 15),
        "a2": record("a", 25, 100),
        "b1": record("b", 10, 20),
        "c0": record("c", 0, 10),
    }
    names = {id(one): name for name, one in records.items()}
    taken = [names[id(one)] for one in chosen(list(records.values()), limit_bytes)]
    assert taken == expected


def test_the_raw_limit_reads_as_many_bytes_into_the_same_tensors(tmp_path):
    state = {f"layers.{n}": torch.randn(256, 512) for n in range(3)}
    make_checkpoint(tmp_path, state | {"scale": torch.tensor(0.5), "note": "hello"}, files=1)
    metadata = read_metadata(tmp_path).metadata
    case = Case.of(tmp_path, metadata, records_of(metadata))
    *_, arm = make_arms(case, executors=["threads"], workers=[2], with_cold=False)
    assert arm.reader == RAW
    run = arm.prepare()
    case.poison()
    run()
    file = (tmp_path / "__0_0.distcp").read_bytes()
    for number, record in enumerate(case.records):
        if record.shape is not None:
            expected = file[record.start : record.start + record.nbytes]
            assert bytes(case.memory(number)) == expected


def test_the_raw_limit_says_where_a_file_is_cut(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    pieces = list(pieces_of(str(tmp_path / "file"), 50, memoryview(bytearray(100))))
    with pytest.raises(OSError, match="ends too early, at byte 100"):
        read_raw(pieces, workers=2)


def test_every_arm_runs_once_in_a_round_and_the_order_changes():
    names = ["a", "b", "c", "d"]
    turns = list(interleaved(names, rounds=6))
    orders = [[name for number, name in turns if number == wanted] for wanted in range(6)]
    assert [number for number, _ in turns] == sorted(number for number, _ in turns)
    assert all(sorted(order) == names for order in orders)
    assert len({tuple(order) for order in orders}) > 3
    assert turns == list(interleaved(names, rounds=6)), "the same command runs in another order"
