"""Typed errors, without secrets, for those of fsspec file systems.

Their texts contain URLs and options, which may hold credentials. So none of them leaves the source:
it becomes one of ours, without a cause, and with secrets masked. Errors are recognised by name,
because the packages that define them may not be installed.
"""

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from paraload.errors import ItemReadError, MissingFileError, StorageReadError
from paraload.sources.retrying import is_transient_os_error

_TRANSIENT_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MISSING_STATUS: Final = frozenset({404, 410})
_REFUSED_STATUS: Final = frozenset({401, 403})

#: Errors of connections and of bodies that were cut, by package and name.
_TRANSIENT_ERRORS: Final = frozenset(
    {
        *("aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError"),
        *("requests.ConnectionError", "requests.Timeout", "requests.ChunkedEncodingError"),
        *("httpx.TransportError", "httpx2.TransportError", "paramiko.SSHException"),
        *("botocore.ConnectionError", "botocore.HTTPClientError", "botocore.IncompleteReadError"),
        *("azure.ServiceRequestError", "azure.ServiceResponseError", "urllib3.ProtocolError"),
    }
)

#: aiohttp cannot parse a response. Its status is 400, which no server has sent.
_NOT_HTTP: Final = frozenset({"aiohttp.HttpProcessingError"})

_SECRET_NAME: Final = re.compile(
    r"key|secret|token|pass|auth|cred|sas|cookie|header|signature|connection_string", re.IGNORECASE
)
#: Userinfo and query of a URL.
_SECRET_URL_PARTS: Final = re.compile(r"(?<=://)[^/@\s'\"]*@|(?<=\?)[^\s'\"()]+")
_SHORTEST_SECRET: Final = 3
_MASK: Final = "***"
_SHOWN_OF_TEXT: Final = 300
_MOST_CAUSES: Final = 5


class TransientError(Exception):
    """The response was missing or incomplete; a retry may succeed."""


class Redaction:
    """Masks credentials in texts.

    Args:
        *holders: URLs, and mappings of options. Values of options with names such as "token" are
            secret.
    """

    def __init__(self, *holders: Any) -> None:
        found = {secret for holder in holders for secret in _secrets(holder)}
        self._secrets = sorted((s for s in found if len(s) >= _SHORTEST_SECRET), key=len)[::-1]

    def __call__(self, text: object) -> str:
        masked = _SECRET_URL_PARTS.sub(_masked_part, str(text))
        for secret in self._secrets:
            masked = masked.replace(secret, _MASK)
        return masked


def _masked_part(match: re.Match[str]) -> str:
    return f"{_MASK}@" if match[0].endswith("@") else _MASK


def _secrets(holder: Any, *, named: bool = False) -> Iterator[str]:
    """All strings in ``holder`` under names of secrets, and the secret parts of URLs."""
    if isinstance(holder, Mapping):
        for name, value in holder.items():
            yield from _secrets(value, named=named or bool(_SECRET_NAME.search(str(name))))
    elif isinstance(holder, list | tuple | set):
        for value in holder:
            yield from _secrets(value, named=named)
    elif isinstance(holder, str):
        if named:
            yield from (holder, *holder.split())  # "Bearer ..."
        for url in holder.split("::"):
            try:
                parts = urlsplit(url)
                yield from (value for _, value in parse_qsl(parts.query))
                yield from filter(None, (parts.password,))
            except ValueError:  # not a URL
                continue


def error_of(
    error: Exception, path: str, *, redact: Redaction, hint: str | None = None
) -> Exception:
    """The error to raise instead of ``error``, which a file system raised."""
    if isinstance(error, ItemReadError | TransientError):
        return error
    # HTTPFileSystem.info reports every failure as "not found"; the cause is the real error.
    causes = tuple(_causes(error))
    status = status_of(error)
    origin = causes[-1] if isinstance(error, FileNotFoundError) else error
    text = redact(f"{type(origin).__name__}: {origin}")[:_SHOWN_OF_TEXT]
    is_transient = any(map(_is_transient, causes))
    if not is_transient and (parse_error := _parse_error(causes)):
        text = redact(f"the response is not valid HTTP: {parse_error}")[:_SHOWN_OF_TEXT]
        is_transient = True
    elif not is_transient and status is not None:
        name = HTTPStatus(status).phrase if status in list(HTTPStatus) else "status"
        text = f"{status} {name}"
    if is_transient or status in _TRANSIENT_STATUS:
        return TransientError(text)
    is_missing = isinstance(error, FileNotFoundError) and status is None
    if is_missing or status in _MISSING_STATUS:
        return MissingFileError("file is missing", path=path, hint=hint)
    advice = None
    if status in _REFUSED_STATUS or isinstance(error, PermissionError):
        advice = "Check the credentials, and that they may read this file"
    if status is not None or isinstance(error, OSError):
        return StorageReadError(f"the storage refuses the read ({text})", path=path, hint=advice)
    trace = redact("".join(traceback.format_exception(error)))
    return ItemReadError(text, path=path, traceback_text=trace)


def _parse_error(causes: Iterable[BaseException]) -> str | None:
    """Why aiohttp cannot parse a response; its own text has the response on lines with a caret."""
    found = next((cause for cause in causes if _is_one_of(_NOT_HTTP, cause)), None)
    text = getattr(found, "message", None)
    return text and " ".join(text.split()).rstrip(" ^")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised ``from``."""
    return islice(_chain(error), _MOST_CAUSES)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def status_of(error: Exception) -> int | None:
    """The status of the server's response, if the error or one of its causes has it."""
    return next(filter(None, map(_own_status, _causes(error))), None)


def _own_status(error: BaseException) -> int | None:
    # Each package has another attribute for it.
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            if _is_status(value := getattr(holder, name, None)):
                return value
    return response if _is_status(response) else None


def _is_status(value: object) -> bool:
    return type(value) is int and 400 <= value < 600  # noqa: PLR2004 - errors of HTTP


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError):
        return False
    if isinstance(error, TimeoutError | ConnectionError) or is_transient_os_error(error):
        return True
    return _is_one_of(_TRANSIENT_ERRORS, error)


def _is_one_of(names: frozenset[str], error: BaseException) -> bool:
    return not names.isdisjoint(_names(type(error).__mro__))


def _names(kinds: Iterable[type]) -> Iterator[str]:
    for kind in kinds:
        yield f"{kind.__module__.split('.', 1)[0]}.{kind.__name__}"
