"""Audits: a cached layout agrees with a full parse of the archive."""

from __future__ import annotations

import copy
import io
import os
import threading
import zipfile
from contextlib import ExitStack, closing
from itertools import pairwise

import pytest
import torch

import paraload
from benchmarks.rated import RatedSource
from paraload.core.results import Audited, Failed, LandedItems
from paraload.core.tasks import DISCARDED, RecordSpec, RunsTask, Stored, Wanted
from paraload.engine.load import Load
from paraload.errors import FormatError
from paraload.executors.ramp import RampLimits
from paraload.planning.read_tasks import first_tasks
from paraload.sources.local import LocalSource
from paraload.verification.audit import KNOBS
from paraload.workers import audit as _audit
from paraload.workers.layout_cache import LayoutCache
from paraload.workers.read_context import ReadContext
from paraload.workers.run_task import run_task
from paraload.workers.sinks import TargetSink
from tests.integration import support

#: Looked at in memory; and located, with the payload left to be summed.
LENGTHS = [40, 70_000]


@pytest.fixture
def taken_apart(monkeypatch):
    """The lengths of the archives that were."""
    seen = []
    apart = _audit.check_entries

    def check(file, nbytes, **keywords):
        seen.append(nbytes)
        return apart(file, nbytes, **keywords)

    monkeypatch.setattr(_audit, "check_entries", check)
    return seen


class Records:
    """Tensors of one shape in one file, as the records of a checkpoint."""

    def __init__(self, folder, count, length):
        self.path = folder / "data"
        self.specs = []
        wanted = Wanted("tensor", (0,), (length,), (), Stored("float32", (length,)))
        with self.path.open("wb") as file:
            for number in range(count):
                start = file.tell()
                torch.save(torch.randn(length), file)
                spec = RecordSpec(number, "data", start, file.tell(), f"w{number}", wanted)
                self.specs.append(spec)
        self._source = LocalSource(folder)
        self.reads = 0

    def close(self):
        self._source.close()

    def check(self, specs, known):
        """For each of ``specs`` an :class:`Audited`, or its error; learns layouts."""
        sink = TargetSink({})
        sink.layouts = known
        context = ReadContext(source=self._source, verify=True, audit=True)
        answers = {}
        for task in first_tasks(specs, straight_through=True, knobs=KNOBS):
            result = run_task(task, context, sink)
            self.reads += result.tally.reads
            for outcome in result.outcomes:
                if isinstance(outcome, LandedItems):
                    assert not outcome.unverified
                    nbytes = outcome.verified_bytes // len(outcome.items)
                    for item in outcome.items:
                        answers[item] = Audited(
                            item=item, verified_bytes=nbytes, unverifiable_bytes=0
                        )
                else:
                    is_failed = isinstance(outcome, Failed)
                    answers[outcome.item] = outcome.error if is_failed else outcome
        return [answers[spec.item] for spec in specs]


@pytest.fixture
def make_records(tmp_path):
    """Records that are closed at the end."""
    with ExitStack() as stack:
        yield lambda count, length: stack.enter_context(closing(Records(tmp_path, count, length)))


@pytest.fixture(params=LENGTHS)
def records(make_records, request):
    return make_records(3, request.param)


def said(answer):
    """An answer, to be compared."""
    return answer if isinstance(answer, Audited) else (type(answer), str(answer))


def test_a_flip_of_any_byte_is_found_as_if_nothing_was_known(records):
    known = LayoutCache()
    first, second, _ = records.specs
    [good] = records.check([first], known)
    # A payload in memory is summed at once; that of a located record is not looked at here.
    payload = range(good.payload.start, good.payload.end) if good.payload else ()
    found = 0
    for at in range(second.start, second.end):
        if at - second.start in payload:
            continue
        support.flip(records.path, at, 1 << at % 8)
        [expected] = records.check([second], LayoutCache())
        [got] = records.check([second], copy.deepcopy(known))  # what is accepted becomes known
        assert said(got) == said(expected), at - second.start
        found += not isinstance(got, Audited)
        support.flip(records.path, at, 1 << at % 8)
    assert found > 500


def test_only_the_first_of_a_kind_is_taken_apart(tmp_path, taken_apart):
    tensors = {f"a{n:03}": torch.randn(40) for n in range(50)}
    tensors |= {f"b{n:03}": torch.randn(40).to(torch.bfloat16) for n in range(50)}
    tensors |= {f"c{n}": torch.randn(70_000 + n % 2) for n in range(8)}
    support.save(tmp_path, tensors, files=2)
    report = paraload.verify(tmp_path, max_workers=1)
    assert report.ok
    assert len(taken_apart) == 4
    payload = sum(tensor.nbytes for tensor in tensors.values())
    assert report.bytes_checked > payload
    taken_apart.clear()
    # Two threads may meet the first of a kind at once, and no more than that.
    assert paraload.verify(tmp_path, max_workers=2).bytes_checked == report.bytes_checked
    assert len(taken_apart) <= 8


