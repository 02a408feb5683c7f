"""A real uvicorn server on a loopback port, in a thread of the test process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from bei.runtime.cli import bind, url
from bei.runtime.server import create_app
from bei.runtime.service import Service

MAX_BODY_BYTES = 1 << 20


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The server's base URL; at the end it must stop by itself."""
    app = create_app(service, drain_seconds=5, max_body_bytes=MAX_BODY_BYTES)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield url(listener)
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()
