"""azurite, Microsoft's emulator of Azure's storage, on the loopback."""

from __future__ import annotations

import hashlib
import hmac
import re
import shutil
import subprocess
from base64 import b64decode, b64encode
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.servers import BUCKET, require

ACCOUNT = "devstoreaccount1"
#: Documented by azurite: every installation has this account.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

_PROGRAM = Path(__file__).parents[1] / ".node/node_modules/azurite/dist/src/blob/main.js"
_OPTIONS = ("--silent", "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", "0")
_VERSION = "2023-11-03"


@contextmanager
def azure_server():
    """The endpoint of azurite, with an empty container."""
    node = shutil.which("node")
    require(node, "node", "apt-get install nodejs npm && make azurite")
    require(_PROGRAM.exists(), "azurite", "make azurite")
    command = [node, _PROGRAM, *_OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            endpoint = f"{_address(server)}/{ACCOUNT}"
            _create_container(endpoint)
            yield endpoint
        finally:
            server.terminate()


def azure_options(endpoint, *, key=KEY):
    return {
        "azure_storage_account_name": ACCOUNT,
        "azure_storage_account_key": key,
        "azure_endpoint": endpoint,
    }


def _address(server):
    lines = []
    for line in server.stdout:
        if found := re.search(r"listens on (http://\S+)", line):
            return found[1]
        lines.append(line)
    pytest.fail(f"azurite did not start: {''.join(lines)}")


def _create_container(endpoint):
    """As obstore cannot; signed as https://learn.microsoft.com/rest/api/storageservices says."""
    url = urlsplit(endpoint)
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": date, "x-ms-version": _VERSION}
    lines = ["PUT", *[""] * 11, *[f"{name}:{value}" for name, value in headers.items()]]
    lines += [f"/{ACCOUNT}{url.path}/{BUCKET}", "restype:container"]
    digest = hmac.new(b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{b64encode(digest).decode()}"
    with closing(HTTPConnection(url.netloc, timeout=10)) as connection:
        path = f"{url.path}/{BUCKET}?restype=container"
        connection.request("PUT", path, headers={**headers, "Content-Length": "0"})
        assert connection.getresponse().status == 201
