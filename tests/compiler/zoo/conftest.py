"""Stand-ins of reduced width, written once a session."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixturePlan, write_fixture

StandIn = Callable[..., tuple[Path, FixturePlan]]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """(repo, revision) → folder and plan."""
    root = tmp_path_factory.mktemp("zoo")

    @cache
    def write(repo: str, revision: str | None) -> tuple[Path, FixturePlan]:
        folder = root / f"{repo}@{revision}".replace("/", "--")
        return folder, write_fixture(facts_of(repo, revision), folder)

    return lambda repo, revision=None: write(repo, revision)
