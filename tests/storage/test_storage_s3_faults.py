"""An S3 server that is away, slow, lying or hostile ends in one clear error, in time, with nothing lost."""

from __future__ import annotations

import gzip
import logging
import socket
import threading
import time
from collections.abc import Callable

import pytest

from pnode.errors import BlobMissing, ConfigError, PreconditionFailed, StoreUnavailable, TooLarge
from pnode.storage.content import get_content, put_content
from pnode.storage.manifest import ManifestLog
from pnode.storage.s3 import S3Store, Timeouts
from tests.seaweed import S3Endpoint
from tests.storage.conftest import OpenS3
from tests.storage.storage_fakes import manifest
from tests.storage.storage_servers import Proxy, Scripted, reply

Answer = Callable[[socket.socket, threading.Event], None]

HASTY = Timeouts(connect_s=0.5, read_s=0.5, total_s=1.0, attempts=2)
# Two attempts of HASTY, the pause between them, and a slow machine.
WITHIN_S = 15.0


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3Endpoint("", "", "an-access-key", "a-secret-key").environ().items():
        monkeypatch.setenv(name, value)


def hasty(url: str) -> S3Store:
    return S3Store("bucket", endpoint_url=url, timeouts=HASTY)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def fails_everywhere(store: S3Store) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get("a", max_bytes=1 << 20),
        lambda: store.put_if_absent("a", b"x"),
        lambda: store.put_if_match("a", b"x", '"e"'),
        lambda: store.delete("a"),
        lambda: list(store.keys("")),
    ]
    for call in calls:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            call()
        assert time.monotonic() - began < WITHIN_S
    store.close()


def silent(client: socket.socket, stopping: threading.Event) -> None:
    stopping.wait(60)


