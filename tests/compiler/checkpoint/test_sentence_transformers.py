"""modules.json and what it lists, in both spellings, against sentence-transformers itself."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from tests.compiler.checkpoint import tiny

from bei.adapters.head import Dense, LayerNorm, Normalize
from bei.compiler.checkpoint.sentence_transformers import SentenceFiles, read_sentence_files
from bei.errors import CheckpointError

OLD = "sentence_transformers.models"
TANH = "torch.nn.modules.activation.Tanh"
IDENTITY = "torch.nn.modules.linear.Identity"


def dense(out: int = 4, wide: int = 8, **more: Any) -> dict[str, Any]:
    return {"in_features": wide, "out_features": out, "bias": False, **more}


def linear(out: int = 4, wide: int = 8, *, bias: bool = False) -> bytes:
    tensors = {"linear.weight": np.full((out, wide), 0.5, np.float32)}
    return save(tensors | ({"linear.bias": np.ones(out, np.float32)} if bias else {}))


def read(
    folder: Path, *kinds: str, package: str = OLD, more: Mapping[str, object] | None = None
) -> SentenceFiles:
    """Write a checkpoint whose modules are Transformer, Pooling and ``kinds``, and read it."""
    extra: dict[str, object] = {
        "modules.json": tiny.modules("Pooling", *kinds, package=package),
        "1_Pooling/config.json": tiny.MEAN,
    }
    tiny.write(folder, tiny.files(more=extra | dict(more or {})))
    found = read_sentence_files(folder)
    assert found is not None
    return found


def test_none_without_modules_json(tmp_path: Path) -> None:
    assert read_sentence_files(tiny.write(tmp_path, tiny.files())) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"word_embedding_dimension": 8}, ("mean",)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True}, ("max", "last")),
        (
            {"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_sqrt_len_tokens": True},
            ("mean_sqrt_len", "weighted_mean"),
        ),
        ({"embedding_dimension": 8, "pooling_mode": "lasttoken"}, ("last",)),
        ({"pooling_mode": ["weightedmean", "cls"]}, ("weighted_mean", "cls")),
        ({"pooling_mode": "mean_sqrt_len_tokens", "pooling_mode_cls_token": True}, ("mean_sqrt_len",)),
    ],
)
def test_pooling_modes(tmp_path: Path, config: dict[str, Any], expected: tuple[str, ...]) -> None:
    found = read(tmp_path, more={"1_Pooling/config.json": config})
    assert found.pooling == expected and found.include_prompt


def test_pooling_agrees_with_the_library(tmp_path: Path) -> None:
    """Every combination of the old flags: the same modes in the same order."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    flags = [
        "cls_token",
        "max_tokens",
        "mean_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    ]
    names = {"mean_sqrt_len_tokens": "mean_sqrt_len", "weightedmean": "weighted_mean", "lasttoken": "last"}
    read(tmp_path)
    for mask in range(1 << len(flags)):
        config = {f"pooling_mode_{flag}": bool(mask >> i & 1) for i, flag in enumerate(flags)}
        tiny.write(
            tmp_path, {"1_Pooling/config.json": json.dumps({"embedding_dimension": 8, **config}).encode()}
        )
        found = read_sentence_files(tmp_path)
        modes = Pooling.load(str(tmp_path), subfolder="1_Pooling").pooling_mode
        listed = (modes,) if isinstance(modes, str) else modes
        assert found is not None and found.pooling == tuple(names.get(mode, mode) for mode in listed)


@pytest.mark.parametrize("package", [OLD, "sentence_transformers.base.modules.x"])
def test_both_spellings_of_types(tmp_path: Path, package: str) -> None:
    found = read(tmp_path, "Normalize", package=package)
    assert (found.pooling, found.steps, found.weights) == (("mean",), (Normalize(),), {})


def test_a_dense_stack_is_read_as_views(tmp_path: Path) -> None:
    more = {
        "2_Dense/config.json": dense(16, activation_function="torch.nn.modules.linear.Identity"),
        "2_Dense/model.safetensors": linear(16),
        "3_LayerNorm/config.json": {"dimension": 16},
        "3_LayerNorm/model.safetensors": save(
            {"norm.weight": np.ones(16, np.float32), "norm.bias": np.zeros(16, np.float32)}
        ),
        "4_Dense/config.json": {"in_features": 16, "out_features": 16, "use_residual": True},
        "4_Dense/model.safetensors": linear(16, 16, bias=True),
    }
    found = read(tmp_path, "Dense", "LayerNorm", "Dense", "Normalize", more=more)
    assert found.steps == (
        Dense(name="head.0", out=16, act="identity"),
        LayerNorm(name="head.1", eps=1e-5),
        Dense(name="head.2", out=16, act="tanh", residual=True),
        Normalize(),
    )
    names = {"head.0.weight", "head.1.weight", "head.1.bias", "head.2.weight", "head.2.bias"}
    assert found.weights.keys() == names
    assert found.weights["head.2.bias"].file == "4_Dense/model.safetensors"
    np.testing.assert_array_equal(found.weights["head.2.bias"].float32(), np.ones(16, np.float32))


