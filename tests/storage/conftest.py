"""Both stores, each test with a place of its own in them."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pnode.storage.blob import BlobStore
from pnode.storage.local import LocalStore
from pnode.storage.s3 import S3Store, Timeouts
from tests.seaweed import S3Endpoint

OpenS3 = Callable[..., S3Store]

QUICK = Timeouts(connect_s=2.0, read_s=5.0, total_s=20.0, attempts=3)


@pytest.fixture
def s3(s3_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> S3Endpoint:
    """The server, with its credentials where boto3 looks for them."""
    for name, value in s3_endpoint.environ().items():
        monkeypatch.setenv(name, value)
    return s3_endpoint


@pytest.fixture
def open_s3(s3: S3Endpoint) -> Iterator[OpenS3]:
    """Opens stores at whatever stands before the server. Closed with the test."""
    opened: list[S3Store] = []

    def open_at(url: str, timeouts: Timeouts = QUICK) -> S3Store:
        opened.append(S3Store(s3.bucket, f"tests/{uuid.uuid4().hex}", endpoint_url=url, timeouts=timeouts))
        return opened[-1]

    yield open_at
    for store in opened:
        store.close()


@pytest.fixture(scope="session")
def s3_bucket(s3_endpoint: S3Endpoint) -> Iterator[S3Store]:
    """The whole bucket. One for all tests, for a client takes 0.1 s to make."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_endpoint.environ().items():
            patch.setenv(name, value)
        store = S3Store(s3_endpoint.bucket, endpoint_url=s3_endpoint.url, timeouts=QUICK)
    yield store
    store.close()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    """An empty store. Whatever a test says of it holds for every kind."""
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    whole: S3Store = request.getfixturevalue("s3_bucket")
    store = copy.copy(whole)
    store._prefix = f"tests/{uuid.uuid4().hex}/"
    return store
