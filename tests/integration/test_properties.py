"""paraload loads what torch's reader can load, to the same bytes, and touches no others."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from paraload import ParallelFileSystemReader
from paraload.core.compat import ZStandard
from paraload.core.tasks import LocateTask, RecordsTask, RunsTask
from paraload.executors import choice as _execution
from paraload.executors import threads as _threads
from paraload.geometry import staging_block as _region
from paraload.geometry import strided_copy as _strided
from paraload.planning import read_tasks as _plan
from paraload.sources import local as _local
from paraload.sources.row_copy import copy_rows
from paraload.workers import run_task as _worker
from tests.old_torch import EXTENSIONS

DTYPES = [
    getattr(torch, name, torch.float8_e5m2)  # torch 2.6 lacks the last
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
]
POISON = 0xA5

pytestmark = [
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
    pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning"),
]

slow_enough = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def small_knobs(monkeypatch):
    """Sizes at which tensors of a few hundred bytes are located, split, blocked and shared out."""
    knobs = _plan.PlanKnobs(
        locate_from_bytes=1800,
        locate_batch=2,
        block_bytes=6000,
        at_once_bytes=4000,
        max_gap_bytes=64,
        split_bytes=512,
        min_split_bytes=512,
    )
    monkeypatch.setattr(_plan.PlanKnobs, "of", lambda _: knobs)
    monkeypatch.setattr(_execution, "_SHARE_FROM_BYTES", 0)
    monkeypatch.setattr(_strided, "_MIN_ROWS", 2)
    monkeypatch.setattr(_strided, "_SCRATCH_BYTES", 200)
    monkeypatch.setattr(_strided, "_PACKED_ROW_COSTS_BYTES", 100)
    monkeypatch.setattr(_strided, "_SPREAD_ROW_COSTS_BYTES", 120)
    monkeypatch.setattr(_region, "_MANY_SERIES", 4)
    monkeypatch.setattr(_region, "_SMALL_SERIES_BYTES", 64)


@pytest.fixture
def tasks_done(monkeypatch):
    """The tasks that the threads have run."""
    done = []

    def noting(task, context, sink):
        done.append(task)
        return _worker.run_task(task, context, sink)

    monkeypatch.setattr(_threads, "run_task", noting)
    return done


def raw(tensor):
    """The bytes of all the memory behind a tensor."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.detach().untyped_storage())


def bits(tensor):
    """The bytes of the elements, in order."""
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
    return raw(fresh.copy_(tensor.detach()))


