"""Structure-aware fuzzing; `FUZZ_EXAMPLES=200000` for more than a look."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paraload.errors import TransformError
from paraload.formats.transforms import ZstdDecoder
from paraload.workers import records as _records
from tests.fuzz import mutate, oracle, seeds, targets

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FINDINGS = sorted((Path(__file__).parent / "findings").glob("*-*"))

pytestmark = pytest.mark.timeout(0 if EXAMPLES else 120)
chances = st.randoms(use_true_random=False)


def fuzz(examples):
    return settings(
        max_examples=EXAMPLES or examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.fixture(autouse=True, scope="module")
def _warm():
    oracle.warm_up()


@given(data=st.sampled_from(seeds.metadata()), chance=chances)
@fuzz(600)
def test_metadata(data, chance):
    mutated = mutate.mutated_pickle(data, chance)
    oracle.check_unpickler(mutated)
    oracle.check_metadata(mutated)


@given(data=st.sampled_from(list(seeds.records())), chance=chances)
@fuzz(600)
def test_records(data, chance):
    oracle.check_record(mutate.mutated_record(data, chance))


@given(zstd=st.sampled_from(seeds.compressed()), chance=chances)
@fuzz(250)
def test_whole_checkpoints(zstd, chance):
    oracle.check_checkpoint(mutate.mutated_checkpoint(seeds.checkpoint(zstd=zstd), chance))


@given(data=st.sampled_from(seeds.safetensors()), chance=chances)
@fuzz(1500)
def test_safetensors(data, chance):
    oracle.check_safetensors(mutate.mutated_safetensors(data, chance))


@given(data=st.binary(max_size=64), has_length=st.booleans())
@fuzz(500)
def test_safetensors_of_any_bytes(data, has_length):
    oracle.check_safetensors((len(data).to_bytes(8, "little") if has_length else b"") + data)


@pytest.mark.parametrize("text", [b"7", b"null", b"[1]", b'"x"', b"{}"])
def test_headers_without_tensors_are_mutated_too(text):
    for seed in range(20):
        mutate.mutated_safetensors(len(text).to_bytes(8, "little") + text, random.Random(seed))


def test_findings_stay_fixed():
    for path in FINDINGS:  # none yet
        targets.replay(path)


def test_every_seed_is_good():
    for data in seeds.metadata():
        oracle.check_metadata(data)
    for data in seeds.records():
        oracle.check_record(data)
    for data in seeds.safetensors():
        assert oracle.check_safetensors(data) == "accepted"
    for zstd in seeds.compressed():
        files = seeds.checkpoint(zstd=zstd)
        assert oracle.check_checkpoint(files) == "loaded"


def test_the_oracle_sees_a_reader_that_does_not_check(monkeypatch):
    files, payload = dict(seeds.checkpoint()), seeds.state()["big"].numpy().tobytes()
    [name] = [name for name, data in files.items() if payload in data]
    files[name] = files[name].replace(payload, payload[:803] + b"x" + payload[804:])
    assert oracle.check_checkpoint(files) == "refused"
    monkeypatch.setattr(_records, "check_payload", lambda _, found, __: found.payload_bytes)
    with pytest.raises(oracle.Broken, match="were not saved"):
        oracle.check_checkpoint(files)


def test_a_zstd_frame_is_given_no_more_memory_than_it_can_fill():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(300_000))
    with oracle.watched():
        assert ZstdDecoder()(memoryview(frame), 1 << 40) == bytes(300_000)
        with pytest.raises(TransformError):
            ZstdDecoder()(memoryview(frame[:-2]), 1 << 40)