def test_one_damaged_record_among_alike_ones_is_the_only_finding(tmp_path):
    tensors = {f"a{n:03}": torch.randn(40) for n in range(50)}
    support.save(tmp_path, tensors, files=1)
    file, offset, length = support.records_of(tmp_path)["a031"]
    data = file.read_bytes()[offset : offset + length]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("serialization_id"))
        identity = data.index(archive.read(name))
    for at in (support.PAYLOAD + 6, identity + 5, archive.start_dir):
        support.flip(file, offset + at)
        [finding] = paraload.verify(tmp_path).problems
        assert finding.parts[0].name == "a031"
        support.flip(file, offset + at)
    assert paraload.verify(tmp_path).ok


@pytest.mark.parametrize("length", LENGTHS)
def test_damage_of_head_payload_and_tail_of_a_known_layout_is_found(tmp_path, taken_apart, length):
    tensors = {f"a{n}": torch.randn(length) for n in range(6)}
    support.save(tmp_path, tensors, files=1)
    file, offset, size = support.records_of(tmp_path)["a4"]
    with zipfile.ZipFile(io.BytesIO(file.read_bytes()[offset : offset + size])) as archive:
        directory = archive.start_dir
    end = support.PAYLOAD + tensors["a4"].nbytes
    places = {"head": 100, "payload": end - 1, "descriptor": end + 5, "directory": directory}
    for place, at in places.items():
        support.flip(file, offset + at)
        [finding] = paraload.verify(tmp_path, max_workers=1).problems
        assert (finding.parts[0].name, finding.start) == ("a4", offset), place
        support.flip(file, offset + at)
    assert len(taken_apart) <= 2 * len(places)  # the others were known


def test_a_big_payload_is_summed_in_pieces_that_threads_share(tmp_path, monkeypatch):
    support.save(tmp_path, {"huge": torch.randn(9 << 20), "small": torch.ones(3)}, files=1)
    seen = []
    really = Load._handle
    monkeypatch.setattr(Load, "_handle", lambda load, r: (seen.append(r), really(load, r))[1])
    report = paraload.verify(tmp_path, max_workers=2)
    assert report.ok
    runs = sorted((r.task.start, r.task.end) for r in seen if isinstance(r.task, RunsTask))
    _, offset, _ = support.records_of(tmp_path)["huge"]
    assert len(runs) > 2
    assert (runs[0][0], runs[-1][1]) == (
        offset + support.PAYLOAD,
        offset + support.PAYLOAD + (36 << 20),
    )
    assert all(end == start for (_, end), (start, _) in pairwise(runs))
    assert {r.task.target for r in seen if isinstance(r.task, RunsTask)} == {DISCARDED}


def test_a_slow_storage_gets_more_threads_unless_their_number_is_given(tmp_path, monkeypatch):
    support.save(tmp_path, {f"w{n}": torch.randn(300, 700) for n in range(40)}, files=4)
    monkeypatch.setattr(
        "paraload.executors.choice.choose_ramp", lambda *_: RampLimits(start=2, limit=8, cores=2)
    )
    monkeypatch.setattr(
        "paraload.verification.verify.source_of",
        lambda reader: RatedSource(LocalSource(reader.path), bytes_per_second_per_stream=40e6),
    )
    at_once = []

    def progress(_):
        at_once.append(sum(t.name.startswith("paraload-") for t in threading.enumerate()))

    assert paraload.verify(tmp_path, progress=progress).ok
    assert max(at_once) > 2
    at_once.clear()
    assert paraload.verify(tmp_path, progress=progress, max_workers=3).ok
    assert max(at_once) == 3


def test_progress_reaches_the_end_though_records_are_damaged(tmp_path):
    tensors = {f"w{n}": torch.randn(40) for n in range(9)} | {"huge": torch.randn(9 << 20)}
    support.save(tmp_path, tensors, files=1)
    for name, at in (("w3", 100), ("w5", support.PAYLOAD + 6), ("huge", 5 << 20)):
        file, offset, _ = support.records_of(tmp_path)[name]
        support.flip(file, offset + at)
    seen = []
    assert len(paraload.verify(tmp_path, progress=seen.append).problems) == 3
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert seen[-1].items_done == seen[-1].items_total == len(tensors)


