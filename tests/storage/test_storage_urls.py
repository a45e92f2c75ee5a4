"""A URL names a store or is refused in one line, which repeats no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from pnode.errors import ConfigError
from pnode.storage.local import LocalStore
from pnode.storage.s3 import S3Store
from pnode.storage.urls import open_store
from tests.seaweed import S3Endpoint


def test_a_directory(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/a%20store")
    assert isinstance(store, LocalStore)
    store.put_if_absent("x", b"y")
    assert (tmp_path / "a store" / "x").read_bytes() == b"y"


def test_a_bucket(s3: S3Endpoint) -> None:
    store = open_store(f"s3://{s3.bucket}/urls/deep/", endpoint_url=s3.url)
    assert isinstance(store, S3Store)
    store.put_if_absent("x", b"y")
    whole = open_store(f"s3://{s3.bucket}", endpoint_url=s3.url)
    assert whole.get("urls/deep/x", max_bytes=10).content == b"y"
    for each in (store, whole):
        each.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/a/path",
        "http://127.0.0.1/x",
        "file://host/path",
        "file:relative",
        "file:///a?b",
        "s3://",
        "s3://Not_A_Bucket",
        "s3://bucket/../up",
        "s3://bucket/x#y",
        "s3://[",
        "s3://user:password@bucket",
    ],
)
def test_anything_else_is_refused(url: str, s3: S3Endpoint) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url, endpoint_url=s3.url)
    assert "\n" not in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["http://user:password@127.0.0.1:1", "nonsense", "ftp://127.0.0.1"])
def test_endpoints_that_are_none(endpoint: str, s3: S3Endpoint) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(f"s3://{s3.bucket}", endpoint_url=endpoint)
    assert "password" not in str(caught.value)
