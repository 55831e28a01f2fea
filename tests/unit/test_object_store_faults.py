"""What an object store or web server may do wrong, and what a load makes of it."""

from __future__ import annotations

import errno
import gc
import itertools
import pickle
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import GenericError
from obstore.store import HTTPStore, MemoryStore

from paraload.errors import (
    InvalidOptionError,
    MissingFileError,
    ShortFileError,
    StorageReadError,
)
from paraload.sources import Read, object_store, obstore_stores
from paraload.sources.object_store import ObjectStoreSource
from paraload.sources.obstore_errors import known_error
from paraload.sources.retrying import RetryingSource
from tests.servers import faulty_server

DATA = bytes(range(256)) * 8192  # longer than one piece of a body
SECRETS = ("s3cret", "t0ken", "signed", "AWSAccessKeyId")
QUICK = {"client_options": {"read_timeout": "300ms", "timeout": "2s"}}


@pytest.fixture
def server():
    with faulty_server({"ckpt/x": DATA, "ckpt/y": DATA[:100]}) as server:
        yield server


@pytest.fixture
def without_collector():
    gc.disable()
    yield
    gc.enable()


def source_of(server, retries=3, **options):
    """A source whose URL has credentials in both places where one may have them."""
    url = f"http://me:s3cret@{urlsplit(server.url).netloc}/ckpt?sig=t0ken"
    return RetryingSource(ObjectStoreSource(url, **(QUICK | options)), retries)


def get(source, start=5, nbytes=2_000_000, path="x"):
    buffer = bytearray(nbytes)
    source.read(path, [Read(start, [memoryview(buffer)])])
    return bytes(buffer)


def refusal(source, kind=StorageReadError, **where):
    with pytest.raises(kind) as caught:
        get(source, **where)
    shown = "".join(traceback.format_exception(caught.value))
    assert [secret for secret in SECRETS if secret in shown] == []
    pickled = pickle.dumps(caught.value)
    assert [secret for secret in SECRETS if secret.encode() in pickled] == []
    return caught.value


@pytest.mark.parametrize(
    "fault", [408, 429, 500, 502, 503, 504, "cut", "reset", "stall", "short"], ids=str
)
def test_what_may_go_away_is_tried_again(server, fault):
    server.faults = [fault, fault]
    source = source_of(server)
    assert get(source) == DATA[5:2_000_005]
    assert source.retried == 2
    assert len(server.gets) == 3, "and no client under it tries as well"
    source.close()


def test_a_retried_read_lets_go_of_its_buffers(server, without_collector):
    server.faults = ["short"]
    source, buffer = source_of(server), bytearray(1000)
    source.read("x", [Read(0, [memoryview(buffer)])])
    assert source.retried == 1
    buffer.clear()  # refused while a view refers to it
    source.close()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (503, "503 Service Unavailable"),
        ("cut", "body error"),
        ("stall", r"TimeoutError \(.*timed out"),
    ],
    ids=str,
)
def test_what_does_not_go_away_is_an_error(server, fault, text):
    server.always = fault
    source = source_of(server, retries=1)
    with pytest.raises(StorageReadError, match=f"{text}.* 2 times"):
        get(source)
    refusal(source)
    assert len(server.gets) == 3, "a source that has failed is not retried again"
    source.close()


def text_of(status, body="", url="https://me:s3cret@h/x?sig=t0ken"):
    """What obstore says of an answer."""
    return (
        f"Generic S3 error: Error performing GET {url} in 1.5ms - Server returned non-2xx status"
        f" code: {status}: {body}\n\nDebug source:\nGeneric {{ uri: {url}, status: {status} }}"
    )


def below(kind, text="HTTP error: error sending request"):
    """What it says where there was no answer."""
    return (
        f"Generic S3 error: Error performing GET http://me:s3cret@h/x in 30µs - {text}\n\n"
        f"Debug source:\nHttp(HttpError {{ kind: {kind}, source: reqwest::Error {{ kind: Body"
    )


