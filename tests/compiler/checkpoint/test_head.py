"""Which task, which head, and that every tensor is accounted for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from tests.compiler.checkpoint import tiny

from bei.adapters.base import Adapter, HfConfig, TaskHead, view
from bei.adapters.bert import BERT
from bei.adapters.head import Dense, Normalize, Pooling
from bei.adapters.roberta import ROBERTA
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.head import read_labels
from bei.compiler.checkpoint.load import LoadedModel, load_model
from bei.errors import BeiError, CheckpointError, UnsupportedConfig, WeightMismatch

NER = {"0": "O", "1": "B-PER", "2": "I-PER"}


def load(
    folder: Path,
    config: dict[str, Any] | None = None,
    weights: tiny.Tensors | None = None,
    more: Mapping[str, object] | None = None,
    adapter: Adapter = BERT,
) -> LoadedModel:
    tiny.write(folder, tiny.files(config, weights, more))
    return load_model(open_checkpoint(str(folder)), adapter)


def classifier(labels: int, **extra: tuple[int, ...]) -> tiny.Tensors:
    shapes = {"classifier.weight": (labels, 8), "classifier.bias": (labels,), **extra}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


POOLER = {"bert.pooler.dense.weight": (8, 8), "bert.pooler.dense.bias": (8,)}


def sequence(labels: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"architectures": ["BertForSequenceClassification"], "id2label": labels, **more}


def test_a_bare_model_embeds_with_the_mean(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    head = loaded.head
    assert (head.task, head.pooling, head.steps) == ("embed", ("mean",), ())
    assert loaded.head_files.max_length is None and not loaded.head_files.lowercase


def test_modules_json_goes_before_architectures(tmp_path: Path) -> None:
    more: dict[str, object] = {
        "modules.json": tiny.modules("Pooling", "Normalize"),
        "1_Pooling/config.json": {"pooling_mode": "cls", "include_prompt": False},
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"q": "x "}, "default_prompt_name": "q"},
    }
    loaded = load(tmp_path, {"architectures": ["BertForSequenceClassification"]}, more=more)
    head, files = loaded.head, loaded.head_files
    assert (head.task, head.pooling, head.steps, head.include_prompt) == (
        "embed",
        ("cls",),
        (Normalize(),),
        False,
    )
    assert (files.max_length, files.lowercase, files.prompts, files.default_prompt) == (
        16,
        True,
        {"q": "x "},
        "q",
    )


def test_rerank_classify_and_token_classify(tmp_path: Path) -> None:
    weights = tiny.tensors(prefix="bert.") | classifier(1, **POOLER)
    head = load(tmp_path / "rerank", sequence({"0": "LABEL_0"}), weights).head
    assert (head.task, head.labels, head.pooling) == ("rerank", ("LABEL_0",), ("cls",))
    assert [step.name for step in head.steps if isinstance(step, Dense)] == ["head.pooler", "head.classifier"]

    weights = tiny.tensors(prefix="bert.") | classifier(3, **POOLER)
    config = sequence({"2": "c", "0": "a", "1": "b"}, problem_type="multi_label_classification")
    loaded = load(tmp_path / "classify", config, weights)
    head = loaded.head
    assert (head.task, head.labels, head.problem_type) == (
        "classify",
        ("a", "b", "c"),
        "multi_label_classification",
    )
    assert loaded.weights["head.pooler.weight"].shape == (8, 8)
    assert loaded.weights["head.classifier.bias"].shape == (3,)

    weights = tiny.tensors(prefix="bert.") | classifier(3)
    config = {"architectures": ["BertForTokenClassification"], "id2label": NER}
    head = load(tmp_path / "ner", config, weights).head
    assert (head.task, head.labels, head.pooling) == ("token-classify", ("O", "B-PER", "I-PER"), ())


def test_a_cross_encoder_saved_by_sentence_transformers(tmp_path: Path) -> None:
    more: dict[str, object] = {
        "modules.json": tiny.modules(package="sentence_transformers.base.modules.transformer"),
        "config_sentence_transformers.json": {"model_type": "CrossEncoder", "prompts": {}},
        "sentence_bert_config.json": {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
            "max_seq_length": 20,
        },
    }
    weights = tiny.tensors(prefix="bert.") | classifier(1, **POOLER)
    loaded = load(tmp_path / "good", sequence({"0": "LABEL_0"}), weights, more)
    assert loaded.head.task == "rerank" and loaded.head_files.max_length == 20
    with pytest.raises(UnsupportedConfig, match="a CrossEncoder without a classification head"):
        load(tmp_path / "bad", more=more)


@pytest.mark.parametrize(("is_causal", "expected"), [(None, "last"), (True, "last"), (False, "mean")])
def test_a_bare_causal_model_takes_the_last_token(
    tmp_path: Path, is_causal: bool | None, expected: Pooling
) -> None:
    head = load(tmp_path, {"architectures": ["BertForCausalLM"], "is_causal": is_causal}).head
    assert head.pooling == (expected,)


def projected(pooling: tuple[Pooling, ...] = ()) -> Adapter:
    def embedding_head(_: HfConfig, __: Mapping[str, tuple[int, ...]]) -> TaskHead:
        step = Dense(name="head.projection", out=4)
        return TaskHead(
            pooling=pooling, steps=(step,), weights=(("head.projection.weight", view("linear.weight")),)
        )

    return replace(BERT, embedding_head=embedding_head)


def test_a_projection_runs_before_the_modules(tmp_path: Path) -> None:
    weights = tiny.tensors() | {"linear.weight": np.ones((4, 8), np.float32)}
    more: dict[str, object] = {
        "modules.json": tiny.modules("Pooling", "Normalize"),
        "1_Pooling/config.json": tiny.MEAN,
    }
    loaded = load(tmp_path / "st", None, weights, more, projected())
    assert loaded.head.steps == (Dense(name="head.projection", out=4), Normalize())
    assert loaded.weights["head.projection.weight"].shape == (4, 8)
    assert load(tmp_path / "bare", None, weights, None, projected(("last",))).head.pooling == ("last",)
    for config in ({"pooling_mode": "max"}, {"pooling_mode": ["mean", "cls"]}):
        more["1_Pooling/config.json"] = config
        with pytest.raises(UnsupportedConfig, match=r"head.projection.* is applied to every token"):
            load(tmp_path / "bad", None, weights, more, projected())


def test_module_weights_and_truncation(tmp_path: Path) -> None:
    more: dict[str, object] = {
        "modules.json": tiny.modules("Pooling", "Dense"),
        "1_Pooling/config.json": tiny.MEAN,
        "2_Dense/config.json": {"in_features": 8, "out_features": 6, "bias": False},
        "2_Dense/model.safetensors": save({"linear.weight": np.full((6, 8), 2, np.float32)}),
        "config_sentence_transformers.json": {"truncate_dim": 3},
    }
    loaded = load(tmp_path / "cut", more=more)
    assert loaded.head.matryoshka == (3,)
    np.testing.assert_array_equal(loaded.weights["head.0.weight"].float32(), np.full((6, 8), 2))
    more["config_sentence_transformers.json"] = {"truncate_dim": 6}
    assert load(tmp_path / "whole", more=more).head.matryoshka == ()


def test_prefixed_and_bare_names_are_one(tmp_path: Path) -> None:
    bare, prefixed = load(tmp_path / "a"), load(tmp_path / "b", weights=tiny.tensors(prefix="bert."))
    assert bare.weights.keys() == prefixed.weights.keys()
    for name, weight in bare.weights.items():
        np.testing.assert_array_equal(weight.float32(), prefixed.weights[name].float32())


def test_roberta_head_shapes(tmp_path: Path) -> None:
    config = {
        "model_type": "roberta",
        "architectures": ["RobertaForSequenceClassification"],
        "type_vocab_size": 1,
    }
    shapes = {"dense.weight": (8, 8), "dense.bias": (8,), "out_proj.weight": (2, 8), "out_proj.bias": (2,)}
    weights = tiny.tensors({**tiny.CONFIG, **config}, prefix="roberta.")
    weights |= {f"classifier.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}
    head = load(tmp_path, config, weights, adapter=ROBERTA).head
    assert head.labels == ("LABEL_0", "LABEL_1") and head.task == "classify"


def without(name: str) -> tiny.Tensors:
    weights = tiny.tensors()
    del weights[name]
    return weights


def with_value(name: str, value: float) -> tiny.Tensors:
    weights = tiny.tensors()
    weights[name].reshape(-1)[-1] = value
    return weights


NORM = "embeddings.LayerNorm.bias"


@pytest.mark.parametrize(
    ("config", "weights", "error", "message"),
    [
        (None, without(NORM), WeightMismatch, rf"missing \(1\): {NORM}"),
        (None, tiny.tensors() | {"x": np.zeros(1, np.float32)}, WeightMismatch, r"unread  \(1\): x"),
        (None, {}, WeightMismatch, "missing"),
        (None, with_value(NORM, np.nan), WeightMismatch, r"NaN or infinity.*\n.*embed.norm.bias"),
        (None, with_value(NORM, np.inf), WeightMismatch, "NaN or infinity"),
        (
            None,
            tiny.tensors(prefix="bert.") | {NORM: np.zeros(8, np.float32)},
            WeightMismatch,
            "with and without the prefix",
        ),
        (None, {**tiny.tensors(), NORM: np.zeros(8, np.int8)}, WeightMismatch, "stored as I8"),
        (None, {**tiny.tensors(), NORM: np.zeros((), np.float32)}, WeightMismatch, "a single number"),
        (None, {**tiny.tensors(), NORM: np.zeros(0, np.float32)}, WeightMismatch, "has 0 rows"),
        (sequence({"0": "a", "1": "b"}), tiny.tensors(), WeightMismatch, "missing.*pooler.dense.weight"),
        (sequence({"0": "a", "2": "b"}), None, UnsupportedConfig, "2 labels but none for index 1"),
        (sequence({"a": "b"}), None, UnsupportedConfig, r"keys that are no integers \(a\)"),
        (sequence({}), None, UnsupportedConfig, "need an object of index to label"),
        ({"hidden_size": "8"}, None, UnsupportedConfig, "hidden_size='8'"),
        ({"position_embedding_type": "relative_key"}, None, UnsupportedConfig, "needs 'absolute'"),
    ],
)
def test_refuses(
    tmp_path: Path,
    config: dict[str, Any] | None,
    weights: tiny.Tensors | None,
    error: type[BeiError],
    message: str,
) -> None:
    stored = tiny.tensors() if weights is None else weights
    with pytest.raises(error, match=message):
        load(tmp_path, config, stored)


def test_an_adapter_without_the_head(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedConfig, match="BertForTokenClassification has a head that the adapter bert"
    ):
        load(
            tmp_path,
            {"architectures": ["BertForTokenClassification"]},
            adapter=replace(BERT, token_head=None),
        )


def test_a_truncated_weights_file(tmp_path: Path) -> None:
    content = tiny.files()
    content["model.safetensors"] = content["model.safetensors"][:-1]
    with pytest.raises(CheckpointError, match=r"model.safetensors: its tensors end at byte"):
        open_checkpoint(str(tiny.write(tmp_path, content)))


def test_labels_as_transformers_names_them() -> None:
    assert read_labels(HfConfig({"num_labels": 3})) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read_labels(HfConfig({"id2label": None})) == ("LABEL_0", "LABEL_1")
    assert read_labels(HfConfig({"id2label": {"0": 7}})) == ("7",)
