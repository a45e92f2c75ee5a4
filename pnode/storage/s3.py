"""A blob store in an S3 bucket, by boto3: conditional puts, bounded retries, deadlines, sizes held while streaming.

Credentials come from boto3's own chain (environment, profile, web identity, instance) and are never named here. What a
server says in words is not repeated in errors: only its status and its error code, if that is one.
"""

from __future__ import annotations

import io
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from pnode.errors import BlobMissing, ConfigError, PNodeError, PreconditionFailed, StoreUnavailable, TooLarge
from pnode.storage.blob import Blob, check_key, check_prefix

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

T = TypeVar("T")

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_CODE = re.compile(r"[A-Za-z0-9.]{1,64}", re.ASCII)
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+/?", re.ASCII)
_ETAG = re.compile(r'"?[A-Za-z0-9+/=_-]{1,128}"?', re.ASCII)
_CHUNK_BYTES = 1 << 20
# A store that is deciding another conditional put of this key says 409: come again. Seconds, before jitter.
_CONFLICT_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Timeouts:
    """Bounds of one call. `total_s` bounds the passing of a body; connecting and waiting is bounded per attempt."""

    connect_s: float = 3.0
    read_s: float = 15.0
    total_s: float = 120.0
    attempts: int = 3


class S3Store:
    """Blobs as objects of `bucket`, under `prefix/`. `endpoint_url` names a store other than AWS.

    Raises ConfigError for a malformed bucket or endpoint, and where no credentials are found.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        timeouts: Timeouts = Timeouts(),
    ) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"{bucket[:80]!r} is no name of an S3 bucket")
        self._bucket = bucket
        self._prefix = check_prefix(prefix.strip("/") + "/") if prefix.strip("/") else ""
        self._timeouts = timeouts
        self._client = _make_client(endpoint_url, region, timeouts)

    def __repr__(self) -> str:
        return f"S3Store({self._bucket!r}, {self._prefix!r})"

    def get(self, key: str, *, max_bytes: int) -> Blob:
        """See BlobStore."""
        name = self._prefix + check_key(key)
        ends = time.monotonic() + self._timeouts.total_s
        for attempt in range(1, self._timeouts.attempts + 1):
            response = _asked(f"get {key}", lambda: self._client.get_object(Bucket=self._bucket, Key=name))
            try:
                with closing(response["Body"]) as body:
                    return Blob(_received(body, response.get("ContentLength"), max_bytes, ends), response["ETag"])
            except (HTTPError, OSError) as error:
                # boto3 retries until the headers are there; a connection lost in the midst of a body is ours.
                log.warning("get %s broke off (%s), attempt %d", key, type(error).__name__, attempt)
        raise StoreUnavailable(f"the store broke off get {key} {self._timeouts.attempts} times")

    def put_if_absent(self, key: str, content: bytes) -> str:
        """See BlobStore."""
        return self._put(key, content, {"IfNoneMatch": "*"})

    def put_if_match(self, key: str, content: bytes, etag: str) -> str:
        """See BlobStore."""
        if not _ETAG.fullmatch(etag):
            # An empty condition is none at all, and "*" matches whatever is there.
            raise PreconditionFailed(f"put {check_key(key)}: {etag[:80]!r} is the etag of nothing")
        try:
            return self._put(key, content, {"IfMatch": etag})
        except BlobMissing:
            raise PreconditionFailed(f"{key} holds nothing by now") from None

    def delete(self, key: str) -> None:
        """See BlobStore."""
        name = self._prefix + check_key(key)
        _asked(f"delete {key}", lambda: self._client.delete_object(Bucket=self._bucket, Key=name))

    def keys(self, prefix: str) -> Iterator[str]:
        """See BlobStore."""
        under = self._prefix + check_prefix(prefix)
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=under))
        while (page := _asked(f"list {prefix}", lambda: next(pages, None))) is not None:
            yield from (item["Key"][len(self._prefix) :] for item in page.get("Contents", ()))

    def close(self) -> None:
        """See BlobStore."""
        self._client.close()

    def _put(self, key: str, content: bytes, condition: dict[str, Any]) -> str:
        name = self._prefix + check_key(key)
        for pause_s in (*_CONFLICT_PAUSES_S, None):
            body = _Body(content, time.monotonic() + self._timeouts.total_s)
            try:
                return self._client.put_object(Bucket=self._bucket, Key=name, Body=body, **condition)["ETag"]
            except ClientError as error:
                if _status(error) == 409 and pause_s is not None:
                    _pause(pause_s)
                elif _status(error) == 412 and _was_retried(error):
                    return self._read_back(key, content, error)
                else:
                    raise _refusal(error, f"put {key}") from error
            except (BotoCoreError, HTTPError, OSError) as error:
                raise _unavailable(error, f"put {key}") from error
        raise AssertionError("the last pause is None")

    def _read_back(self, key: str, content: bytes, error: ClientError) -> str:
        """The etag, if what stands there is what we put: then it was our own first attempt that won."""
        try:
            blob = self.get(key, max_bytes=len(content))
        except (TooLarge, BlobMissing):
            raise _refusal(error, f"put {key}") from error
        if blob.content != content:
            raise _refusal(error, f"put {key}") from error
        return blob.etag


class _Body(io.BytesIO):
    """Bytes to send until a deadline: each socket write has its timeout, but a slow peer could take many of them."""

    def __init__(self, content: bytes, ends: float) -> None:
        super().__init__(content)
        self._ends = ends

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._ends:
            raise TimeoutError("the store takes too long to receive a blob")
        return super().read(size)


def _make_client(endpoint_url: str | None, region: str | None, timeouts: Timeouts) -> S3Client:
    # At DEBUG, botocore prints the headers that it signs, session token included.
    logging.getLogger("botocore").setLevel(logging.INFO)
    config = Config(
        connect_timeout=timeouts.connect_s,
        read_timeout=timeouts.read_s,
        retries={"mode": "standard", "total_max_attempts": timeouts.attempts},
        max_pool_connections=32,
        # Buckets as host names need a wildcard DNS entry, which stores other than AWS rarely have.
        s3={"addressing_style": "path"} if endpoint_url else None,
    )
    if endpoint_url is not None and not _ENDPOINT.fullmatch(endpoint_url):
        # Not repeated, for what stands there may be a password.
        raise ConfigError("the S3 endpoint must be http://host:port or https://host:port, without credentials")
    try:
        session = boto3.session.Session()
        if session.get_credentials() is None:
            raise ConfigError("no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
        region = region or session.region_name or "us-east-1"
        client: S3Client = session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"the S3 store cannot be set up: {' '.join(str(error).split())}") from error
    return client


def _received(body: Any, size_bytes: int | None, max_bytes: int, ends: float) -> bytes:
    """A body, at most `max_bytes` of it, until `ends` on the monotonic clock."""
    if size_bytes is not None and size_bytes > max_bytes:
        raise TooLarge(f"a blob of {size_bytes} bytes is over the {max_bytes} that are asked for")
    content = bytearray()
    # boto3's own read gathers a whole chunk before it returns, so that a peer who sends byte by byte would never let us
    # look at the clock. Undecoded, for what unpacks to more than was sent has no place here.
    while chunk := body._raw_stream.read1(_CHUNK_BYTES, decode_content=False):
        content += chunk
        if len(content) > max_bytes:
            raise TooLarge(f"a blob of unknown size is over the {max_bytes} bytes that are asked for")
        if time.monotonic() > ends:
            raise StoreUnavailable("the store takes too long to send a blob")
    if size_bytes is not None and len(content) < size_bytes:
        raise ConnectionResetError(f"{len(content)} of {size_bytes} bytes came")
    return bytes(content)


def _asked(doing: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except ClientError as error:
        raise _refusal(error, doing) from error
    except (BotoCoreError, HTTPError, OSError) as error:
        raise _unavailable(error, doing) from error


def _refusal(error: ClientError, doing: str) -> PNodeError:
    """The error of ours for an answer of the store."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    code = code if _CODE.fullmatch(code) else "no code"
    if _status(error) == 412:
        return PreconditionFailed(f"{doing}: something else is there")
    if code in ("NoSuchKey", "404"):
        return BlobMissing(f"{doing}: no such blob")
    if code == "EntityTooLarge":
        return TooLarge(f"{doing}: over the largest size that the store takes")
    return StoreUnavailable(f"the store refused {doing}: HTTP {_status(error)}, {code}")


def _unavailable(error: Exception, doing: str) -> StoreUnavailable:
    return StoreUnavailable(f"the store does not answer {doing}: {type(error).__name__}")


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _was_retried(error: ClientError) -> bool:
    return error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0


def _pause(at_most_s: float) -> None:
    threading.Event().wait(random.uniform(0, at_most_s))  # noqa: S311 - spreads retries, guards nothing