SIGNED = "<Error><Code>{}</Code><AWSAccessKeyId>signed</AWSAccessKeyId></Error>"


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        (
            text_of("503 Service Unavailable", SIGNED.format("SlowDown")),
            ConnectionError,
            "SlowDown",
        ),
        (text_of("500 Internal Server Error"), ConnectionError, "500 Internal Server Error"),
        (text_of("400 Bad Request", SIGNED.format("ExpiredToken")), PermissionError, "denies"),
        (text_of("403 Forbidden", SIGNED.format("AccessDenied")), PermissionError, "AccessDenied"),
        (text_of("400 Bad Request", SIGNED.format("Strange")), StorageReadError, "400 Bad Request"),
        (text_of("400 Bad Request", "kind: Timeout"), StorageReadError, "400 Bad Request"),
        (below("Connect"), ConnectionError, "error sending request"),
        (below("Timeout"), TimeoutError, "timed out"),
        (below("Unknown", "HTTP error: builder error"), StorageReadError, "allow_http"),
        ("Generic S3 error: moved to https://h/x?sig=t0ken", StorageReadError, "moved to"),
    ],
)
def test_texts_of_obstore_are_understood_and_not_shown(text, kind, shown):
    error = known_error(GenericError(text), "x", "s3://bucket")
    if kind is PermissionError:
        assert (type(error), error.errno) == (StorageReadError, errno.EACCES)
    else:
        assert type(error) is kind
    assert shown in str(error)
    assert "s3://bucket" in str(error)
    assert [secret for secret in SECRETS if secret in str(error)] == []


@given(st.binary(max_size=50), st.lists(st.integers(0, 9)), st.lists(st.integers(1, 9)))
def test_bodies_are_scattered_however_they_are_cut(data, sizes, cuts):
    buffers = [bytearray(size) for size in sizes]
    ends = [0, *itertools.accumulate(cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(sorted(ends))]
    got = object_store._fill([memoryview(buffer) for buffer in buffers], pieces)
    filled = min(len(data), sum(sizes))
    assert b"".join(buffers) == data[:filled].ljust(sum(sizes), b"\0")
    assert got == len(data) or got > sum(sizes)


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_is_final_and_names_the_place_and_the_key(server, status):
    server.always = status
    source = source_of(server)
    error = refusal(source)
    assert f"{server.url}/ckpt denies access: {status}" in str(error)
    assert "file 'x'" in str(error)
    assert len(server.gets) == 1
    source.close()


def test_a_missing_object_is_final(server):
    source = source_of(server)
    error = refusal(source, MissingFileError, path="z")
    assert "'z'" in str(error)
    assert f"{server.url}/ckpt complete?" in str(error)
    assert len(server.gets) == 1
    source.close()


def test_refused_credentials_that_worked_are_renewed_once(server):
    source = source_of(server)
    get(source)
    server.faults = [403]
    assert get(source) == DATA[5:2_000_005]
    server.faults = [403, 403, 403]
    refusal(source)
    assert server.faults == [403]
    source.close()


def test_many_threads_renew_credentials_together(server):
    source = source_of(server).inner
    get(source)
    server.faults = [403] * 8
    server.latency_s = 0.1
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: get(source, nbytes=10), range(8))) == {DATA[5:15]}
    source.close()


def test_a_server_that_ignores_ranges_is_refused(server):
    server.always = "ignore"
    source = source_of(server)
    assert "that supports range requests" in str(refusal(source))
    assert "that supports range requests" in str(refusal(source, start=0, nbytes=50, path="y"))
    source.close()


def test_another_range_than_the_asked_one_is_refused(server):
    server.always = "shifted"
    source = source_of(server)
    assert "Requested 5..2000005, got 6..2000006" in str(refusal(source))
    source.close()


def test_a_range_behind_the_end_is_a_short_file(server):
    source = source_of(server)
    for start, nbytes in ((50, 51), (100, 1), (1000, 5)):
        error = refusal(source, ShortFileError, start=start, nbytes=nbytes, path="y")
        assert (error.start, error.end) == (start, start + nbytes)
        assert error.got == "100 bytes"
    assert source.retried == 0
    source.close()


@pytest.mark.parametrize("end", ["/", "//", "/?token=x", "///?token=a/#b"])
def test_slashes_at_the_end_of_a_url_do_not_count(server, end):
    source = ObjectStoreSource(f"{server.url}/ckpt{end}")
    assert source.stat("y").size == 100
    assert get(source, nbytes=10) == DATA[5:15]
    assert source.name == f"{server.url}/ckpt"
    source.close()


@pytest.mark.parametrize("end", ["", "/", "//", "/?token=x"])
def test_the_root_of_a_server_may_be_the_folder(server, end):
    source = ObjectStoreSource(f"{server.url}{end}")
    assert get(source, nbytes=10, path="ckpt/x") == DATA[5:15]
    source.close()