def filled(shape, dtype, seed):
    """Random bits: NaNs with payloads, denormals, and all."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.Size(shape).numel())
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    nbytes = count * dtype.itemsize
    bits = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def arranged(shape, dtype, layout):
    """An uninitialised tensor of ``shape`` with another memory layout."""
    match layout:
        case "transposed" if len(shape) >= 2:
            return torch.empty(shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1])
        case "rotated" if len(shape) >= 3:
            return torch.empty((*shape[1:], shape[0]), dtype=dtype).movedim(-1, 0)
        case "spaced" if len(shape) >= 1:
            return torch.empty([n * 2 + 1 for n in shape], dtype=dtype)[
                tuple(slice(1, 2 * n + 1, 2) for n in shape)
            ]
        case "inside" if len(shape) >= 1:
            return torch.empty([n + 3 for n in shape], dtype=dtype)[
                tuple(slice(2, n + 2) for n in shape)
            ]
        case _:
            return torch.empty(shape, dtype=dtype)


LAYOUTS = ["contiguous", "transposed", "rotated", "spaced", "inside"]
SHAPES = st.one_of(
    st.lists(st.integers(0, 7), max_size=3).map(tuple),
    st.sampled_from([(1200,), (40, 33), (9, 8, 17), (1, 700), (600, 1)]),
)


@dataclass(frozen=True)
class Saved:
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    kind: str
    seed: int

    def tensor(self):
        values = filled(self.shape, self.dtype, self.seed)
        if self.kind == "expanded" and self.shape:
            return values[:1].expand(self.shape) if self.shape[0] else values
        tensor = arranged(self.shape, self.dtype, self.layout)
        raw(tensor).fill_(0)
        tensor.copy_(values)
        if self.kind == "parameter" and self.dtype.is_floating_point:
            return torch.nn.Parameter(tensor)
        return tensor


SAVED = st.builds(
    Saved,
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(["plain", "plain", "expanded", "parameter"]),
    seed=st.integers(0, 9),
)
OBJECTS = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True)
class Writing:
    threads: int
    single_file_per_rank: bool
    zstd: bool

    def writer(self, folder):
        return FileSystemWriter(
            folder,
            thread_count=self.threads,
            single_file_per_rank=self.single_file_per_rank,
            _extensions=[ZStandard()] if self.zstd else None,
        )


WRITINGS = st.builds(
    Writing,
    threads=st.integers(1, 3),
    single_file_per_rank=st.booleans(),
    zstd=st.sampled_from([False, False, EXTENSIONS.is_here]),
)


@dataclass(frozen=True)
class Reading:
    executor: str = "threads"
    workers: int = 2
    verify: bool = True
    budget: int = 1 << 20

    def reader(self, folder):
        return ParallelFileSystemReader(
            folder,
            executor=self.executor,
            max_workers=self.workers,
            verify=self.verify,
            memory_budget_bytes=self.budget,
        )


READINGS = st.builds(
    Reading,
    executor=st.sampled_from(["threads", "sequential"]),
    workers=st.integers(2, 4),
    verify=st.booleans(),
    budget=st.sampled_from([1 << 20, 64 << 20]),
)


@contextlib.contextmanager
def checkpoint(state, writing):
    with tempfile.TemporaryDirectory() as folder:
        dcp.save(state, storage_writer=writing.writer(folder), no_dist=True)
        yield folder


def poisoned(saved, layout, *, requires_grad=False):
    tensor = arranged(saved.shape, saved.dtype, layout)
    raw(tensor).fill_(POISON if saved.dtype is not torch.bool else 1)
    if requires_grad and saved.dtype.is_floating_point:
        tensor.requires_grad_()
    return tensor


def load(reader, state):
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def same_bytes(one, other):
    for name, tensor in one.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(raw(tensor), raw(other[name])), name
            assert tensor.requires_grad == other[name].requires_grad
        else:
            assert tensor == other[name], name


def test_the_sizes_of_these_tests_take_every_path(tasks_done, monkeypatch):
    """Without this, a renamed constant would leave the tests below with nothing but small reads."""
    gathered, copied = Mock(wraps=_strided.gather), []

    def noting(*arguments, residency_known):
        copied.append(copy_rows(*arguments, residency_known=residency_known))
        return copied[-1]

    monkeypatch.setattr(_worker, "gather", gathered)
    monkeypatch.setattr(_local, "copy_rows", noting)
    saved = Saved((40, 33), torch.complex128, "contiguous", "plain", 1)
    written = {"t": saved.tensor(), "small": torch.ones(3), "short": torch.ones(500)}
    with checkpoint(written, Writing(1, True, False)) as at:
        reader = Reading().reader(at)
        load(reader, {"short": torch.zeros(500)})
        (task,) = tasks_done
        assert task.at_once_bytes
        load(reader, {"t": poisoned(saved, "contiguous"), "small": torch.zeros(3)})
        load(reader, {"t": torch.zeros(40, 33, dtype=torch.complex64)})
        load(reader, {"t": poisoned(saved, "spaced")})
    assert reader.last_report.executor == "threads"
    assert {type(task) for task in tasks_done} == {LocateTask, RecordsTask, RunsTask}
    assert all(task.needed_bytes <= 512 for task in tasks_done if isinstance(task, RunsTask))
    assert sum(isinstance(task, RunsTask) for task in tasks_done) > 3 * 20
    assert gathered.call_count > 20
    assert not copied
    dims = [Cuts(40, (), 0, 40), Cuts(33, (), 3, 5)]
    with tempfile.TemporaryDirectory() as at:
        write_chunks(at, saved.tensor(), dims, Writing(1, True, False))
        for layout in ("contiguous", "inside"):
            read_slice(Reading().reader(at), dims, saved.dtype, layout)
    assert len(copied) > 10
    assert all(copied)


@slow_enough
@given(
    st.lists(SAVED, min_size=1, max_size=6),
    st.lists(OBJECTS, max_size=2),
    st.lists(st.sampled_from(LAYOUTS), min_size=6, max_size=6),
    st.booleans(),
    WRITINGS,
    READINGS,
)
def test_whole_tensors_and_objects(saved, objects, layouts, grad, writing, reading):
    state = {f"t{n}": one.tensor() for n, one in enumerate(saved)}
    state |= {f"o{n}": one for n, one in enumerate(objects)}

    def destinations():
        made = {
            f"t{n}": poisoned(one, layout, requires_grad=grad)
            for n, (one, layout) in enumerate(zip(saved, layouts, strict=False))
        }
        return made | {f"o{n}": None for n in range(len(objects))}

    with checkpoint(state, writing) as folder:
        expected = load(FileSystemReader(folder), destinations())
        same_bytes(load(reading.reader(folder), destinations()), expected)
        for n, one in enumerate(saved):
            if one.dtype is not torch.bool:
                assert torch.equal(bits(expected[f"t{n}"]), bits(state[f"t{n}"]))


# --------------------------------------------------------------- chunks and slices


@dataclass(frozen=True)
class Cuts:
    """Where a dimension is cut into chunks, and the part of it that is wanted."""

    size: int
    cuts: tuple[int, ...]
    start: int
    length: int

    def pieces(self):
        edges = [0, *sorted(set(self.cuts)), self.size]
        return [(a, b - a) for a, b in pairwise(edges) if b > a]


@st.composite
def dimensions(draw):
    size = draw(st.sampled_from([1, 2, 5, 16, 33]))
    cuts = tuple(draw(st.lists(st.integers(1, size), max_size=2)))
    start = draw(st.integers(0, size - 1))
    return Cuts(size, cuts, start, draw(st.integers(1, size - start)))


class ChunkPlanner:
    """Enough of a SavePlanner to write chunks of a tensor."""

    def __init__(self, tensor):
        self.tensor = tensor

    def resolve_data(self, write_item):
        chunk = write_item.tensor_data.chunk
        return narrowed(self.tensor, chunk.offsets, chunk.sizes)


def narrowed(tensor, offsets, lengths):
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor


def write_chunks(folder, tensor, dims, writing, fqn="w"):
    """Save ``tensor`` as a grid of chunks, as ranks would."""
    grid = [((), ())]
    for dim in dims:
        grid = [((*o, a), (*n, b)) for o, n in grid for a, b in dim.pieces()]
    chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(n)) for o, n in grid]
    properties = TensorProperties.create_from_tensor(tensor)
    size = tensor.size()
    items = [
        WriteItem(
            index=MetadataIndex(fqn, chunk.offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=size),
        )
        for chunk in chunks
    ]
    writer = writing.writer(folder)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_global_plan([writer.prepare_local_plan(SavePlan(items))])[0]
    results = writer.write_data(plan, ChunkPlanner(tensor)).value()
    metadata = Metadata({fqn: TensorStorageMetadata(properties, size, chunks)})
    writer.finish(metadata, [results])


def slice_plan(reader, target, dims, fqn="w"):
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, True)
    wanted = ChunkStorageMetadata(
        torch.Size([dim.start for dim in dims]), torch.Size([dim.length for dim in dims])
    )
    stored = metadata.state_dict_metadata[fqn]
    items = [
        replace(item, dest_index=MetadataIndex(fqn))
        for item in create_read_items_for_chunk_list(fqn, stored, [wanted])
    ]
    planner = DefaultLoadPlanner()
    planner.set_up_planner({fqn: target}, metadata, True)
    return LoadPlan(items), planner


def read_slice(reader, dims, dtype, layout):
    target = arranged(tuple(dim.length for dim in dims), dtype, layout)
    raw(target).fill_(POISON if dtype is not torch.bool else 1)
    plan, planner = slice_plan(reader, target, dims)
    reader.read_data(plan, planner).wait()
    return target


@slow_enough
@given(
    st.lists(dimensions(), min_size=1, max_size=4),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(LAYOUTS),
    WRITINGS,
    READINGS,
)
def test_slices_of_chunked_tensors(dims, dtype, saved_layout, target_layout, writing, reading):
    shape = tuple(dim.size for dim in dims)
    tensor = Saved(shape, dtype, saved_layout, "plain", 3).tensor()
    with tempfile.TemporaryDirectory() as folder:
        write_chunks(folder, tensor, dims, writing)
        expected = read_slice(FileSystemReader(folder), dims, dtype, target_layout)
        reader = reading.reader(folder)
        got = read_slice(reader, dims, dtype, target_layout)
        assert torch.equal(raw(got), raw(expected))
        wanted = narrowed(tensor, [d.start for d in dims], [d.length for d in dims])
        assert torch.equal(bits(got), bits(wanted))
        assert reader.last_report.bytes_needed == got.numel() * dtype.itemsize


@slow_enough
@given(SAVED, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), READINGS)
def test_other_dtypes_convert_as_torch_does(saved, dtype, layout, reading):
    with checkpoint({"t": saved.tensor()}, Writing(1, True, False)) as folder:
        outcomes = []
        for reader in (FileSystemReader(folder), reading.reader(folder)):
            target = arranged(saved.shape, dtype, layout)
            raw(target).fill_(0)
            try:
                load(reader, {"t": target})
                outcomes.append(raw(target))
            except CheckpointException:
                outcomes.append(None)
        expected, got = outcomes
        if saved.dtype.is_complex and not dtype.is_complex and target.numel():
            assert got is None  # torch drops the imaginary parts
            return
        assert (got is None) == (expected is None)
        assert expected is None or torch.equal(got, expected)


@slow_enough
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=2, max_size=4, unique=True),
    st.sampled_from(["same", "halves", "interleaved", "shifted"]),
    st.booleans(),
    WRITINGS,
    READINGS,
)
def test_targets_that_share_memory_end_as_with_torch(names, how, tied, writing, reading):
    """The last one wins, and the report names what it replaced; ``strict`` refuses."""
    saved = {name: torch.full((700,), 3.0 if tied else float(n)) for n, name in enumerate(names)}

    def targets():
        memory = torch.zeros(3000)
        views = {
            "same": lambda n: memory[:700],
            "halves": lambda n: memory[n * 700 : (n + 1) * 700],
            "interleaved": lambda n: memory[n % 4 : 2800 : 4],
            "shifted": lambda n: memory[n * 10 : n * 10 + 700],
        }
        return {name: views[how](n) for n, name in enumerate(names)}

    with checkpoint(saved, writing) as folder:
        expected = load(FileSystemReader(folder), targets())
        got, reader = targets(), reading.reader(folder)
        load(reader, got)
        for name in names:
            assert torch.equal(raw(got[name]), raw(expected[name]))
        is_lost = how in {"same", "shifted"} and not tied
        assert bool(reader.last_report.overwritten) == is_lost
        if is_lost:
            strict = dataclasses.replace(reader.options, strict=True)
            with pytest.raises(CheckpointException, match="AliasedTargetError"):
                load(ParallelFileSystemReader(folder, options=strict), targets())


@pytest.mark.parametrize("executor", ["processes", "pool"])
@pytest.mark.parametrize("zstd", [False, True])
def test_process_executors_too(executor, zstd):
    saved = [
        Saved(shape, dtype, layout, kind, n)
        for n, (shape, dtype, layout, kind) in enumerate(
            [
                ((40, 33), torch.bfloat16, "contiguous", "plain"),
                ((1200,), torch.float32, "inside", "parameter"),
                ((9, 8, 17), torch.int64, "rotated", "plain"),
                ((40, 33), torch.complex64, "transposed", "plain"),
                ((), torch.float64, "contiguous", "plain"),
                ((0, 3), torch.float16, "contiguous", "plain"),
                ((600, 1), torch.bool, "spaced", "plain"),
                ((300, 7), torch.float8_e5m2, "contiguous", "expanded"),
            ]
        )
    ]
    state = {f"t{n}": one.tensor() for n, one in enumerate(saved)} | {"o": [0.1, "x"]}
    for layout in LAYOUTS:

        def destinations(layout=layout):
            made = {f"t{n}": poisoned(one, layout) for n, one in enumerate(saved)}
            return made | {"o": None}

        with checkpoint(state, Writing(3, True, zstd)) as folder:
            reader = Reading(executor=executor, budget=64 << 20).reader(folder)
            expected = load(FileSystemReader(folder), destinations())
            same_bytes(load(reader, destinations()), expected)
            assert reader.last_report.executor == executor
