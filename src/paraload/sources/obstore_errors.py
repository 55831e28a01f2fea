"""Typed errors, without secrets, for those of obstore.

Most errors of obstore differ only in their text, which has the status of the response, or the kind
of failure below HTTP. We do not show that text: it contains the whole URL, whose user or query may
be a credential, and the response body, which may repeat what was signed.
"""

import errno
import re
from typing import Any, Final

from paraload.errors import MissingFileError, StorageReadError
from paraload.sources.urls import without_credentials

_STATUS: Final = re.compile(r"status code: (\d{3})([\w ]*)")
_CODE: Final = re.compile(r"<Code>(\w{1,40})</Code>")  # of S3, Azure and GCS
#: URLs, and the words of object_store before the reason.
_NOT_SHOWN: Final = re.compile(r"Error performing \w+ .* in [\d.]+\w+ - |\w+://\S+")
#: How object_store classifies what goes wrong below HTTP; "Unknown" are wrong requests.
_INTERRUPTION: Final = re.compile(r"kind: (Connect|Request|Timeout|Interrupted)\b")
#: The system's reason for a failed connection, such as "Connection refused".
_REASON: Final = re.compile(r'(?:message|error): "([\w ,:]{1,100})"')
_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS, _SERVER_ERRORS = 408, 429, 500
_HEAD_REFUSED: Final = frozenset({405, 501})
_DENIED: Final = frozenset({401, 403})
_EXPIRED: Final = "ExpiredToken"  # S3 answers 400 then
_HINTS: Final = {
    "Range request not supported": "Serve the files from a server that supports range requests",
    "NoSuchBucket": "Check the name of the bucket, and the endpoint",
    "builder error": "Plain http:// endpoints need client_options={'allow_http': True}",
}


def known_error(error: BaseException, path: str | None, name: str) -> Exception:
    """The error to raise for one of obstore.

    Transient ones are exactly ``ConnectionError`` or ``TimeoutError``. Denied access has the
    ``errno`` EACCES.
    """
    if isinstance(error, FileNotFoundError):
        complete = f"Is the checkpoint in {name} complete?"
        return MissingFileError("object is missing", path=path, hint=complete)
    if panic := panic_text(error):
        check = "Check the address of the server and the options of its storage"
        return StorageReadError(f"{name}: {panic}", path=path, hint=check)
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    number, answer = 0, public_text(text)
    if status:
        number, answer = int(status[1]), status[1] + status[2] + (f" ({code[1]})" if code else "")
    if number in _DENIED or (code and code[1] == _EXPIRED):
        failure = StorageReadError(
            f"{name} denies access: {answer}",
            path=path,
            hint="Check the credentials, and that they may read this key",
        )
        failure.errno = errno.EACCES
        return failure
    interruption = None if status else _INTERRUPTION.search(text)
    if interruption and interruption[1] == "Timeout":
        return TimeoutError(f"{name}: {answer} (timed out)")
    is_busy = number in {_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS} or number >= _SERVER_ERRORS
    if interruption or is_busy:
        reason = _REASON.search(text) if interruption else None
        return ConnectionError(f"{name}: {answer}{f' ({reason[1]})' if reason else ''}")
    hint = next((hint for part, hint in _HINTS.items() if part in answer), None)
    return StorageReadError(f"{name}: {answer}", path=path, hint=hint)


def is_head_refused(error: Exception) -> bool:
    """Whether a server that refuses a HEAD request may allow GET. obstore calls 405 "not found"."""
    status = _STATUS.search(str(error))
    return status is not None and int(status[1]) in _HEAD_REFUSED


def panic_text(error: BaseException) -> str | None:
    """What to say of a panic of Rust, which is no ``Exception`` and cannot be imported."""
    if type(error).__name__ != "PanicException":
        return None
    return f"obstore panicked ({public_text(str(error))})"


def public_text(text: str) -> str:
    """The first line of an error's text, without URLs."""
    return _NOT_SHOWN.sub("", text.partition("\n")[0])


def public_name(where: Any) -> str:
    """The name of a URL or store in messages."""
    url = where if isinstance(where, str) else getattr(where, "url", None)
    return without_credentials(url).rstrip("/") if isinstance(url, str) else repr(where)
