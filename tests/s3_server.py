"""A server that speaks S3, on loopback, with a bucket: moto's, in this process or one of its own."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import httpx

BUCKET = "television"


def variables(url: str) -> Mapping[str, str]:
    """Return the environment by which the server at *url* is reached."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def s3_server() -> Iterator[str]:
    """Serve while the block runs, with the environment of this process set to reach it; gives its URL."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - it takes two seconds

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        with patch.dict(os.environ, variables(url)):
            made(url)
            yield url
    finally:
        server.stop()


def made(url: str) -> None:
    """Make the bucket."""
    scope = "AWS4-HMAC-SHA256 Credential=somebody/20260101/us-east-1/s3/aws4_request"
    with httpx.Client(trust_env=False, timeout=30) as client:
        client.put(f"{url}/{BUCKET}", headers={"authorization": scope}).raise_for_status()


if __name__ == "__main__":
    with s3_server() as here:
        print(here, flush=True)
        signal.pause()
