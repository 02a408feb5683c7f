"""The address a server listens on, and its certificate: found out before a bundle is loaded."""

import contextlib
import ipaddress
import socket
import ssl
from pathlib import Path

from bei.errors import BeiError


def bind(host: str, port: int) -> socket.socket:
    """A socket on the address, not yet listening. Raises BeiError.

    It names its protocol: asyncio sends small packets at once (TCP_NODELAY) only where it sees that this is TCP, and
    without that an answer waits 40 ms for the client's delayed ACK.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            undo.pop_all()
    except (OSError, OverflowError) as error:
        raise BeiError(
            f"{host}:{port}: cannot listen there ({error}). Choose another --host or --port."
        ) from None
    return listener


def url(listener: socket.socket, scheme: str = "http") -> str:
    """scheme://host:port, with brackets around an IPv6 host."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches the socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Both or neither, and they fit each other. Raises BeiError."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise BeiError("--tls-cert, --tls-key: got one of them, need both or neither.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BeiError(f"{certificate}, {key}: no usable certificate and key ({reason}).") from None


def _no_password() -> str:
    """Called for an encrypted key, which otherwise would be asked for on the terminal."""
    raise ValueError("the key is encrypted")
