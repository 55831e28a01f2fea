"""Contract suites for people who add a storage, a format or an executor, and things to test with.

A suite is a class of test methods; pytest collects a subclass that says what is to be tested::

    class TestMySource(SourceContract):
        @pytest.fixture
        def files(self, tmp_path): ...  # writes FILES somewhere

        @pytest.fixture
        def source(self, files): ...  # the source that reads them

:func:`resources` and :func:`leaked` tell what a piece of work has left behind.

Only :func:`make_checkpoint` needs torch; sources, formats and executors are tested without it.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import psutil

from paraload._checksum import crc32
from paraload._geometry import Run
from paraload._sink import TargetMemory
from paraload._task import Failed, Landed, ReadTask, RunsTask
from paraload._work import Work
from paraload.errors import MissingFileError, ShortFileError
from paraload.formats._base import NeedBytes, TensorRecord, Unsupported

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from paraload._task import TaskResult
    from paraload.executors._base import ReadExecutor
    from paraload.formats._base import ItemFormat
    from paraload.sources._base import ByteSource, FileIdentity

__all__ = [
    "FILES",
    "ExecutorContract",
    "FaultySource",
    "FormatContract",
    "SourceContract",
    "leaked",
    "make_checkpoint",
    "resources",
]

#: The files that a source under test must be able to read: path -> content.
FILES: Final[dict[str, bytes]] = {
    "empty": b"",
    "small": b"0123456789",
    "sub/large": random.Random(7).randbytes(300_000),  # noqa: S311 - content, not a secret
}


def resources() -> Counter[str]:
    """What this process holds apart from ordinary memory, every thing as a line of text.

    Open descriptors, threads, processes below this one, and the machine's shared memory, as far as
    no other program has it.
    """
    held: Counter[str] = Counter()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            held[f"descriptor of {fd.readlink()}"] += 1
        except FileNotFoundError:
            continue  # the descriptor of this listing itself
    held.update(f"thread {thread.name}" for thread in threading.enumerate())
    family = {child.pid for child in psutil.Process().children(recursive=True)}
    held.update(f"process {pid}" for pid in family)
    segments = set(map(str, _SHARED_MEMORY.iterdir())) if _SHARED_MEMORY.is_dir() else set()
    if segments:
        family.add(os.getpid())
        segments -= _mapped_by(pid for pid in psutil.pids() if pid not in family)
    held.update(f"shared memory {segment}" for segment in segments)
    return held


_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only listed


def _mapped_by(pids: Iterable[int]) -> set[str]:
    """The segments of shared memory that these processes have mapped."""
    found: set[str] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended, or is somebody else's
        lines = (line for line in maps.splitlines() if f"{_SHARED_MEMORY}/" in line)
        found.update(line.split(maxsplit=5)[-1] for line in lines)
    return found


def leaked(before: Counter[str], *, grace_s: float = 10.0) -> list[str]:
    """What is there since ``before = resources()``, and does not go away in ``grace_s`` seconds.

    Other programs use the machine's shared memory too; what they have there goes by itself.
    """
    deadline = time.monotonic() + grace_s
    while (left := resources() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    return sorted(left)


def make_checkpoint(
    folder: str | os.PathLike[str],
    state_dict: dict[str, Any],
    *,
    files: int = 2,
    single_file_per_rank: bool = True,
    zstd: bool = False,
) -> dict[str, Any]:
    """Save ``state_dict`` with torch's own writer, into ``files`` files; returns it."""
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415 - torch only for those who need it
    from torch.distributed.checkpoint._extension import ZStandard  # noqa: PLC0415 - likewise

    writer = dcp.FileSystemWriter(
        folder,
        thread_count=files,
        single_file_per_rank=single_file_per_rank,
        _extensions=[ZStandard()] if zstd else None,
    )
    dcp.save(state_dict, storage_writer=writer, no_dist=True)
    return state_dict


