"""Rows about the system: calls that fail, files that are none, changes, signals, dead workers."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from paraload.testing import FaultySource
from tests.faults.case import Case, fails, in_time, loads, or_loads, raises

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.scene import Scene

__all__ = ["ALWAYS", "CASES"]

GROUP = "system"
ALWAYS = 1 << 40


def call(name: str, first: int, error: int, times: int = 1, short: int = 0) -> Any:
    """The shim makes calls of the system fail."""

    def arrange(scene: Scene) -> None:
        scene.shim = f"{name}:{first}:{error}:{times}:{short}"
        if error and times == ALWAYS:
            scene.words += [errno.errorcode[error], ".distcp"]
            scene.options["retries"] = 1

    return arrange


def instead(make: Callable[[Path], Any]) -> Any:
    """Something else has taken the place of a shard."""

    def arrange(scene: Scene) -> None:
        path = scene.files()[0]
        path.unlink()
        make(path)
        scene.words.append(path.name)
        scene.options["retries"] = 1

    return arrange


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def link_elsewhere(scene: Scene) -> None:
    path = scene.files()[0]
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved").name)


# -------------------------------------------------------------------------------- during the load


class Acting(DefaultLoadPlanner):
    """Does something to the files when the first tensor is committed."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act: Callable[[], None] | None = act

    def commit_tensor(self, read_item: Any, tensor: Any) -> None:
        super().commit_tensor(read_item, tensor)
        if self.act is not None:
            self.act()
            self.act = None


def meanwhile(act: Callable[[Path], None], which: int = -1) -> Any:
    def arrange(scene: Scene) -> None:
        path = scene.files()[which]
        scene.planner = Acting(lambda: act(path))
        scene.words.append(path.name)

    return arrange


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def unlink(path: Path) -> None:
    path.unlink()


# ------------------------------------------------------------------------------- of this process


@contextmanager
def _few_descriptors() -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 6, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


def few_descriptors(scene: Scene) -> None:
    scene.around.enter_context(_few_descriptors())
    scene.options["retries"] = 1


def slow(scene: Scene, delay_s: float) -> None:
    scene.source = lambda inner: FaultySource(inner, delay_s=delay_s)
    scene.options["max_workers"] = 2


@contextmanager
def _later(act: Callable[[], None]) -> Iterator[None]:
    done = threading.Event()

    def wait() -> None:
        while not done.wait(0.05):
            act()

    thread = threading.Thread(target=wait, name="case")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def killed(scene: Scene) -> None:
    """One worker process is killed as soon as there is one that reads."""
    slow(scene, 0.3)
    started = time.monotonic()
    victims: list[int] = []

    def kill() -> None:
        if victims or time.monotonic() - started < 0.6:
            return
        for child in psutil.Process().children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                victims.append(child.pid)
                child.kill()
                return

    scene.around.enter_context(_later(kill))
    scene.words.append("SIGKILL")


def interrupted(scene: Scene) -> None:
    slow(scene, 0.3)
    started = time.monotonic()
    sent: list[float] = []

    def send() -> None:
        if not sent and time.monotonic() - started > 0.4:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    scene.around.enter_context(_later(send))


def _calls() -> list[tuple[str, Any, Any]]:
    rows: list[tuple[str, Any, Any]] = []
    for name in ("EIO", "ESTALE", "EAGAIN", "ENOENT"):
        number = getattr(errno, name)
        rows += [
            (f"read fails once with {name}", call("read", 3, number), loads()),
            # The first is that of .metadata.
            (f"open fails once with {name}", call("open", 2, number), loads()),
        ]
    storage = ("StorageReadError",)
    return [
        *rows,
        # Not tried again; but where a block cannot be read, its records are read one by one.
        ("read fails once with EACCES", call("read", 3, errno.EACCES), or_loads(*storage)),
        ("open fails once with EACCES", call("open", 2, errno.EACCES), or_loads(*storage)),
        ("open of .metadata fails once with ENOENT", call("open", 1, errno.ENOENT), loads()),
        ("read of .metadata fails once with ESTALE", call("read", 1, errno.ESTALE), loads()),
        ("fstat fails once with EIO", call("stat", 4, errno.EIO), loads()),
        ("read fails always with EIO", call("read", 3, errno.EIO, ALWAYS), fails(*storage)),
        ("open fails always with EACCES", call("open", 2, errno.EACCES, ALWAYS), fails(*storage)),
        ("close fails with EIO", call("close", 2, errno.EIO, 100), or_loads()),
        ("mmap fails with ENOMEM", call("mmap", 1, errno.ENOMEM, ALWAYS), or_loads()),
        ("reads are interrupted (EINTR)", call("read", 2, errno.EINTR, 5), loads()),
        ("opens are interrupted (EINTR)", call("open", 1, errno.EINTR, 3), loads()),
        ("short reads of 1 byte", call("read", 1, 0, 3000, 1), loads()),
        ("short reads of 4095 bytes", call("read", 1, 0, ALWAYS, 4095), loads()),
    ]


def _files() -> list[tuple[str, Any, Any]]:
    odd = in_time("FormatError")
    changed = fails("ChangedFileError", "ShortFileError", "MissingFileError")
    return [
        ("shard is a FIFO", instead(os.mkfifo), odd),
        ("shard is a folder", instead(os.mkdir), odd),
        ("shard is a socket", instead(_socket), odd),
        ("shard is a device", instead(lambda path: path.symlink_to("/dev/zero")), odd),
        (
            "shard is a loop of links",
            instead(lambda path: path.symlink_to(path.name)),
            in_time("StorageReadError"),
        ),
        (
            "shard is a link to nothing",
            instead(lambda path: path.symlink_to("nothing")),
            in_time("MissingFileError"),
        ),
        ("shard is a link to a file", link_elsewhere, loads()),
        ("shard replaced by rename during the load", meanwhile(replace), changed),
        ("shard replaced that was read already", meanwhile(replace, 0), changed),
        ("shard written to during the load", meanwhile(touch), changed),
        ("shard grows during the load", meanwhile(grow), changed),
        ("shard cut during the load", meanwhile(cut), changed),
        ("shard removed during the load", meanwhile(unlink), changed),
    ]


def _case(row: tuple[str, Any, Any], **keywords: Any) -> Case:
    name, arrange, expect = row
    return Case(group=GROUP, name=name, arrange=arrange, expect=expect, every=True, **keywords)


CASES = [
    *map(_case, [*_calls(), *_files()]),
    _case(("out of file descriptors", few_descriptors, or_loads()), sample="many"),
    _case(("Ctrl-C", interrupted, raises("KeyboardInterrupt"))),
    _case(
        ("worker process killed", killed, fails("WorkerDiedError")),
        executors=("processes", "pool"),
    ),
]
