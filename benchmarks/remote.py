"""Whole loads over HTTP, from nginx on this machine, with a rate for each connection and without.

nginx begins a response with up to ``sendfile_max_chunk`` at once, so that is small: otherwise short
requests would be faster than the rate.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import obstore
import torch.distributed.checkpoint as dcp
from obstore.store import HTTPStore

import paraload
from benchmarks import arms
from benchmarks.cases import whole_case
from benchmarks.results import Bar, Section, Table
from benchmarks.rounds import check_arms, time_rounds
from paraload.core.compat import FsspecReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from benchmarks.cases import Case
    from benchmarks.checkpoints import Checkpoints
    from benchmarks.rounds import Timing

__all__ = ["HEADLINE", "measure"]

_ROUNDS: Final = 3
_CONNECTIONS: Final = 8
_MIB_PER_SECOND: Final = 32
_REQUEST_BYTES: Final = 8 << 20
_START_S: Final = 10.0

_TORCH: Final = "torch FsspecReader"
_OURS: Final = f"paraload, {_CONNECTIONS} connections"
_DEFAULT: Final = "paraload"
#: torch and paraload, for the front page.
HEADLINE: Final = (_TORCH, _DEFAULT)
_RAW: Final = f"obstore ranges, {_CONNECTIONS} connections"

#: Files, and how many times as fast as torch's reader 8 connections of that rate must be.
_RATED: Final = {1: 8.0, 4: 8.0, 8: 9.0, 16: 9.0}
_UNLIMITED: Final = (1, 8)

_CONFIGURATION: Final = """
daemon off;
pid {home}/pid;
error_log stderr error;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    sendfile_max_chunk 128k;
    keepalive_requests 1000000;
    client_body_temp_path {home}/a; proxy_temp_path {home}/b; fastcgi_temp_path {home}/c;
    uwsgi_temp_path {home}/d; scgi_temp_path {home}/e;
    server {{
        listen 127.0.0.1:{port};
        location /full/ {{ alias {root}/; sendfile_max_chunk 2m; }}
        location /rated/ {{ alias {root}/; limit_rate {rate}; }}
    }}
}}
"""


def measure(checkpoints: Checkpoints, rounds: int | None) -> Section:
    """Load 258 MiB from 1 to 16 files."""
    tables, bars, figures = [], list[Bar](), {}
    with _nginx(checkpoints.folder) as url:
        for place, layouts in (("rated", tuple(_RATED)), ("full", _UNLIMITED)):
            rows = []
            for files in layouts:
                case = whole_case(checkpoints.remote(files=files))
                timings = _timings(f"{url}/{place}", case, rounds or _ROUNDS)
                rows += _rows(files, timings, case.payload_bytes)
                bars += _bars(place, files, timings)
                figures[f"{place}, {files}"] = {n: t.to_dict() for n, t in timings.items()}
            rate = (
                f"{_MIB_PER_SECOND} MiB/s for each connection" if place == "rated" else "no limit"
            )
            mib = case.payload_bytes / (1 << 20)
            tables.append(
                Table(
                    title=f"{mib:.0f} MiB over HTTP, whole loads, {rate}",
                    columns=(
                        "files",
                        "arm",
                        "median s",
                        "MiB/s",
                        "x torch",
                        "of raw",
                        "min..max s",
                    ),
                    rows=tuple(rows),
                )
            )
    return Section(tables=tuple(tables), bars=tuple(bars), figures=figures)


@contextmanager
def _nginx(root: Path) -> Iterator[str]:
    """The address of a server of all files below ``root``."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise RuntimeError("the part 'remote' needs nginx: apt-get install nginx-light")
    home = root / "nginx"
    home.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = home / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(home=home, root=root, port=port, rate=_MIB_PER_SECOND << 20)
    )
    root.chmod(0o755)  # the worker of a server that root starts is another user
    server = subprocess.Popen([program, "-p", home, "-c", configuration])
    try:
        _await(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _await(server: subprocess.Popen[bytes], port: int) -> None:
    until_s = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < until_s:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError("nginx did not start; its message is above")


def _timings(url: str, case: Case, rounds: int) -> dict[str, Timing]:
    def ours(**options: Any) -> None:
        paraload.load(dict(case.targets), f"{url}/{case.folder.name}", no_dist=True, **options)

    def stock() -> None:
        reader = FsspecReader(f"{url}/{case.folder.name}")
        dcp.load(dict(case.targets), storage_reader=reader, no_dist=True)

    runs: dict[str, Callable[[], object]] = {
        _TORCH: stock,
        _OURS: partial(ours, max_workers=_CONNECTIONS),
        _DEFAULT: ours,
    }
    contestants = [
        arms.Arm(name=name, prepare=partial(_prepared, run)) for name, run in runs.items()
    ]
    _, checked = check_arms(contestants, case)
    del runs[_TORCH]  # which takes so long that this run is enough
    runs[_RAW] = _raw(url, case)
    timed = time_rounds({name: partial(_itself, run) for name, run in runs.items()}, rounds=rounds)
    return {_TORCH: checked[_TORCH]} | timed


def _prepared(run: Callable[[], object], _: object) -> arms.Prepared:
    return arms.Prepared(run=run)


def _itself(run: Callable[[], object]) -> Callable[[], object]:
    return run


def _raw(url: str, case: Case) -> Callable[[], object]:
    """Download all data files with obstore into one buffer, in parts that keep 8 readers busy."""
    sizes = {file.name: file.stat().st_size for file in case.folder.glob("*.distcp")}
    total = sum(sizes.values())
    buffer = memoryview(bytearray(total))
    rounds = -(-total // (_CONNECTIONS * _REQUEST_BYTES))
    step = -(-total // (_CONNECTIONS * rounds))
    parts: list[tuple[str, int, memoryview]] = []
    for name, size in sizes.items():
        file, buffer = buffer[:size], buffer[size:]
        parts += [(name, at, file[at : at + step]) for at in range(0, size, step)]

    def run() -> None:
        store = HTTPStore(f"{url}/{case.folder.name}", client_options={"allow_http": True})
        queue = deque(parts)

        def read(_: int) -> None:
            with suppress(IndexError):
                while True:
                    name, at, memory = queue.popleft()
                    memory[:] = obstore.get_range(store, name, start=at, length=len(memory))

        with ThreadPoolExecutor(_CONNECTIONS) as threads:
            list(threads.map(read, range(_CONNECTIONS)))

    return run


def _rows(files: int, timings: Mapping[str, Timing], nbytes: int) -> list[tuple[str, ...]]:
    return [
        (
            str(files),
            name,
            f"{timing.median_s:.3f}",
            f"{nbytes / (1 << 20) / timing.median_s:.0f}",
            f"{timings[_TORCH].median_s / timing.median_s:.2f}",
            f"{timings[_RAW].median_s / timing.median_s:.2f}",
            timing.spread,
        )
        for name, timing in timings.items()
    ]


def _bars(place: str, files: int, timings: Mapping[str, Timing]) -> list[Bar]:
    ours_s = timings[_OURS].median_s
    of_raw = Bar(
        name=f"HTTP, {place}, {files} file{'s' * (files > 1)}",
        value=timings[_RAW].median_s / ours_s,
        limit=0.8 if place == "rated" else 0.85,
        unit="of obstore's download",
    )
    if place == "full":
        return [of_raw]
    value = timings[_TORCH].median_s / ours_s
    return [of_raw, Bar(name=of_raw.name, value=value, limit=_RATED[files], unit="x torch")]
