"""s3torchconnector: its writer and reader, from an S3 server on this machine."""

from __future__ import annotations

import os

import boto3
import torch.distributed.checkpoint as dcp
from moto.server import ThreadedMotoServer
from s3torchconnector import S3ClientConfig
from s3torchconnector._s3client import S3Client
from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

from tests.clients.programs._common import made

PACKAGE, RANKS = "s3torchconnector", 1
REGION, URL = "us-east-1", "s3://bucket/step-7/"
CONFIG = S3ClientConfig(force_path_style=True)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)


def connected(kind):
    storage = kind(REGION, URL, s3client_config=CONFIG)
    address = "http://{}:{}".format(*server.get_host_and_port())
    storage.fs._client = S3Client(REGION, endpoint=address, s3client_config=CONFIG)
    return storage


def save(folder):
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", region_name=REGION, endpoint_url=address).create_bucket(Bucket="bucket")
    dcp.save(made(0).state_dict(), storage_writer=connected(S3StorageWriter))


def load(folder):
    state = made(1).state_dict()
    dcp.load(state, storage_reader=connected(S3StorageReader))
    return state
