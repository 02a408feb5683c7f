"""A real uvicorn server on a loopback port, in a thread of the test process."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from bei.runtime.cold_start import ColdStart
from bei.runtime.http.settings import Settings
from bei.runtime.listen import bind, url
from bei.runtime.serve import Options, application, server_config
from bei.runtime.service import Service

MAX_BODY_BYTES = 1 << 20


@contextmanager
def serving(*services: Service, layers: Mapping[str, Any] | None = None, **settings: Any) -> Iterator[str]:
    """The server's base URL; at the end it must stop by itself. ``layers`` are fields of `Options`."""
    told = Settings(drain_seconds=5, max_body_bytes=MAX_BODY_BYTES, **settings)
    options = Options(settings=told, **(layers or {}))
    with application(services, options, ColdStart()) as app, bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(server_config(app, options))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while thread.is_alive() and not (server.started and _accepts(listener)):
            time.sleep(0.01)
        assert thread.is_alive(), "the server stopped while starting"
        try:
            yield url(listener, "https" if options.certificate else "http")
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def _accepts(listener: socket.socket) -> bool:
    """Whether a connection gets through; on a loaded machine that can be a moment after the server says so."""
    try:
        socket.create_connection(listener.getsockname(), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True
