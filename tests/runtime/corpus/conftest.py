"""One tiny embedding bundle for all tests of corpora."""

from pathlib import Path

import pytest
from tests.runtime.tiny import write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(
        tmp_path_factory.mktemp("corpus") / "b", prompts={"query": "query: "}, matryoshka=(4,)
    )