class FaultySource:
    """Another source with faults: the ``fail_at``-th read of a process raises, or gives damage.

    Args:
        inner: reads the bytes.
        fail_at: number of the read that goes wrong, from 1 on; 0 for none.
        times: how many reads go wrong from there on.
        error: what it raises; ``None`` damages its first buffer instead.
        cut: the damage is a last byte that never arrives, rather than a flipped bit.
        delay_s: how long each read takes longer.
    """

    def __init__(
        self,
        inner: ByteSource,
        *,
        fail_at: int = 0,
        times: int = 1,
        error: Exception | None = None,
        cut: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        self.inner = inner
        self.fail_at = fail_at
        self.times = times
        self.error = error
        self.cut = cut
        self.delay_s = delay_s
        self._numbers = count(1)  # its next() is one step, whatever threads there are

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(
            FaultySource,
            fail_at=self.fail_at,
            times=self.times,
            error=self.error,
            cut=self.cut,
            delay_s=self.delay_s,
        )
        return again, (self.inner,)

    def identify(self, path: str) -> FileIdentity | None:
        """As it is."""
        return self.inner.identify(path)

    def forget(self, path: str) -> None:
        """As it is."""
        self.inner.forget(path)

    def size(self, path: str) -> int:
        """As it is."""
        return self.inner.size(path)

    def read_into(self, path: str, start: int, buffers: Sequence[memoryview]) -> int:
        """Read, unless it is this one's turn to fail."""
        time.sleep(self.delay_s)
        number = next(self._numbers)
        if not self.fail_at or not 0 <= number - self.fail_at < self.times:
            return self.inner.read_into(path, start, buffers)
        if self.error is not None:
            raise copy.copy(self.error)
        at = -1 if self.cut else 0
        before = buffers[0][at]
        requests = self.inner.read_into(path, start, buffers)
        buffers[0][at] = before if self.cut else buffers[0][at] ^ 1
        return requests

    def open_stream(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """As it is."""
        return self.inner.open_stream(path)

    def close(self) -> None:
        """As it is."""
        self.inner.close()


def _expect(error: type[Exception], call: Any, *args: Any) -> Exception:
    try:
        call(*args)
    except error as raised:
        return raised
    raise AssertionError(f"no {error.__name__}")


def _pop(queue: list[ReadTask]) -> ReadTask | None:
    return queue.pop() if queue else None


class SourceContract:
    """What every :class:`~paraload.sources._base.ByteSource` does with :data:`FILES`."""

    def test_sizes(self, source: ByteSource) -> None:
        """Every file has its size."""
        assert {path: source.size(path) for path in FILES} == {p: len(d) for p, d in FILES.items()}

    def test_identities(self, source: ByteSource) -> None:
        """A file is known by the same identity each time, with its size; or there is no telling."""
        for path, data in FILES.items():
            identity = source.identify(path)
            if identity is not None:
                assert identity == source.identify(path)
                assert identity.size_bytes == len(data)
                _expect(MissingFileError, source.identify, "not-there")

    def test_a_file_that_was_forgotten_is_opened_again(self, source: ByteSource) -> None:
        """And may be forgotten twice, or before it was ever read."""
        source.forget("small")
        for _ in range(2):
            assert source.size("small") == len(FILES["small"])
            source.forget("small")
            source.forget("small")

    def test_ranges(self, source: ByteSource) -> None:
        """Ranges arrive as they are, whole and scattered over buffers of any size."""
        data = FILES["sub/large"]
        whole, scattered, last, none = [300_000], [1, 0, 4095, 100_000, 0], [1], [0]
        for start, sizes in (
            *((0, whole), (5, scattered), (299_999, last)),
            *((7, []), (7, none), (300_000, none)),
        ):
            buffers = [bytearray(size) for size in sizes]
            requests = source.read_into("sub/large", start, [memoryview(b) for b in buffers])
            assert requests >= 1 or not sizes
            assert b"".join(buffers) == data[start : start + sum(sizes)]

    def test_a_short_file_is_an_error(self, source: ByteSource) -> None:
        """Reading past the end never gives fewer bytes."""
        for path, start, size in (("small", 5, 6), ("small", 11, 1), ("empty", 0, 1)):
            buffers = [memoryview(bytearray(size))]
            error = _expect(ShortFileError, source.read_into, path, start, buffers)
            assert path in str(error)

    def test_a_missing_file_is_an_error(self, source: ByteSource) -> None:
        """And names the file."""
        error = _expect(MissingFileError, source.size, "not-there")
        assert "not-there" in str(error)
        _expect(MissingFileError, source.read_into, "not-there", 0, [memoryview(bytearray(1))])

    def test_streams(self, source: ByteSource) -> None:
        """A stream is seekable and has the whole file."""
        with source.open_stream("small") as stream:
            stream.seek(3)
            assert stream.read(4) == b"3456"
            assert stream.read() == b"789"

    def test_pickling(self, source: ByteSource) -> None:
        """What arrives in another process reads the same, with handles of its own."""
        source.size("small")
        twin = pickle.loads(pickle.dumps(source))
        buffer = bytearray(10)
        twin.read_into("small", 0, [memoryview(buffer)])
        twin.close()
        assert bytes(buffer) == FILES["small"]

    def test_many_threads(self, source: ByteSource) -> None:
        """Threads may use one source at once."""
        data = FILES["sub/large"]

        def read(start: int) -> bool:
            buffer = bytearray(1000)
            source.read_into("sub/large", start, [memoryview(buffer)])
            return bytes(buffer) == data[start : start + 1000]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(0, 299_000, 500)))

    def test_close_and_go_on(self, source: ByteSource) -> None:
        """A source that was closed opens its files again, and may be closed twice."""
        source.size("small")
        source.close()
        source.close()
        assert source.size("small") == len(FILES["small"])