def test_the_root_of_other_stores_may_be_the_folder(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    for root in ("file://", "file:///"):
        assert get(ObjectStoreSource(root), nbytes=10, path=f"{tmp_path}/x"[1:]) == DATA[5:15]
    assert get(ObjectStoreSource(f"{tmp_path.as_uri()}//"), nbytes=10) == DATA[5:15]
    for end in ("", "/", "//", "/x//"):
        assert ObjectStoreSource(f"s3://bucket{end}", region="eu").name.startswith("s3://bucket")


@pytest.mark.parametrize("first", ["stat", "read"])
def test_an_object_that_changes_is_an_error(server, first):
    source = source_of(server)
    source.stat("x") if first == "stat" else get(source)
    server.files["ckpt/x"] = DATA[::-1]
    error = refusal(source)
    assert "replaced while it was read" in str(error)
    assert source.retried == 0
    before = source.stat("x")
    server.files["ckpt/x"] = DATA
    assert source.stat("x").version != before.version
    source.close()
    assert get(source) == DATA[5:2_000_005], "a new load has new versions"
    source.close()


def test_a_server_without_versions_is_read_all_the_same(server):
    server.versions = {"ckpt/x": None}
    source = source_of(server)
    assert source.stat("x").version is None
    assert get(source) == DATA[5:2_000_005]
    source.close()


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_may_refuse_head(server, status):
    server.files["ckpt/e"] = b""
    server.choose_fault = lambda method, *_: status if method == "HEAD" else None
    source = source_of(server)
    assert [source.stat(path).size for path in "xyx"] == [len(DATA), 100, len(DATA)]
    assert [method for method, *_ in server.requests] == ["HEAD", "GET", "GET", "GET"]
    assert get(source) == DATA[5:2_000_005]
    assert source.is_pinned("x", source.stat("x"))
    refusal(source, ShortFileError, start=50, nbytes=51, path="y")
    with pytest.raises(MissingFileError):
        source.stat("z")
    with pytest.raises(StorageReadError, match="416"):
        source.stat("e")
    server.files["ckpt/x"] = DATA[::-1]
    assert "replaced while it was read" in str(refusal(source))
    source.close()


@pytest.mark.parametrize("of_head", ['"a"', 'W/"a"', None])
@pytest.mark.parametrize("of_get", ['"a"', 'W/"a"', None])
def test_etags_are_compared_weakly_and_may_be_missing(server, monkeypatch, of_head, of_get):
    etags = {"HEAD": of_head, "GET": of_get}
    monkeypatch.setattr(server, "etag", lambda _: etags[server.requests[-1][0]])
    source = source_of(server)
    for _ in range(2):
        stat = source.stat("x")
        assert get(source) == DATA[5:2_000_005]
        assert source.is_pinned("x", stat) == (of_head is not None)
    etags["HEAD"] = of_head and '"b"'
    etags["GET"] = of_get and '"b"'
    if of_head or of_get:
        assert "replaced while it was read" in str(refusal(source))
    source.close()


def test_stalls_of_a_body_end(server):
    server.always = "stall"
    source = source_of(server, retries=0)
    began_s = time.monotonic()
    refusal(source)
    assert time.monotonic() - began_s < 1.5, "read_timeout, not the 30 s of obstore"
    source.close()


def test_stalls_end_without_options_too(server, monkeypatch):
    given = obstore_stores._CLIENT_OPTIONS
    assert set(given) == {"read_timeout", "timeout"}
    monkeypatch.setattr(obstore_stores, "_CLIENT_OPTIONS", {**given, "read_timeout": "300ms"})
    server.always = "stall"
    with pytest.raises(TimeoutError, match="timed out"):
        get(ObjectStoreSource(f"{server.url}/ckpt"))
    monkeypatch.undo()
    server.faults, server.always = [], None
    source = ObjectStoreSource(f"{server.url}/ckpt", client_options={"user_agent": "mine"})
    options = source._opened().client_options
    assert set(options) == {"allow_http", "read_timeout", "timeout", "user_agent"}


def test_a_body_is_copied_as_it_arrives(server):
    """So a request in flight needs no memory of its own for all of its body."""
    server.always = "stall"
    source = source_of(server, retries=0)
    buffer = bytearray(2_000_000)
    with pytest.raises(StorageReadError):
        source.read("x", [Read(0, [memoryview(buffer)])])
    assert buffer[:700_000] == DATA[:700_000], "of the million that came"
    source.close()


def test_nobody_answers(server):
    url = f"http://127.0.0.1:{server.server_port}"
    server.server_close()
    source = RetryingSource(ObjectStoreSource(url), 1)
    assert "ConnectionError" in str(refusal(source))
    source.close()


def test_a_client_that_retries_is_not_retried(server):
    patient = {"max_retries": 3, "backoff": {"init_backoff": timedelta(milliseconds=1)}}
    server.faults = [503, 503]
    source = source_of(server, retry_config=patient)
    assert get(source) == DATA[5:2_000_005]
    assert source.retried == 0
    server.always = 503
    server.requests.clear()
    with pytest.raises(ConnectionError, match="503 Service Unavailable"):
        get(source)
    assert len(server.gets) == 4, "not four times four"
    source.close()


def test_the_store_of_a_caller_stays_as_it_is(server):
    store = HTTPStore(
        f"{server.url}/ckpt?sig=t0ken",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    source = ObjectStoreSource(store)
    assert "t0ken" not in repr(source)
    assert not source.is_transient(ConnectionError())
    assert get(source) == DATA[5:2_000_005]
    source.close()
    assert get(source) == DATA[5:2_000_005]


def test_threads_wait_for_answers_together(server):
    server.latency_s = 0.1
    source = source_of(server)
    began_s = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: get(source, nbytes=1000), range(32))) == {DATA[5:1005]}
    assert time.monotonic() - began_s < 1.0, "32 would take 3.2 s one after the other"
    source.close()


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("s3://bucket/x", {"nonsense": 1}, "s3://bucket/x: .*'nonsense' is not valid"),
        ("http://me:s3cret@h/x?t0ken", {"nonsense": 1}, "^http://h/x: .*not accept any config"),
        ("http://h/x", {"client_options": {"nonsense": 1}}, "Invalid key: nonsense"),
        ("http://h/x", {"client_options": "timeout=1"}, "client_options must be a dict, not str"),
        ("s3://bucket/x", {"allow_http": True}, "^s3://bucket/x: .*allow_http.* client_options="),
        ("s3://b/x", {"endpoint": "s3cret:9"}, "^s3://b/x: endpoint must begin with http"),
        ("az://bucket/x", {"azure_endpoint": "ftp://h"}, "azure_endpoint must begin with http"),
        ("http://me:s3cret@[bad/x", {}, r"^http://\[bad/x: not a valid URL"),
        ("http://me:t0ken/s3cret@h/x", {}, "^http://h/x: .*invalid port number"),
        ("foo://me:s3cret@b/p?t0ken", {}, "^foo://b/p: .*Unable to recognise URL"),
        ("memory:///", {}, "pass the obstore.store.MemoryStore"),
        ("file:///not/there", {}, "file:///not/there: .*/not/there"),
        (5, {}, "expected a URL or an obstore store, got 5"),
        pytest.param(
            *(MemoryStore(), {"region": "x"}, "region: an obstore store has its own options"),
            id="a store with an option",  # all workers must know it by one name
        ),
    ],
    ids=repr,
)
def test_invalid_places_and_options_are_refused_at_once(url, options, text):
    with pytest.raises(InvalidOptionError, match=text) as caught:
        ObjectStoreSource(url, **options)
    assert [secret for secret in SECRETS if secret in str(caught.value)] == []