@pytest.mark.parametrize(
    ("stated", "act"),
    [
        (TANH, "tanh"),
        ("torch.nn.modules.linear.Identity", "identity"),
        ("torch.nn.modules.activation.GELU", "gelu"),
        ("torch.nn.modules.activation.ReLU", "relu"),
        ("torch.nn.modules.activation.SiLU", "silu"),
        ("torch.nn.modules.activation.Sigmoid", "sigmoid"),
    ],
)
def test_dense_activations(tmp_path: Path, stated: str, act: str) -> None:
    more = {"2_Dense/config.json": dense(activation_function=stated), "2_Dense/model.safetensors": linear()}
    (step,) = read(tmp_path, "Dense", more=more).steps
    assert isinstance(step, Dense) and step.act == act


def save_with_the_library(folder: Path) -> Any:
    """A tiny model with one of everything, saved by sentence-transformers; returns the library's model."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    source = tiny.write(folder / "source", tiny.files())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = [
            modules.Transformer(str(source)),
            modules.Pooling(8, ("cls", "mean"), include_prompt=False),
            modules.Dense(16, 6, activation_function=torch.nn.GELU()),
            modules.LayerNorm(6),
            modules.Dropout(0.1),
            modules.Normalize(),
        ]
        prompts = {"query": "a: ", "document": "b: "}
        model = SentenceTransformer(modules=stack, prompts=prompts, default_prompt_name="query", device="cpu")
        model.max_seq_length = 12
        model.save(str(folder / "saved"))
    return model


def test_what_the_library_saves_today(tmp_path: Path) -> None:
    model = save_with_the_library(tmp_path)
    saved = tmp_path / "saved"
    types = [entry["type"] for entry in json.loads((saved / "modules.json").read_text())]
    assert not any(kind.startswith(OLD) for kind in types)
    found = read_sentence_files(saved)
    assert found is not None
    assert (found.pooling, found.include_prompt) == (("cls", "mean"), False)
    assert found.steps == (
        Dense(name="head.0", out=6, act="gelu"),
        LayerNorm(name="head.1", eps=model[3].norm.eps),
        Normalize(),
    )
    np.testing.assert_array_equal(
        found.weights["head.0.weight"].float32(), model[2].linear.weight.detach().numpy()
    )
    assert (found.prompts, found.default_prompt) == ({"query": "a: ", "document": "b: "}, "query")
    assert (found.similarity, found.truncate_dim, found.lowercase) == ("cosine", None, False)
    # Version 6 keeps the length in tokenizer_config.json, which is not one of these files.
    assert found.max_length is None
    assert json.loads((saved / "tokenizer_config.json").read_text())["model_max_length"] == 12


CALLS = "sentence_bert_config.json"


@pytest.mark.parametrize(
    ("settings", "max_length", "lowercase"),
    [
        ({}, None, False),
        ({"max_seq_length": 256, "do_lower_case": True}, 256, True),
        ({"max_seq_length": None, "do_lower_case": None}, None, False),
        ({"max_seq_length": 256, "tokenizer_args": {"model_max_length": 64}}, 64, False),
        (
            {"max_seq_length": 9, "processor_kwargs": {}, "processing_kwargs": {"text": {"max_length": 7}}},
            7,
            False,
        ),
        ({"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}, None, False),
    ],
)
def test_transformer_settings(
    tmp_path: Path, settings: dict[str, Any], max_length: int | None, lowercase: bool
) -> None:
    found = read(tmp_path, more={CALLS: settings})
    assert (found.max_length, found.lowercase) == (max_length, lowercase)


def test_an_old_name_of_the_settings_file(tmp_path: Path) -> None:
    assert read(tmp_path, more={"sentence_roberta_config.json": {"max_seq_length": 20}}).max_length == 20


CONFIG = "config_sentence_transformers.json"


def test_model_settings(tmp_path: Path) -> None:
    config = {
        "prompts": {"query": "q: ", "document": None},
        "default_prompt_name": "document",
        "similarity_fn_name": "dot",
        "truncate_dim": 4,
    }
    found = read(tmp_path, more={CONFIG: config})
    assert (found.prompts, found.default_prompt) == ({"query": "q: ", "document": ""}, "document")
    assert (found.similarity, found.truncate_dim) == ("dot", 4)
    found = read(tmp_path, more={CONFIG: {"default_prompt_name": "query"}})
    assert (found.prompts, found.default_prompt, found.similarity) == ({"query": ""}, "query", "cosine")


def changed(entry: int, **fields: Any) -> list[dict[str, Any]]:
    modules = tiny.modules("Pooling", "Normalize")
    modules[entry] |= fields
    return modules


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"modules.json": []}, "modules.json: need a list of modules"),
        ({"modules.json": {"a": 1}}, "modules.json: need a list of modules"),
        ({"modules.json": [{"path": ""}]}, "modules.json: an entry without type or path"),
        ({"modules.json": b"["}, "modules.json: not valid JSON"),
        ({"modules.json": changed(1, path="../1_Pooling")}, "leads out of the checkpoint"),
        ({"modules.json": changed(1, path="/1_Pooling")}, "leads out of the checkpoint"),
        (
            {"modules.json": changed(0, type="custom_st.Transformer")},
            "'custom_st.Transformer' is the checkpoint's own",
        ),
        ({"modules.json": changed(0, type=f"{OLD}.CLIPModel")}, "the first module is CLIPModel"),
        ({"modules.json": changed(0, type=f"{OLD}.StaticEmbedding")}, "the first module is StaticEmbedding"),
        ({"modules.json": changed(0, type=f"{OLD}.Router")}, "the first module is Router"),
        ({"modules.json": changed(0, type=f"{OLD}.Asym")}, "the first module is Asym"),
        ({"modules.json": changed(0, type=f"{OLD}.WordEmbeddings")}, "the first module is WordEmbeddings"),
        ({"modules.json": changed(0, path="0_Transformer")}, "the Transformer lies in '0_Transformer'"),
        ({"modules.json": changed(1, type=f"{OLD}.LSTM")}, "LSTM follows the Transformer"),
        ({"modules.json": changed(1, type=f"{OLD}.CNN")}, "CNN follows the Transformer"),
        (
            {"modules.json": changed(1, type="sentence_transformers.sparse_encoder.models.SpladePooling")},
            "Splade",
        ),
        ({"modules.json": tiny.modules()}, "nothing follows the Transformer"),
        (
            {"modules.json": changed(2, type=f"{OLD}.WeightedLayerPooling")},
            "WeightedLayerPooling is not served",
        ),
        ({"modules.json": changed(2, type=f"{OLD}.Dense")}, "2_Normalize/config.json: missing"),
        ({"2_Normalize/config.json": {"module_input_name": "token_embeddings"}}, "module_input_name"),
        ({"1_Pooling/config.json": None}, "1_Pooling/config.json: missing"),
        ({"1_Pooling/config.json": []}, "1_Pooling/config.json: holds a list"),
        (
            {"1_Pooling/config.json": {"pooling_mode": "median"}},
            "pooling_mode is 'median'; known are cls, max",
        ),
        ({"1_Pooling/config.json": {"pooling_mode": []}}, "pooling_mode is"),
        ({"1_Pooling/config.json": {"pooling_mode": 3}}, "pooling_mode is 3"),
        ({"1_Pooling/config.json": {"pooling_mode_new": True}}, "unknown keys pooling_mode_new"),
        ({"1_Pooling/config.json": {"include_prompt": "no"}}, "include_prompt is 'no', need true or false"),
        ({CONFIG: {"model_type": "SparseEncoder"}}, "model_type 'SparseEncoder'"),
        ({CONFIG: {"model_type": "CrossEncoder"}}, "a CrossEncoder of Transformer, Pooling, Normalize"),
        ({CONFIG: {"prompts": ["q"]}}, "need an object of strings"),
        ({CONFIG: {"prompts": {"q": 1}}}, "need an object of strings"),
        ({CONFIG: {"default_prompt_name": "x"}}, "'x' is not among the prompts"),
        ({CONFIG: {"default_prompt_name": ["x"]}}, r"default_prompt_name is \['x'\], need a string"),
        ({CONFIG: {"truncate_dim": -1}}, "truncate_dim is -1, need a positive integer"),
        ({CALLS: {"max_seq_length": "256"}}, "max_seq_length is '256', need a positive integer"),
        ({CALLS: {"do_lower_case": 1}}, "do_lower_case is 1"),
        (
            {CALLS: {"transformer_task": "fill-mask"}},
            "transformer_task is 'fill-mask', need 'feature-extraction'",
        ),
        ({CALLS: {"module_output_name": "sentence_embedding"}}, "module_output_name is"),
        ({CALLS: {"modality_config": {"message": {}}}}, "modality_config.text is None"),
        ({CALLS: {"modality_config": [1]}}, r"modality_config.text is \[1\]"),
        (
            {CALLS: {"config_args": {"is_causal": False}}},
            "config_args is {'is_causal': False}, which is not served",
        ),
        ({CALLS: {"tokenizer_args": {"add_eos_token": True}}}, "tokenizer_args is"),
        ({CALLS: {"tokenizer_args": ["x"]}}, "tokenizer_args is"),
        ({CALLS: {"query_length": 32}}, "query_length is 32"),
        (
            {CALLS: {"processing_kwargs": {"text": {"add_special_tokens": False}}}},
            "processing_kwargs.text is",
        ),
        ({CALLS: {"processing_kwargs": {"text": 1}}}, "processing_kwargs is"),
    ],
)
def test_refuses(tmp_path: Path, more: Mapping[str, object], message: str) -> None:
    present = {key: value for key, value in more.items() if value is not None}
    extra: dict[str, object] = {
        "modules.json": tiny.modules("Pooling", "Normalize"),
        "1_Pooling/config.json": tiny.MEAN,
    }
    files = tiny.files(more=extra | present)
    for key in more.keys() - present.keys():
        files.pop(key)
    tiny.write(tmp_path, files)
    with pytest.raises(CheckpointError, match=message):
        read_sentence_files(tmp_path)


@pytest.mark.parametrize(
    ("pooling", "config", "message"),
    [
        ("max", {}, "a Dense of every token before max pooling, which cannot be moved behind it"),
        (["mean", "cls"], {}, r"before mean \+ cls pooling"),
        ("mean", {"activation_function": TANH}, "need no bias, no activation"),
        ("mean", {"module_input_name": "sentence_embedding"}, "module_input_name is 'sentence_embedding'"),
        ("mean", {"module_output_name": "sentence_embedding"}, "need 'token_embeddings'"),
    ],
)
def test_refuses_a_dense_of_every_token(
    tmp_path: Path, pooling: str | list[str], config: dict[str, Any], message: str
) -> None:
    plain = {"activation_function": IDENTITY, "module_input_name": "token_embeddings"}
    more: dict[str, object] = {
        "modules.json": tiny.modules("Dense", "Pooling"),
        "1_Dense/config.json": dense(**plain | config),
        "1_Dense/model.safetensors": linear(),
        "2_Pooling/config.json": {"pooling_mode": pooling},
    }
    tiny.write(tmp_path, tiny.files(more=more))
    with pytest.raises(CheckpointError, match=message):
        read_sentence_files(tmp_path)


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        (dense(activation_function="my.Gelu"), linear(), "activation_function 'my.Gelu'; known are"),
        (dense(activation_function="torch.nn.Softplus"), linear(), "activation_function 'torch.nn.Softplus'"),
        (dense(activation_function=None), linear(), "activation_function None"),
        (dense(use_residual=True), linear(), "holds linear.weight, need linear.weight, residual.weight"),
        (dense(module_input_name="token_embeddings"), linear(), "module_input_name is 'token_embeddings'"),
        ({"out_features": 4}, linear(), "no in_features or out_features"),
        (dense(bias=True), linear(), "holds linear.weight, need linear.bias, linear.weight"),
        (dense(), linear(bias=True), "holds linear.bias, linear.weight, need linear.weight"),
        (dense(5), linear(), r"has the shape \(4, 8\), but config.json says \(5, 8\)"),
        (dense(), save({"linear.weight": np.zeros((), np.float32)}), "single number"),
        (dense(), b"\0", "2_Dense/model.safetensors: 1 bytes long"),
        (dense(), None, "2_Dense: no model.safetensors, only pytorch_model.bin"),
    ],
)
def test_refuses_a_dense(tmp_path: Path, config: dict[str, Any], weights: bytes | None, message: str) -> None:
    file = "pytorch_model.bin" if weights is None else "model.safetensors"
    more = {"2_Dense/config.json": config, f"2_Dense/{file}": weights or b"pickle"}
    with pytest.raises(Exception, match=message) as caught:
        read(tmp_path, "Dense", more=more)
    assert type(caught.value).__module__ == "bei.errors"
