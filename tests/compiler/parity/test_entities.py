"""A compiled tagger, asked as users ask it, beside transformers' pipeline on the same checkpoint."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from transformers import pipeline

from bei.compiler.build import compile_bundle
from bei.compiler.options import BuildOptions
from bei.errors import InputError
from bei.runtime.entities import STRATEGIES, Strategy
from bei.runtime.model import Model, load
from tests.compiler.parity.tiny import tagger

LONG = "Ada Lovelace met Charles Babbage (London, 1833) über Zürich 中文 😀 [UNK] … " * 8
TEXTS = [LONG, "John's mail is x@y.zz", "", "   ", "Å"]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Any]]:
    root = tmp_path_factory.mktemp("entities")
    folder = tagger(root / "ner")
    compile_bundle(
        BuildOptions(repo=str(folder), out=root / "ner.bundle", targets=("onnxruntime-cpu",), max_length=40)
    )
    theirs: Any = pipeline("token-classification", model=str(folder), device=-1)
    theirs.tokenizer.model_max_length = 40
    with load(root / "ner.bundle", allow_unverified=True) as model:
        yield model, theirs


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_as_the_pipeline(sides: tuple[Model, Any], strategy: Strategy, stride: int | None) -> None:
    model, theirs = sides
    if strategy == "none" and stride is not None:
        with pytest.raises(InputError, match="no stride"):
            model.entities(TEXTS, strategy=strategy, stride=stride)
        return
    options = {} if stride is None else {"stride": stride}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pipeline's own
        want = [theirs(text, aggregation_strategy=strategy, **options) for text in TEXTS]
    got = model.entities(TEXTS, strategy=strategy, stride=stride)
    for text, ours, expected in zip(TEXTS, got, want, strict=True):
        places = [(str(e.get("entity_group", e.get("entity"))), e["start"], e["end"]) for e in expected]
        assert [(e.label, e.start, e.end) for e in ours] == places
        np.testing.assert_allclose([e.score for e in ours], [e["score"] for e in expected], atol=1e-5)
        assert [e.text for e in ours] == [text[start:end] for _, start, end in places]
    assert (got[0][-1].end > 300) == (stride is not None)