def test_a_payload_is_compared_although_all_around_it_is_as_known(records):
    known = LayoutCache()
    first, second, _ = records.specs
    records.check([first], known)
    support.flip(records.path, second.start + support.PAYLOAD)
    [answer] = records.check([second], known)
    if isinstance(answer, Audited):
        assert answer.payload.crc
    else:
        assert answer.problem == "the tensor's bytes are damaged"


def test_a_record_of_the_same_kind_that_is_not_what_the_metadata_says_is_found(make_records):
    records = make_records(2, 40)
    known = LayoutCache()
    first, second = records.specs
    records.check([first], known)
    other = second.wanted._replace(stored=Stored("float32", (41,)))
    [answer] = records.check([second._replace(wanted=other)], known)
    assert "not the one that the metadata describes" in str(answer)


def test_the_directory_and_the_descriptor_of_a_payload_are_compared(records):
    """Torch does not look; but one of them was written for other bytes."""
    first = records.specs[0]
    data = records.path.read_bytes()[first.start : first.end]
    at = data.rindex(b"archive/data/0" if b"archive/data/0" in data else b"data/data/0") - 30
    support.flip(records.path, first.start + at)
    [answer] = records.check([first], LayoutCache())
    assert isinstance(answer, FormatError)
    assert "gives the payload another CRC-32" in str(answer)


@pytest.mark.parametrize("field", [20, 24])
def test_the_lengths_of_a_payload_in_the_directory_are_compared(records, field):
    """Torch cannot open an archive whose directory has a wrong one."""
    first, second, _ = records.specs
    data = records.path.read_bytes()[second.start : second.end]
    at = data.rindex(b"archive/data/0" if b"archive/data/0" in data else b"data/data/0") - 46
    known = LayoutCache()
    assert isinstance(records.check([first], known)[0], Audited)
    support.flip(records.path, second.start + at + field)
    for layouts in (known, LayoutCache()):
        [answer] = records.check([second], layouts)
        assert "gives the payload another length" in str(answer)


def test_small_records_are_read_with_one_read(make_records):
    records = make_records(20, 40)
    answers = records.check(records.specs, LayoutCache())
    assert all(isinstance(answer, Audited) for answer in answers)
    assert records.reads == 1


def test_of_records_that_a_cut_file_has_not_each_says_so_and_the_others_are_good(make_records):
    records = make_records(20, 40)
    os.truncate(records.path, records.specs[15].start + 10)
    answers = records.check(records.specs, LayoutCache())
    assert [isinstance(answer, Audited) for answer in answers] == [True] * 15 + [False] * 5
    assert {answer.problem for answer in answers[15:]} == {"file ends too early"}


def test_impossible_ranges_are_reported_one_by_one(make_records):
    records = make_records(3, 40)
    first, second, third = records.specs
    impossible = second._replace(start=second.end, end=second.start)
    good, bad, also_good = records.check([first, impossible, third], LayoutCache())
    assert (type(good), type(also_good)) == (Audited, Audited)
    assert bad.problem == "metadata gives an impossible range"


def test_without_checksums_all_is_counted_as_unverifiable(tmp_path, taken_apart):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        tensors = {f"a{n}": torch.randn(40) for n in range(5)} | {"big": torch.randn(70_000)}
        support.save(tmp_path, tensors, files=1)
    finally:
        torch.serialization.set_crc32_options(before)
    report = paraload.verify(tmp_path)
    assert report.ok
    assert report.bytes_checked == 0
    assert report.bytes_unverifiable > sum(tensor.nbytes for tensor in tensors.values())
    assert len(taken_apart) == len(tensors)  # such are never known


def test_archives_of_others_are_taken_apart_each_time(tmp_path, taken_apart):
    """No descriptors behind their entries: the CRC-32 is in the head, and differs."""
    buffer = io.BytesIO()
    torch.save(torch.arange(40.0), buffer)
    rewritten = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(rewritten, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    data = rewritten.getvalue()
    with closing(Records(tmp_path, 0, 40)) as records:
        records.path.write_bytes(data * 2)
        wanted = Wanted("tensor", (0,), (40,), (), None)
        specs = [
            RecordSpec(n, "data", n * len(data), (n + 1) * len(data), f"w{n}", wanted)
            for n in range(2)
        ]
        answers = records.check(specs, LayoutCache())
    assert [type(answer) for answer in answers] == [Audited] * 2
    assert len(taken_apart) == 2
