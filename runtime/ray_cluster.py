"""A Ray cluster as this process sees it. Ray is an extra, and imported here and by those who use what this opens."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from bei.errors import InputError

PATIENCE = 10.0
"""Seconds for a node to take up the connection."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, and leave it at the end. Raises InputError.

    ``address`` None: the cluster that RAY_ADDRESS or this machine knows, else one of this machine alone.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ModuleNotFoundError:
        raise InputError("--ray: ray is not installed. Run: pip install 'bei[ray]'.") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _knock(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise InputError(f"--ray {address}: no cluster answers there ({error}).") from None
    with redirect_stdout(sys.stderr):  # what Ray says of dead processes is no result
        try:
            yield
        finally:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Raises OSError where nobody listens at host:port; Ray would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
