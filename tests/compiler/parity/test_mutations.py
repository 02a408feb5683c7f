"""The whole chain can fail: a bundle whose checkpoint's files say something else than the original's does not pass.

`tests/adapters/test_mutations.py` does the same for every fact of an encoder; here it is what lies around it: pooling,
modules, prompts, the tokenizer's end token, a reranker's temperature.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bei.compiler.build import compile_bundle
from bei.compiler.options import BuildOptions
from bei.compiler.parity.bundles import Texts, builtin_texts, check_bundle
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import write_fixture
from bei.runtime.bundle import open_bundle

Edit = Callable[[Any], Any]
TEXTS = 16


def merged(**changes: Any) -> Edit:
    return lambda found: {**found, **changes}


def without(*keys: str) -> Edit:
    return lambda found: {key: value for key, value in found.items() if key not in keys}


def left_out(kind: str) -> Edit:
    """modules.json without ``kind``."""
    return lambda found: [entry for entry in found if not entry["type"].endswith(f".{kind}")]


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
LAST = {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
GEMMA, QWEN3, QWEN2 = (
    "google/embeddinggemma-300m",
    "Qwen/Qwen3-Embedding-0.6B",
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
)
RERANKER, VOYAGE = "nvidia/llama-nemotron-rerank-1b-v2", "voyageai/voyage-4-nano"
POOLING, PROMPTS = "1_Pooling/config.json", "config_sentence_transformers.json"

MUTATIONS: dict[str, tuple[str, str, Edit]] = {
    "mean for cls": ("BAAI/bge-small-en-v1.5", POOLING, merged(**MEAN)),
    "cls for mean": ("sentence-transformers/all-mpnet-base-v2", POOLING, merged(**CLS)),
    "mean for last": (QWEN3, POOLING, merged(**MEAN)),
    "last for mean": (VOYAGE, POOLING, merged(**LAST)),
    "not normalised": ("BAAI/bge-small-en-v1.5", "modules.json", left_out("Normalize")),
    "tanh for the identity": (GEMMA, "2_Dense/config.json", without("activation_function")),
    "another activation": (
        GEMMA,
        "3_Dense/config.json",
        merged(activation_function="torch.nn.modules.activation.ReLU"),
    ),
    "prompts left out of the pooling": (VOYAGE, POOLING, merged(include_prompt=False)),
    "another prompt": (
        QWEN3,
        PROMPTS,
        lambda found: found | {"prompts": found["prompts"] | {"query": "Q: "}},
    ),
    "no end token in the tokenizer": (QWEN3, "tokenizer.json", merged(post_processor=None)),
    "no end token by its class": (QWEN2, "tokenizer_config.json", merged(add_eos_token=False)),
    "lower case": ("BAAI/bge-m3", "sentence_bert_config.json", merged(do_lower_case=True)),
    "temperature": (RERANKER, "config.json", merged(temperature=2.0)),
    "pooling of a class": (RERANKER, "config.json", merged(pooling="last")),
    "pooling of a classifier": (
        "Alibaba-NLP/gte-reranker-modernbert-base",
        "config.json",
        merged(classifier_pooling="cls"),
    ),
    "causal": (QWEN3, "config.json", merged(is_causal=False)),
}
"""Repository, file, and what it says instead."""


def check(checkpoint: Path, original: Path, out: Path) -> tuple[str, str]:
    """The verdict on a bundle made of ``checkpoint``, held to ``original``, and the measures that failed."""
    compile_bundle(BuildOptions(repo=str(checkpoint), out=out, targets=("onnxruntime-cpu",), offline=True))
    bundle = open_bundle(out)
    every = builtin_texts(bundle.manifest)
    some = Texts(source="some", samples=every.samples[:: len(every.samples) // TEXTS])
    engine = check_bundle(bundle, original, some).engines[0]
    return engine.verdict, ", ".join(m.name for m in engine.measures if m.passed is False)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_parity_sees_it(mutation: str, tmp_path: Path) -> None:
    repo, file, edit = MUTATIONS[mutation]
    original, changed = tmp_path / "original", tmp_path / "changed"
    write_fixture(facts_of(repo), original)
    shutil.copytree(original, changed)
    path = changed / file
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    verdict, failed = check(changed, original, tmp_path / "bundle")
    assert verdict == "failed", mutation
    assert failed
