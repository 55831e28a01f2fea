"""Who takes part over S3: every reader of DCP or safetensors that has a client of its own.

Only public buckets are read: no request is signed. Each contestant makes its client anew for each
load, so that none begins with connections, listings or metadata of the load before.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch.distributed.checkpoint as dcp

import paraload
from benchmarks.arms import Arm, Prepared
from benchmarks.remote import CONNECTIONS, RAW, raw_download
from benchmarks.rivals import loaders
from benchmarks.rivals.contestants import Contestant, Side
from benchmarks.rivals.formats import DCP, SAFETENSORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.cases import Case

    #: Loads a case from the address of its folder.
    Load = Callable[[Case, str], object]

__all__ = ["s3_contestants"]

_REGION: Final = "eu-west-1"
#: Run:ai opens 8 connections unless told otherwise; paraload begins with 32.
_MORE_CONNECTIONS: Final = 32


def s3_contestants(endpoint: str, bucket: str) -> tuple[Contestant, ...]:
    """All of them, the raw limit first.

    Args:
        endpoint: URL of the server.
        bucket: where a checkpoint is found by the name of its folder.
    """

    def contestant(name: str, load: Load, **fields: Any) -> Contestant:
        def prepare(case: Case) -> Prepared:
            address = f"s3://{bucket}/{case.folder.name}"
            return Prepared(run=lambda: load(case, address))

        return Contestant(arm=Arm(name=name, prepare=prepare), **fields)

    def raw(case: Case, _: str) -> object:
        return raw_download(f"{endpoint}/{bucket}", case)()

    def ours(file_format: str, **options: Any) -> Contestant:
        few = f", {CONNECTIONS} connections" * bool(options)
        return contestant(
            f"paraload, {file_format}{few}",
            lambda case, address: _load(case, address, endpoint, options),
            group="paraload",
            package="paraload",
            file_format=file_format,
            side=Side.OURS,
        )

    def run_ai(connections: int | None) -> Contestant:
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": _REGION,
            "RUNAI_STREAMER_S3_UNSIGNED": "1",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        }
        name = "Run:ai model streamer"
        if connections is not None:
            environment["RUNAI_STREAMER_CONCURRENCY"] = str(connections)
            name += f", {connections} connections"
        load = loaders.run_ai(lambda file: f"s3://{bucket}/{'/'.join(Path(file).parts[-2:])}")
        return Contestant(
            arm=loaders.copying(name, load, environment),
            group="runai",
            package="runai-model-streamer-s3",
            file_format=SAFETENSORS,
        )

    return (
        contestant(RAW, raw, group="raw", side=Side.LIMIT),
        *(
            ours(file_format, **options)
            for file_format in (DCP, SAFETENSORS)
            for options in ({}, {"max_workers": CONNECTIONS})
        ),
        contestant(
            "torch FsspecReader, s3fs",
            lambda case, address: _load_with(_fsspec_reader(address, endpoint), case),
            group="s3fs",
            package="s3fs",
        ),
        contestant(
            "S3StorageReader of s3torchconnector",
            lambda case, address: _load_with(_connector_reader(address, endpoint), case),
            group="s3torchconnector",
            package="s3torchconnector",
        ),
        run_ai(None),
        run_ai(_MORE_CONNECTIONS),
    )


def _load(case: Case, address: str, endpoint: str, options: dict[str, Any]) -> object:
    return paraload.load(
        dict(case.targets),
        address,
        no_dist=True,
        storage_options={
            "endpoint": endpoint,
            "region": _REGION,
            "skip_signature": True,
            "client_options": {"allow_http": True},
        },
        **options,
    )


def _load_with(reader: Any, case: Case) -> None:
    dcp.load(dict(case.targets), storage_reader=reader, no_dist=True)


def _fsspec_reader(address: str, endpoint: str) -> Any:
    import_module("s3fs")  # fsspec only warns that it is missing, in the middle of a long traceback
    reader = import_module("torch.distributed.checkpoint._fsspec_filesystem").FsspecReader
    return reader(address, anon=True, endpoint_url=endpoint, skip_instance_cache=True)


def _connector_reader(address: str, endpoint: str) -> Any:
    connector = import_module("s3torchconnector")
    client = import_module("s3torchconnector._s3client").S3Client
    system = import_module("s3torchconnector.dcp.s3_file_system").S3FileSystem
    settings = connector.S3ClientConfig(unsigned=True, force_path_style=True)
    constructor = connector.S3ReaderConstructor.dcp_optimized()  # which is the default
    reader = import_module("s3torchconnector.dcp").S3StorageReader(
        _REGION, address, s3client_config=settings, reader_constructor=constructor
    )
    # The reader has no argument for an endpoint.
    reader.fs = system(
        _REGION,
        s3_client=client(_REGION, endpoint=endpoint, s3client_config=settings),
        reader_constructor=constructor,
    )
    return reader
