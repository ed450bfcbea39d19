"""A server for buckets on this machine, and what a program needs to find it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import boto3
import requests
from moto.server import ThreadedMotoServer

BUCKET = "graphs"
_KEYS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "secret"}


class Server:
    """A running server with one bucket.

    Args:
        address: where it listens.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.client: Any = boto3.client("s3", **self._client_options())
        self.client.create_bucket(Bucket=BUCKET)

    def _client_options(self) -> dict[str, str]:
        return {
            "endpoint_url": self.address,
            "region_name": "us-east-1",
            "aws_access_key_id": _KEYS["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": _KEYS["AWS_SECRET_ACCESS_KEY"],
        }

    @property
    def environment(self) -> Mapping[str, str]:
        """By which programs find it."""
        return _KEYS | {"AWS_ENDPOINT_URL": self.address, "AWS_DEFAULT_REGION": "us-east-1"}

    def objects(self, below: str = "") -> dict[str, int]:
        """Names and sizes of what is in the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=below)
        return {o["Key"]: o["Size"] for page in pages for o in page.get("Contents", ())}

    def read(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return body

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Know no keys inside."""
        requests.post(f"{self.address}/moto-api/reset-auth", data=b"0", timeout=10)
        try:
            yield
        finally:
            requests.post(f"{self.address}/moto-api/reset-auth", data=b"inf", timeout=10)


@contextmanager
def served() -> Iterator[Server]:
    """Have a server, which this process finds by its environment, too."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    address = f"http://{host}:{port}"
    requests.post(f"{address}/moto-api/reset", timeout=10)  # one memory for all of a process
    server = Server(address)
    try:
        with mock.patch.dict(os.environ, server.environment):
            yield server
    finally:
        server.client.close()
        running.stop()
