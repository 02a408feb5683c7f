"""Servers that the tests of the contracts share: one of a single embedding model, one of a model for each task."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from tests.runtime.serving import serving
from tests.runtime.tiny import write_bundle

from bei.runtime.model import Model, load
from bei.runtime.service import Service

LABELS = ("O", "B-PER", "I-PER")
MOODS = ("sad", "glad", "odd")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    """By task; ``moods`` gives a text several labels."""
    root = tmp_path_factory.mktemp("http")
    folders = {
        "embed": write_bundle(root / "embed", prompts={"query": "query: "}, matryoshka=(2, 4), max_batch=64),
        "rerank": write_bundle(root / "rerank", task="rerank", labels=["score"]),
        "classify": write_bundle(root / "classify", task="classify", labels=MOODS),
        "tags": write_bundle(root / "tags", task="token-classify", labels=LABELS),
        "tokens": write_bundle(
            root / "tokens", task="embed-tokens", prompts={"query": "query: "}, max_batch=64
        ),
        "moods": write_bundle(
            root / "moods", task="classify", labels=MOODS, problem_type="multi_label_classification"
        ),
    }
    with ExitStack() as stack:
        yield {name: stack.enter_context(load(folder, threads=1)) for name, folder in folders.items()}


def services(models: dict[str, Model], *names: str) -> list[Service]:
    return [Service(models[name], name=name, max_queue_tokens=1 << 20) for name in names]


@pytest.fixture(scope="session")
def url(models: dict[str, Model]) -> Iterator[str]:
    """A model for each task."""
    with serving(*services(models, "embed", "rerank", "classify", "tags", "tokens")) as url:
        yield url


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client
