"""Makes obstore's stores: with the options that paraload wants, and typed errors for wrong ones."""

from __future__ import annotations

import os
from base64 import b64encode
from typing import Any, Final
from urllib.parse import unquote

from paraload.errors import InvalidOptionError
from paraload.sources.obstore_errors import panic_text, public_text
from paraload.sources.urls import split_url

#: 8 MiB take longer than 120 s only below 70 KiB/s. ``read_timeout`` is shorter than the default of
#: ``stall_timeout_s``, so that a stalled request is retried before the load gives up.
_CLIENT_OPTIONS: Final = {"timeout": "120s", "read_timeout": "20s"}
#: Names of the option for the address of the server.
_ENDPOINTS: Final = (
    "endpoint",
    "endpoint_url",
    "aws_endpoint",
    "aws_endpoint_url",
    "azure_endpoint",
)


def make_store(where: Any, options: dict[str, Any], *, name: str) -> Any:
    """The store at a URL; a store is returned as it is."""
    if not isinstance(where, str):
        return _require_store(where, options)
    scheme = split_url(where).scheme
    if scheme == "memory":
        raise InvalidOptionError(
            "each memory:// store has content of its own; pass the obstore.store.MemoryStore"
            " that has the checkpoint instead of a URL"
        )
    try:
        from obstore.exceptions import BaseError  # noqa: PLC0415 - optional
        from obstore.store import from_url  # noqa: PLC0415
    except ImportError:
        raise InvalidOptionError(
            f"reading {name} needs obstore: pip install 'paraload[object-store]'. Or read"
            " it with ParallelFsspecReader"
        ) from None
    # obstore refuses http:// unless ``allow_http`` is set.
    named = (options.get(it) or os.environ.get(it.upper()) for it in _ENDPOINTS)
    places = (where, *named)
    is_plain = any(str(place).lower().startswith("http://") for place in places)
    client = {"allow_http": True} if is_plain else {}
    given = options.get("client_options", {})
    if not isinstance(given, dict):
        raise InvalidOptionError(
            f"{name}: client_options must be a dict, not {type(given).__name__}"
        )
    _require_scheme(scheme, options, name)
    client |= _login(where) | _CLIENT_OPTIONS | given
    complete = {"retry_config": {"max_retries": 0}} | options | {"client_options": client}
    try:
        return from_url(where, **complete)
    except (BaseError, ValueError, TypeError) as error:
        problem = public_text(str(error))
    except BaseException as error:
        if (panic := panic_text(error)) is None:
            raise
        problem = (
            f"{panic}. Options of its HTTP client, such as allow_http and timeout, go into"
            " client_options={...}"
        )
    raise InvalidOptionError(f"{name}: {problem}")


def _require_scheme(scheme: str, options: dict[str, Any], name: str) -> None:
    """Refuse an endpoint without a scheme, with which the first request to S3 panics."""
    endpoints = {it: options[it] for it in _ENDPOINTS if options.get(it)}
    if not endpoints and scheme.startswith("s3"):
        variables = [it.upper() for it in _ENDPOINTS if it.startswith("aws_")]
        endpoints = {it: os.environ[it] for it in variables if os.environ.get(it)}
    for it, endpoint in endpoints.items():
        if not str(endpoint).lower().startswith(("http://", "https://")):
            raise InvalidOptionError(f"{name}: {it} must begin with http:// or https://")


def _login(url: str) -> dict[str, Any]:
    """The client options for user and password in an HTTP URL, which obstore ignores."""
    parts = split_url(url)
    if parts.username is None or parts.scheme not in {"http", "https"}:
        return {}
    pair = unquote(f"{parts.username}:{parts.password or ''}").encode()
    return {"default_headers": {"Authorization": f"Basic {b64encode(pair).decode()}"}}


def _require_store(store: Any, options: dict[str, Any]) -> Any:
    if not hasattr(store, "get_range"):
        raise InvalidOptionError(f"expected a URL or an obstore store, got {store!r}")
    if options:
        raise InvalidOptionError(f"{min(options)}: an obstore store has its own options already")
    return store
