"""Limits of a connection, with raw sockets: slow clients, big headers, too many connections, endless uploads."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest
from tests.runtime.serving import serving
from tests.runtime.tiny import write_bundle

from bei.runtime.http.protocol import LINGER_BYTES, ConnectionLimits
from bei.runtime.model import Model, load
from bei.runtime.service import Service

LIMITS = ConnectionLimits(
    connections=20,
    head_bytes=4096,
    headers=30,
    head_seconds=1.0,
    body_seconds=1.0,
    answer_seconds=1.0,
    linger_seconds=1.0,
    min_rate=1 << 20,
)
POST = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n"
BODY = b'{"input": "hello"}'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(write_bundle(tmp_path_factory.mktemp("protocol") / "b", max_batch=64)) as model:
        yield model


@pytest.fixture(scope="module")
def url(model: Model) -> Iterator[str]:
    with serving(Service(model, max_queue_tokens=1 << 20), layers={"limits": LIMITS}) as url:
        yield url


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20)) as client:
        yield client


def rest(client: socket.socket) -> bytes:
    """Everything until the server closes; a reset is a close."""
    found = b""
    try:
        while part := client.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


def whole(body: bytes = BODY) -> bytes:
    return POST + b"content-length: %d\r\n\r\n" % len(body) + body


def answer(client: socket.socket) -> bytes:
    """One answer with a content-length."""
    found = b""
    while b"\r\n\r\n" not in found:
        part = client.recv(1 << 16)
        assert part, found
        found += part
    head, _, body = found.partition(b"\r\n\r\n")
    (size,) = (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < size:
        body += client.recv(1 << 16)
    return head + b"\r\n\r\n" + body


@pytest.mark.parametrize("sent", [b"", b"\r\n", POST, POST + b"content-len"])
def test_headers_that_do_not_come_end_the_connection(url: str, sent: bytes) -> None:
    with connected(url) as client:
        client.sendall(sent)
        found = rest(client)
    assert found == b"" or found.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("drop", [b"x", b"\r\n"])
def test_headers_that_trickle_win_no_time(url: str, drop: bytes) -> None:
    with connected(url) as client:
        began = time.monotonic()
        client.sendall(POST if drop == b"x" else drop)
        client.settimeout(0.1)
        while time.monotonic() - began < 30:
            try:
                client.sendall(drop)
                if not client.recv(100):
                    break
                break  # told 408
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("the server kept a connection that sent nothing of use")


def test_a_body_that_trickles_is_cut_and_one_that_comes_in_pieces_is_not(url: str) -> None:
    with connected(url) as client:
        client.sendall(POST + b"content-length: 100000\r\n\r\n" + b"{")
        assert rest(client).startswith(b"HTTP/1.1 408 Request Timeout")
    with connected(url) as client:
        request = whole()
        for part in (request[:10], request[10:-5], request[-5:]):
            client.sendall(part)
            time.sleep(0.05)
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_slow_clients_do_not_hold_up_others(url: str) -> None:
    slow = [socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) for _ in range(10)]
    try:
        for client in slow:
            client.sendall(POST)
        for _ in range(5):
            assert httpx.post(f"{url}/v1/embeddings", json={"input": "hello"}).status_code == 200
        for client in slow:
            client.settimeout(20)
            assert rest(client).startswith(b"HTTP/1.1 408")
    finally:
        for client in slow:
            client.close()


@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"a" * 5000,
        b"\r\n".join(b"x-%d: a" % number for number in range(40)),
        b"\r\n".join(b"x-%d: %b" % (number, b"a" * 200) for number in range(25)),
    ],
)
def test_headers_too_large_or_too_many(url: str, head: bytes) -> None:
    with connected(url) as client:
        client.sendall(POST + head + b"\r\ncontent-length: 2\r\n\r\n{}")
        assert rest(client).startswith(b"HTTP/1.1 431")
    with connected(url) as client:
        client.sendall(b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 431")


def test_a_connection_more_than_allowed_is_told_so(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(LIMITS.connections + 5)]
    try:
        held[-1].sendall(whole())
        assert rest(held[-1]).startswith(b"HTTP/1.1 503")
    finally:
        for client in held:
            client.close()
    until = time.monotonic() + 20
    while httpx.get(f"{url}/health").status_code != 200:
        assert time.monotonic() < until


def test_several_requests_on_one_connection(url: str) -> None:
    with connected(url) as client:
        for _ in range(3):
            client.sendall(whole())
            assert answer(client).startswith(b"HTTP/1.1 200")
        client.sendall(whole() * 3)  # pipelined
        found = b""
        while found.count(b'"usage"') < 3:
            found += client.recv(1 << 16)
        assert found.count(b"HTTP/1.1 200") == 3


def test_an_upload_over_the_limit_is_cut_not_swallowed(url: str) -> None:
    size = 100 << 20
    with connected(url) as client:
        client.sendall(POST + b"content-length: %d\r\n\r\n" % size)
        sent, piece = 0, b"x" * (1 << 16)
        try:
            while sent < size:
                client.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        found = rest(client)
    assert b"413" in found.split(b"\r\n")[0] or found == b""
    assert sent < LINGER_BYTES + (32 << 20)  # what the kernel's buffers hold comes on top


def test_an_upload_of_unknown_length_is_cut(url: str) -> None:
    with connected(url) as client:
        client.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0
        try:
            while sent < 100 << 20:
                client.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
    assert sent < 64 << 20


def test_a_client_that_never_reads_its_answer_is_let_go(url: str) -> None:
    with connected(url) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.2)
        requests = (
            whole(b'{"input": [%b]}' % b",".join([b'"a"'] * 2000)) * 30
        )  # more answers than all buffers hold
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                requests = requests[client.send(requests) :] or b"\r\n"
            except TimeoutError:
                continue
            except OSError:
                return
            time.sleep(0.05)
        raise AssertionError("the server kept the connection")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        POST + b"content-length: -1\r\n\r\n",
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused(url: str, sent: bytes) -> None:
    with connected(url) as client:
        client.sendall(sent)
        assert rest(client).startswith((b"HTTP/1.1 400", b"HTTP/1.1 408"))