def test_a_plain_endpoint_of_the_environment_is_asked(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    keys = {"access_key_id": "a", "secret_access_key": "s3cret"}
    refusal(ObjectStoreSource("s3://b/x", **keys), MissingFileError)


def test_an_endpoint_of_the_environment_without_a_scheme_is_refused(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(InvalidOptionError, match="AWS_ENDPOINT_URL must begin with http"):
        ObjectStoreSource("s3://b/x")
    for url, options in (
        ("s3://b/x", {"endpoint": "https://127.0.0.1:9000"}),
        ("gs://b/x", {}),
        ("http://127.0.0.1:9000/x", {}),
    ):
        ObjectStoreSource(url, **options).close()


def test_a_panic_of_obstore_is_an_error(monkeypatch):
    monkeypatch.setattr(obstore_stores, "_ENDPOINTS", ())  # so that the endpoint reaches obstore
    keys = {"access_key_id": "a", "secret_access_key": "s3cret", "region": "x"}
    source = ObjectStoreSource("s3://b/x", endpoint="127.0.0.1:9000", **keys)
    error = refusal(source)
    assert type(error) is StorageReadError
    assert "s3://b/x: obstore panicked (" in str(error)
    with pytest.raises(StorageReadError, match="panicked"):
        source.stat("x")
    source.close()


def test_user_and_password_of_a_url_are_sent(server):
    get(source_of(server), nbytes=10)
    assert server.headers["Authorization"] == "Basic bWU6czNjcmV0"


def test_without_obstore_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(InvalidOptionError, match=r"pip install 'paraload\[object-store\]'"):
        ObjectStoreSource("s3://bucket/x")