def garbage(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(b"\x00\xff" * 500)


def garbled_xml(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(reply("403 Forbidden", b"<Error><Code>" * 1000))


def out_of_order(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(reply("503 Slow Down", b"<Error><Code>SlowDown</Code></Error>"))


def forbidden(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(reply("403 Forbidden", b"<Error><Code>AccessDenied</Code><Message>\nwords</Message></Error>"))


def no_bucket(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(reply("404 Not Found", b"<Error><Code>NoSuchBucket</Code></Error>"))


@pytest.mark.usefixtures("credentials")
def test_nobody_listens() -> None:
    fails_everywhere(hasty(closed_port()))


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("answer", [silent, garbage, garbled_xml, out_of_order, forbidden, no_bucket])
def test_a_server_that_does_not_serve(answer: Answer) -> None:
    with Scripted(answer) as server:
        fails_everywhere(hasty(server.url))


@pytest.mark.usefixtures("credentials")
def test_what_a_server_says_is_not_repeated() -> None:
    with Scripted(forbidden) as server, pytest.raises(StoreUnavailable) as caught:
        hasty(server.url).get("a", max_bytes=1)
    assert str(caught.value) == "the store refused get a: HTTP 403, AccessDenied"


def truncated(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(reply("200 OK", b"x" * 100, 'ETag: "e"')[:-10])


def dripping(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 100000\r\n\r\n')
    while not stopping.wait(0.05):
        client.sendall(b"x")


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("answer", [truncated, dripping])
def test_a_body_that_does_not_come(answer: Answer) -> None:
    began = time.monotonic()
    with Scripted(answer) as server, pytest.raises(StoreUnavailable):
        hasty(server.url).get("a", max_bytes=1 << 20)
    assert time.monotonic() - began < WITHIN_S


def endless(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nTransfer-Encoding: chunked\r\n\r\n')
    while not stopping.is_set():
        client.sendall(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")


def enormous(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 9000000000000\r\n\r\nxxxx')
    stopping.wait(60)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("answer", [endless, enormous])
def test_a_body_without_an_end_is_cut_off(answer: Answer) -> None:
    with Scripted(answer) as server, pytest.raises(TooLarge):
        hasty(server.url).get("a", max_bytes=100_000)


@pytest.mark.usefixtures("credentials")
def test_what_claims_to_be_packed_is_not_unpacked() -> None:
    packed = gzip.compress(b"x" * 1_000_000)

    def bomb(client: socket.socket, stopping: threading.Event) -> None:
        client.sendall(reply("200 OK", packed, 'ETag: "e"', "Content-Encoding: gzip"))

    with Scripted(bomb) as server:
        assert hasty(server.url).get("a", max_bytes=10_000).content == packed


def takes_nothing(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    stopping.wait(60)


def takes_little(client: socket.socket, stopping: threading.Event) -> None:
    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while not stopping.wait(0.05):
        client.recv(10_000)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("answer", [takes_nothing, takes_little])
def test_a_body_that_is_not_taken(answer: Answer) -> None:
    began = time.monotonic()
    with Scripted(answer) as server, pytest.raises(StoreUnavailable):
        hasty(server.url).put_if_absent("a", bytes(32 << 20))
    assert time.monotonic() - began < WITHIN_S


def test_a_put_whose_answer_was_lost_is_success(s3: S3Endpoint, open_s3: OpenS3) -> None:
    with Proxy(s3.url) as proxy:
        store = open_s3(proxy.url)
        proxy.faults.append("lose")
        first = store.put_if_absent("a", b"first")
        proxy.faults.append("lose")
        second = store.put_if_match("a", b"second", first)
        assert store.get("a", max_bytes=10) == (b"second", second)
        assert not proxy.faults
        store.close()


def test_a_put_that_lost_the_race_and_its_answer_fails(s3: S3Endpoint, open_s3: OpenS3) -> None:
    with Proxy(s3.url) as proxy:
        store = open_s3(proxy.url)
        etag = store.put_if_absent("a", b"another's")
        proxy.faults.append("lose")
        with pytest.raises(PreconditionFailed):
            store.put_if_absent("a", b"ours")
        store.put_if_match("a", b"another's second", etag)
        proxy.faults.append("lose")
        with pytest.raises(PreconditionFailed):
            store.put_if_match("a", b"ours", etag)
        assert store.get("a", max_bytes=100).content == b"another's second"
        store.close()


def test_a_conflict_is_tried_again(s3: S3Endpoint, open_s3: OpenS3) -> None:
    with Proxy(s3.url) as proxy:
        store = open_s3(proxy.url)
        proxy.faults.extend(["conflict"] * 3)
        etag = store.put_if_absent("a", b"x")
        assert not proxy.faults
        proxy.faults.extend(["conflict"] * 6)
        with pytest.raises(StoreUnavailable, match="409"):
            store.put_if_match("a", b"y", etag)
        assert store.get("a", max_bytes=10) == (b"x", etag)
        store.close()


def test_checkpoints_survive_lost_answers(s3: S3Endpoint, open_s3: OpenS3) -> None:
    with Proxy(s3.url) as proxy:
        store = open_s3(proxy.url)
        log = ManifestLog(store, "run")
        parent = None
        for version in range(3):
            proxy.faults.append("lose")
            sha256 = put_content(store, b"state %d" % version)
            proxy.faults.extend(["lose", "lose"])
            parent = log.commit(manifest(version, parent))
            assert get_content(store, sha256, max_bytes=100) == b"state %d" % version
        assert [each.version for each, _ in log.history()] == [2, 1, 0]
        store.close()


def test_a_server_that_goes_away(s3: S3Endpoint, open_s3: OpenS3) -> None:
    with Proxy(s3.url) as proxy:
        store = open_s3(proxy.url, HASTY)
        store.put_if_absent("a", b"x")
    with pytest.raises(StoreUnavailable):
        store.get("a", max_bytes=10)


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(s3: S3Endpoint, open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv(wrong, "not-the-one")
    with pytest.raises(StoreUnavailable, match="403"):
        open_s3(s3.url).put_if_absent("a", b"x")


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3Endpoint("", "", "", "").environ().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="no S3 credentials"):
        hasty("http://127.0.0.1:1")


def test_credentials_are_never_logged(
    s3: S3Endpoint, open_s3: OpenS3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    caplog.set_level(logging.DEBUG)
    store = open_s3(s3.url)
    said = [repr(store)]
    for call in (lambda: store.put_if_absent("a", b"x"), lambda: store.get("b", max_bytes=1)):
        try:
            call()
        except (StoreUnavailable, BlobMissing) as error:
            said += [str(error), repr(error)]
    everything = "\n".join([*said, caplog.text])
    for secret in (s3.secret_key, s3.access_key, "a-session-token", "Signature="):
        assert secret not in everything