class FormatContract:
    """What every :class:`~paraload.formats._base.ItemFormat` does.

    Fixtures: ``item_format``; ``records``, complete records as ``bytes -> payload``, each of them
    located when all of it is shown.
    """

    def test_payloads_are_found_with_any_head(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """With more and more bytes: NeedBytes asks for more, and the answer stays the same."""
        for record, payload in records.items():
            wanted, asked = 1, 0
            while isinstance(found := item_format.locate(record[:wanted], len(record)), NeedBytes):
                asked += 1
                assert wanted < found.nbytes <= len(record)
                assert asked < 64  # noqa: PLR2004 - it must come to an end
                wanted = found.nbytes
            assert isinstance(found, TensorRecord)
            assert record[found.start : found.end] == payload
            assert item_format.locate(record, len(record)) == found

    def test_every_prefix_is_answered_with_the_truth_or_a_question(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """Byte by byte: never "no", never another payload; and the same with what it remembers."""
        for record in records:
            whole = _fresh(item_format).locate(record, len(record))
            remembering = _fresh(item_format)
            remembering.locate(record, len(record))
            for wanted in range(min(len(record), 1500)):
                for fmt in (_fresh(item_format), remembering):
                    found = fmt.locate(record[:wanted], len(record))
                    if isinstance(found, NeedBytes):
                        assert wanted < found.nbytes <= len(record)
                    else:
                        assert found == whole

    def test_bytes_behind_a_record_change_nothing(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """A length that is too long leads to the same payload."""
        for record in records:
            for behind in (b"\0", b"PK\x03\x04" * 20, record):
                longer = record + behind
                found = _fresh(item_format).locate(longer, len(longer))
                assert found == item_format.locate(record, len(record))

    def test_the_checksum_is_the_payload_s(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """Header or trailer tell the CRC-32 of the payload."""
        for record, payload in records.items():
            found = item_format.locate(record, len(record))
            assert isinstance(found, TensorRecord)
            crc = found.crc
            if found.trailer is not None:
                start, end = found.trailer
                crc = item_format.read_trailer(record[start:end], len(payload))
            assert crc in {0, crc32(payload)}

    def test_damage_never_raises_nor_leads_outside(
        self, item_format: ItemFormat, records: Mapping[bytes, bytes]
    ) -> None:
        """Whatever the bytes, a record that is found lies inside, and so do its elements."""
        chance = random.Random(1)  # noqa: S311 - repeatable damage
        for record in records:
            for _ in range(300):
                damaged = bytearray(record)
                for _ in range(chance.randint(1, 4)):
                    damaged[chance.randrange(min(len(damaged), 1000))] = chance.randrange(256)
                kept = chance.randint(0, len(damaged))
                found = item_format.locate(bytes(damaged[:kept]), kept)
                if isinstance(found, TensorRecord):
                    assert 0 <= found.start <= found.end <= kept
                    assert found.is_sound()

    def test_other_bytes_are_unsupported(self, item_format: ItemFormat) -> None:
        """Not an exception, and not a payload."""
        chance = random.Random(2)  # noqa: S311 - repeatable
        noise = [chance.randbytes(chance.randrange(3000)) for _ in range(200)]
        for head in (b"", b"x", b"not a record" * 100, bytes(5000), *noise):
            assert isinstance(item_format.locate(head, len(head)), Unsupported)


class _SlowAtZero(FaultySource):
    """Reads that begin a file take longer than all others together."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _SlowAtZero, (self.inner,)

    def read_into(self, path: str, start: int, buffers: Sequence[memoryview]) -> int:
        """Read, in time or not."""
        time.sleep(0 if start else 1.0)
        return super().read_into(path, start, buffers)


def _fresh(item_format: ItemFormat) -> ItemFormat:
    """The format as it arrives in a worker: without anything that it may remember."""
    twin: ItemFormat = pickle.loads(pickle.dumps(item_format))
    return twin


class ExecutorContract:
    """What every :class:`~paraload.executors._base.ReadExecutor` does.

    Fixtures: ``executor``, and ``source``, which reads :data:`FILES` and pickles.
    """

    def _tasks(self, count: int, *, path: str = "sub/large", nbytes: int = 1000) -> list[ReadTask]:
        return [
            RunsTask(
                path=path,
                start=n * nbytes,
                end=(n + 1) * nbytes,
                items=(n,),
                base=n * nbytes,
                target=n,
                runs=(Run(0, 0, nbytes),),
                max_gap_bytes=0,
                checksum=True,
            )
            for n in range(count)
        ]

    def _targets(self, tasks: list[ReadTask]) -> dict[int, TargetMemory]:
        return {
            task.items[0]: TargetMemory(memoryview(bytearray(task.end - task.start)))
            for task in tasks
        }

    def _run(
        self, executor: ReadExecutor, source: ByteSource, tasks: list[ReadTask]
    ) -> Generator[TaskResult, None, None]:
        queue = tasks[::-1]
        work = Work(source=source, verify=True)
        return executor.run(work, partial(_pop, queue), self._targets(tasks))

    def test_every_task_is_run_and_its_bytes_arrive(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """More tasks than any executor takes at once, each with its checksum."""
        tasks = self._tasks(200)
        targets = self._targets(tasks)
        queue = list(tasks)
        work = Work(source=source, verify=True)
        results = list(executor.run(work, partial(_pop, queue), targets))
        assert sorted(result.task.items[0] for result in results) == list(range(200))
        for result in results:
            (landed,) = result.outcomes
            assert isinstance(landed, Landed)
            data = FILES["sub/large"][result.task.start : result.task.end]
            assert bytes(targets[landed.item].memory) == data
            assert landed.crc == crc32(data)
            assert result.ended_s >= result.started_s

    def test_results_may_lead_to_new_tasks_and_targets(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """A feed that is dry now may have more after the next result."""
        tasks = self._tasks(20)
        targets: dict[int, TargetMemory] = {}
        ready = [tasks[0]]
        targets |= self._targets(ready)
        seen = 0
        run = executor.run(Work(source=source, verify=True), partial(_pop, ready), targets)
        for result in run:
            seen += 1
            (landed,) = result.outcomes
            assert isinstance(landed, Landed)
            data = FILES["sub/large"][result.task.start : result.task.end]
            assert bytes(targets[landed.item].memory) == data
            number = result.task.items[0] + 1
            if number < len(tasks):
                targets |= self._targets([tasks[number]])
                ready.append(tasks[number])
        assert seen == len(tasks)

    def test_one_failure_does_not_stop_the_others(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """It is the outcome of its item, with the traceback of its worker."""
        tasks = self._tasks(9)
        tasks[4] = self._tasks(5, path="small")[4]
        queue = list(tasks)
        work = Work(source=source, verify=True)
        run = executor.run(work, partial(_pop, queue), self._targets(tasks))
        outcomes = [outcome for result in run for outcome in result.outcomes]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        assert [outcome.item for outcome in failed] == [4]
        assert isinstance(failed[0].error, ShortFileError)
        assert "Traceback" in failed[0].error.traceback_text
        assert len(outcomes) == len(tasks)

    def test_results_come_as_they_are_ready(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """A slow first task holds up nobody, where there are several workers."""
        results = list(self._run(executor, _SlowAtZero(source), self._tasks(12, nbytes=300)))
        order = [result.task.items[0] for result in results]
        assert sorted(order) == list(range(12))
        assert order.index(0) == (0 if executor.workers == 1 else 11)

    def test_damage_of_a_source_shows_in_the_checksum(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """Sums are made of what arrived, not of what should have."""
        (task,) = self._tasks(1, nbytes=1000)
        for cut in (False, True):
            faulty = FaultySource(source, fail_at=1, cut=cut)
            (result,) = self._run(executor, faulty, [task])
            (landed,) = result.outcomes
            assert isinstance(landed, Landed)
            assert landed.crc != crc32(FILES["sub/large"][:1000])

    def test_nothing_is_left_however_it_ends(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """No descriptor, thread, process or shared memory: when it returns, not some time later."""
        source.read_into("sub/large", 0, [memoryview(bytearray(1))])  # it may keep the file open
        before = resources()
        list(self._run(executor, source, self._tasks(30)))
        assert leaked(before, grace_s=1) == []
        run = self._run(executor, source, self._tasks(100))
        next(run)
        _expect(ZeroDivisionError, run.throw, ZeroDivisionError("the consumer's own problem"))
        assert leaked(before, grace_s=1) == []

    def test_it_can_be_left_at_any_time(self, executor: ReadExecutor, source: ByteSource) -> None:
        """Closing the run ends it; nothing is asked of the feed afterwards."""
        for stop_after in (0, 1, 5):
            tasks = self._tasks(100)
            targets = self._targets(tasks)
            queue = list(tasks)
            work = Work(source=source, verify=True)
            run = executor.run(work, partial(_pop, queue), targets)
            for _ in range(stop_after):
                next(run)
            run.close()
            left = len(queue)
            _expect(StopIteration, next, run)
            assert len(queue) == left

    def test_nothing_runs_on_when_it_was_left(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """Threads and processes have ended when closing returns, not some time later."""
        threads, children = threading.active_count(), len(psutil.Process().children())
        tasks = self._tasks(50)
        work = Work(source=FaultySource(source, delay_s=0.05), verify=True)
        run = executor.run(work, partial(_pop, list(tasks)), self._targets(tasks))
        next(run)
        run.close()
        assert threading.active_count() == threads
        assert len(psutil.Process().children()) == children

    def test_an_error_of_the_feed_comes_out(
        self, executor: ReadExecutor, source: ByteSource
    ) -> None:
        """And ends the run."""

        def feed() -> ReadTask | None:
            raise ZeroDivisionError("the feed's own problem")

        run = executor.run(Work(source=source, verify=True), feed, {})
        assert "own problem" in str(_expect(ZeroDivisionError, next, run))
