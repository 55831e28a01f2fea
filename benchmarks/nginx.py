"""nginx on a free port of the loopback: a range server, and an S3 server of public buckets.

    URL/full/PATH     file PATH below the root, at full speed
    URL/rated/PATH    the same, at a rate for each connection

An anonymous client of S3 with ``endpoint=URL`` finds both as buckets. They can list what a folder
directly below the root held when the server was started.

nginx begins a response with up to ``sendfile_max_chunk`` at once, so that is small: otherwise short
requests would be faster than the rate.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INSTALL", "nginx", "program"]

INSTALL: Final = "apt-get install nginx-light"
_START_S: Final = 10.0

# Without a master process, signals reach the only process there is, and files are opened as the
# user who started it.
_CONFIGURATION: Final = """
daemon off;
master_process off;
pid {home}/pid;
error_log {home}/error.log error;
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
        location /full/ {{ alias "{root}/"; sendfile_max_chunk 2m; }}
        location /rated/ {{ alias "{root}/"; limit_rate {rate}; }}
        location ~ ^/(full|rated)$ {{ alias {home}/list-$arg_prefix; default_type text/xml; }}
    }}
}}
"""


def program() -> str | None:
    """The path of nginx, which Debian keeps where only root looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def nginx(root: Path, *, bytes_per_second: int) -> Iterator[str]:
    """Serve all files below ``root``; yields the URL.

    Args:
        root: folder with the files.
        bytes_per_second: rate of each connection below ``/rated/``.

    Raises:
        RuntimeError: nginx is not installed, or does not start.
    """
    path = program()
    if path is None:
        raise RuntimeError(f"this needs nginx: {INSTALL}")
    with TemporaryDirectory(prefix="paraload-nginx-") as folder:
        home = Path(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        text = _CONFIGURATION.format(home=home, root=root, port=port, rate=bytes_per_second)
        (home / "nginx.conf").write_text(text)
        for below in filter(Path.is_dir, root.iterdir()):
            # By the query as it is sent: nginx does not decode it.
            (home / f"list-{below.name}%2F").write_text(_listing(below))
        log = home / "error.log"
        server = subprocess.Popen([path, "-p", home, "-e", log, "-c", home / "nginx.conf"])
        try:
            _await(server, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def _listing(folder: Path) -> str:
    """The answer of S3 to ``ListObjectsV2``."""
    objects = "".join(
        f"<Contents><Key>{folder.name}/{file.name}</Key><Size>{file.stat().st_size}</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for file in sorted(folder.iterdir())
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"


def _await(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until_s = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < until_s:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"nginx did not start: {log.read_text() if log.exists() else 'no log'}")
