"""A loopback Hub that this process's huggingface_hub talks to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.compiler.checkpoint.hub_server import HubServer, pointed_at


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub; tests fill ``hub.repos``."""
    cache = tmp_path / "cache"
    cache.mkdir()
    with HubServer({}) as server, pointed_at(server, cache, monkeypatch):
        yield server
