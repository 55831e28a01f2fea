"""Every kind of object store passes the suite of sources."""

from __future__ import annotations

import pickle

import pytest
from obstore.store import MemoryStore, from_url

from paraload.sources import Read
from paraload.sources.object_store import ObjectStoreSource
from paraload.testing import FILES, SourceContract
from tests.azure import KEY, azure_options, azure_server
from tests.contract.test_sources import written
from tests.servers import BUCKET, S3_KEYS, faulty_server, nginx_server, s3_options, s3_server


class TestMemoryStore(SourceContract):
    @pytest.fixture
    def source(self):
        store = MemoryStore()
        for path, data in FILES.items():
            store.put(f"runs/step-1/{path}", data)
        store.put("runs/step-10/other", b"")
        source = ObjectStoreSource(store, "runs/step-1/")
        yield source
        source.close()

    def test_pickling(self, source):
        with pytest.raises(TypeError, match="cannot pickle 'MemoryStore'"):
            pickle.dumps(source)


class TestFileStore(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        source = ObjectStoreSource(written(tmp_path).as_uri())
        yield source
        source.close()


def upload(url, **options):
    store = from_url(url, **options)
    for path, data in FILES.items():
        store.put(path, data)


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as endpoint:
        upload(f"s3://{BUCKET}/step-1", **s3_options(endpoint))
        yield endpoint


class TestS3(SourceContract):
    @pytest.fixture
    def source(self, endpoint):
        source = ObjectStoreSource(f"s3://{BUCKET}/step-1", **s3_options(endpoint))
        yield source
        source.close()

    def test_a_missing_object_is_named_with_its_bucket(self, source):
        with pytest.raises(FileNotFoundError, match=f"'not-there'.*s3://{BUCKET}/step-1"):
            source.stat("not-there")

    def test_a_missing_bucket_is_named(self, endpoint):
        source = ObjectStoreSource("s3://other-bucket/x", **s3_options(endpoint))
        with pytest.raises(FileNotFoundError, match=r"'small'.*s3://other-bucket/x"):
            source.read("small", [Read(0, [memoryview(bytearray(1))])])
        source.close()

    def test_credentials_are_shown_nowhere(self, source):
        secret = S3_KEYS["secret_access_key"]
        assert secret not in repr(source)
        assert secret.encode() in pickle.dumps(source), "workers need them"


class TestHttp(SourceContract):
    """A plain web server, which has no listing."""

    @pytest.fixture
    def source(self):
        with faulty_server({f"step-1/{path}": data for path, data in FILES.items()}) as server:
            source = ObjectStoreSource(f"{server.url}/step-1")
            yield source
            source.close()

    def test_it_cannot_list(self, source):
        assert not hasattr(source, "list_files")


@pytest.fixture(scope="module")
def nginx(tmp_path_factory):
    root = tmp_path_factory.mktemp("nginx")
    (root / "step-1").mkdir()
    written(root / "step-1")
    with nginx_server(root) as url:
        yield url


class TestNginx(SourceContract):
    @pytest.fixture
    def source(self, nginx):
        source = ObjectStoreSource(f"{nginx}/full/step-1")
        yield source
        source.close()


@pytest.fixture(scope="module")
def azure():
    with azure_server() as endpoint:
        options = azure_options(endpoint) | {"client_options": {"allow_http": True}}
        upload(f"az://{BUCKET}/step-1", **options)
        yield endpoint


class TestAzure(SourceContract):
    @pytest.fixture
    def source(self, azure):
        source = ObjectStoreSource(f"az://{BUCKET}/step-1", **azure_options(azure))
        yield source
        source.close()

    def test_a_missing_container_is_named(self, azure):
        source = ObjectStoreSource("az://other/x", **azure_options(azure))
        with pytest.raises(FileNotFoundError, match=r"'small'.*az://other/x"):
            source.read("small", [Read(0, [memoryview(bytearray(1))])])
        source.close()

    def test_credentials_are_shown_nowhere(self, source):
        assert KEY not in repr(source)
        assert KEY.encode() in pickle.dumps(source), "workers need them"


class TestStoreOfTheCaller(SourceContract):
    @pytest.fixture
    def source(self, tmp_path):
        return ObjectStoreSource(from_url(written(tmp_path).as_uri()))
