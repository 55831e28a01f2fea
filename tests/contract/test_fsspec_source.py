"""fsspec file systems as sources: the suite of sources, and what is special about each."""

from __future__ import annotations

import fsspec
import fsspec.asyn
import pytest

from paraload.sources.fsspec_files import FsspecSource
from paraload.testing import FILES, SourceContract
from tests.range_server import serving


@pytest.fixture(autouse=True, scope="session")
def _event_loop():
    """fsspec starts its one thread on first use and keeps it."""
    fsspec.asyn.get_loop()


@pytest.fixture
def server():
    with serving({f"ckpt/{path}": data for path, data in FILES.items()}) as server:
        yield server


class TestMemory(SourceContract):
    @pytest.fixture
    def source(self):
        memory = fsspec.filesystem("memory")
        for path, data in FILES.items():
            memory.pipe_file(f"/contract/{path}", data)
        source = FsspecSource("memory://contract")
        yield source
        source.close()
        memory.rm("/contract", recursive=True)


class TestLocal(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        for path, data in FILES.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
        source = FsspecSource(f"file://{tmp_path}")
        yield source
        source.close()


class TestGivenFileSystem(SourceContract):
    """The program's own instance, which stays open."""

    @pytest.fixture
    def source(self, tmp_path):
        for path, data in FILES.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(data)
        fs = fsspec.filesystem("dir", path=str(tmp_path), fs=fsspec.filesystem("file"))
        source = FsspecSource("", fs)
        yield source
        source.close()


class TestZip(SourceContract):
    @pytest.fixture(params=["stored", "deflated"])
    def source(self, tmp_path, request):
        import zipfile

        kind = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "all.zip", "w", kind) as archive:
            for path, data in FILES.items():
                archive.writestr(f"ckpt/{path}", data)
        source = FsspecSource(f"zip://ckpt::{tmp_path}/all.zip")
        yield source
        source.close()


class TestTar(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        import io
        import tarfile

        with tarfile.open(tmp_path / "all.tar", "w") as archive:
            for path, data in FILES.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        source = FsspecSource(f"tar://::{tmp_path}/all.tar")
        yield source
        source.close()


class TestHttp(SourceContract):
    @pytest.fixture
    def source(self, server):
        source = FsspecSource(f"{server.url}/ckpt")
        yield source
        source.close()
