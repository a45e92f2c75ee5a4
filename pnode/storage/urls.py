"""Opens the store that a URL names: file:///path or s3://bucket/prefix."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from pnode.errors import ConfigError, PNodeError
from pnode.storage.blob import BlobStore
from pnode.storage.local import LocalStore
from pnode.storage.s3 import S3Store, Timeouts


def open_store(
    url: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    keep_free_bytes: int = 0,
) -> BlobStore:
    """The store behind `url`; `keep_free_bytes` is for files alone, the rest for s3.

    Nothing is asked of an S3 store yet: `probe` does that.

    Raises ConfigError for any other URL, for a directory that cannot be used, and for missing credentials.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("the store's URL is malformed; file:///path or s3://bucket/prefix is expected") from None
    if "@" in parts.netloc:
        # Not repeated, for what stands there may be a password.
        raise ConfigError("the store's URL must not carry credentials; give them to boto3 by environment or profile")
    if parts.query or parts.fragment:
        raise ConfigError(f"the store's URL {url!r} has parts that mean nothing")
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return LocalStore(unquote(parts.path), keep_free_bytes=keep_free_bytes)
    if parts.scheme == "s3":
        return _open_s3(parts.netloc, parts.path, endpoint_url, region, timeouts)
    raise ConfigError(f"{url!r} names no store; file:///path or s3://bucket/prefix is expected")


def _open_s3(bucket: str, prefix: str, endpoint_url: str | None, region: str | None, timeouts: Timeouts) -> BlobStore:
    try:
        return S3Store(bucket, prefix, endpoint_url=endpoint_url, region=region, timeouts=timeouts)
    except ConfigError:
        raise
    except PNodeError as error:
        raise ConfigError(f"the store's prefix cannot be used: {error}") from error
