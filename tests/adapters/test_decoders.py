"""Facts of the decoder families that a parity test cannot show: which way they look, what is refused, padding."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3TextConfig, Gemma3TextModel

from bei.adapters.base import HfConfig
from bei.adapters.config import EncoderConfig
from bei.adapters.registry import adapter_for
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.lowering.torch_ops import run_torch
from bei.errors import UnknownArchitecture, UnsupportedConfig
from tests.adapters.cases_decoders import DECODER, DECODER_CASES, FULL, GEMMA, SLIDING, WIDE, WINDOW, Config
from tests.adapters.tiny import HIDDEN_STATES, Case, assert_near, batch, load, run_onnx, save, stored_tensors

PACKED = replace(ONNXRUNTIME_CPU, layout="packed")

BASE: dict[str, Config] = {
    "llama": DECODER | {"hidden_act": "silu"},
    "llama_bidirec": DECODER | {"hidden_act": "silu"},
    "mistral": DECODER | {"hidden_act": "silu", "sliding_window": 4},
    "qwen2": DECODER | {"hidden_act": "silu"},
    "qwen3": WIDE | {"hidden_act": "silu"},
    "gemma3_text": GEMMA | {"hidden_activation": "gelu_pytorch_tanh"},
    "eurobert": DECODER | {"hidden_act": "silu"},
}
GTE: Config = {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}
GTE_COPY: Config = {
    "auto_map": {"AutoModel": "Alibaba-NLP/gte-Qwen2-1.5B-instruct--modeling_qwen.Qwen2Model"}
}
VOYAGE: Config = {"auto_map": {"AutoModel": "modeling_qwen3_bidirectional.Qwen3BidirectionalModel"}}


def read(model_type: str, **facts: Any) -> EncoderConfig:
    hf = HfConfig({"model_type": model_type} | BASE[model_type] | facts)
    return adapter_for(hf).config(hf)


@pytest.mark.parametrize(
    ("model_type", "facts", "causal"),
    [
        *((name, {}, True) for name in ("llama", "mistral", "qwen2", "qwen3")),
        *((name, {"is_causal": False}, False) for name in ("llama", "mistral", "qwen2", "qwen3")),
        *((name, {"is_causal": True}, True) for name in ("llama", "mistral", "qwen2", "qwen3")),
        ("llama", {"architectures": ["LlamaForCausalLM"]}, True),
        ("llama", {"is_causal": None}, True),
        ("qwen2", GTE, False),
        ("qwen2", GTE_COPY | {"architectures": ["Qwen2ForCausalLM"]}, False),
        ("qwen2", GTE | {"is_causal": False}, False),
        ("qwen2", {"architectures": ["Qwen2Model"]}, True),
        ("qwen3", {"use_bidirectional_attention": True}, False),
        ("qwen3", {"use_bidirectional_attention": False}, True),
        ("qwen3", VOYAGE, False),
        ("qwen3", {"architectures": ["Qwen3BidirectionalModel"]}, False),
        ("qwen3", VOYAGE | {"use_bidirectional_attention": True, "is_causal": False}, False),
        ("llama_bidirec", {}, False),
        ("eurobert", {}, False),
        ("gemma3_text", {}, False),
        ("gemma3_text", {"use_bidirectional_attention": False}, True),
        ("gemma3_text", {"use_bidirectional_attention": None}, True),
    ],
)
def test_direction(model_type: str, facts: Config, causal: bool) -> None:
    assert (
        read(model_type, **{"sliding_window": None} | facts if model_type == "mistral" else facts).causal
        is causal
    )


@pytest.mark.parametrize(
    ("model_type", "facts", "message"),
    [
        ("qwen3", {"is_causal": True, "use_bidirectional_attention": True}, "contradict each other"),
        ("qwen2", GTE | {"is_causal": True}, "is_causal=True but modeling_qwen.Qwen2Model, which contradict"),
        (
            "llama",
            {"architectures": ["LlamaEncoderModel"]},
            'LlamaEncoderModel may be causal .*"is_causal": false',
        ),
        ("llama", {"is_causal": "no"}, "is_causal='no', but the adapter needs true or false"),
        ("gemma3_text", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention='all'"),
        ("gemma3_text", {"is_causal": False}, "is_causal=False, but the adapter needs None"),
        (
            "gemma3_text",
            {"sliding_window": 257},
            "sliding_window=257 .*512 .*or 256 for what transformers makes",
        ),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma3_text", {"attention_bias": True}, "attention_bias=True"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0"),
        ("gemma3_text", {"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ("gemma3_text", {"rope_scaling": "linear"}, "rope_scaling='linear', but the adapter needs an object"),
        ("gemma3_text", {"layer_types": [SLIDING, [FULL], FULL]}, "layer_types="),
        ("gemma3_text", {"layer_types": [SLIDING, FULL]}, "needs 3 of sliding_attention, full_attention"),
        ("gemma3_text", {"dtype": "float8_e4m3fn"}, "dtype='float8_e4m3fn'"),
        ("llama_bidirec", {"is_causal": True}, "is_causal=True, but the adapter needs False"),
        ("eurobert", {"is_causal": True}, "is_causal=True"),
        ("llama", {"attention_bias": True}, "attention_bias=True, but the adapter needs False"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"hidden_act": "swiglu"}, "hidden_act='swiglu', but the adapter knows"),
        ("llama", {"num_key_value_heads": 3}, "4 attention heads cannot share 3 key/value heads"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types="),
        ("qwen2", {"layer_types": [SLIDING, FULL], "sliding_window": None}, "sliding_window=None"),
        ("qwen2", GTE | WINDOW, "a sliding window in a bidirectional model, but no is_causal"),
        ("mistral", {"layer_types": [SLIDING, FULL]}, "Such checkpoints are Ministral"),
        ("mistral", {"layer_types": [FULL, FULL]}, "Such checkpoints are Ministral"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0, but the adapter needs a positive integer"),
    ],
)
def test_refusals(model_type: str, facts: Config, message: str) -> None:
    with pytest.raises(UnsupportedConfig, match=message):
        read(model_type, **facts)


def test_mistral_without_a_word_on_its_window_is_refused() -> None:
    hf = HfConfig({"model_type": "mistral"} | BASE["llama"])
    with pytest.raises(UnsupportedConfig, match="no 'sliding_window'"):
        adapter_for(hf).config(hf)


@pytest.mark.parametrize(
    ("model_type", "module"),
    [
        ("qwen2", "modeling_qwen2.Qwen2Model"),
        ("qwen2", "modeling_qwen.Qwen2EncoderModel"),
        ("qwen3", "modeling.PPLXQwen3Model"),
        ("llama", "modeling_llama_encoder.LlamaEncoderModel"),
        ("mistral", "modeling_mistral.MistralBiModel"),
        ("qwen2", "somebody/copy--modeling_qwen.Qwen2Model"),
        ("qwen3", "somebody/copy--modeling_qwen3_bidirectional.Qwen3BidirectionalModel"),
        ("llama_bidirec", "somebody/copy--llama_bidirectional_model.LlamaBidirectionalModel"),
        ("eurobert", "modeling_eurobert.EuroBertWithDecoder"),
    ],
)
def test_unknown_code_is_refused(model_type: str, module: str) -> None:
    with pytest.raises(UnknownArchitecture, match=re.escape(module.split(".")[1])):
        read(model_type, auto_map={"AutoModel": module}, is_causal=False)


@pytest.mark.parametrize(
    ("model_type", "facts", "windows"),
    [
        ("qwen2", WINDOW, [None, 3, 3]),
        ("qwen2", WINDOW | {"is_causal": False}, [None, 4, 4]),
        ("qwen2", WINDOW | {"layer_types": [SLIDING, FULL, SLIDING]}, [3, None, 3]),
        ("qwen2", WINDOW | {"use_sliding_window": False}, [None, None, None]),
        ("qwen3", WINDOW | {"sliding_window": None}, [None, None, None]),
        ("qwen3", {"sliding_window": 4}, [None, None]),
        ("mistral", {"sliding_window": 4}, [3, 3]),
        ("mistral", {"sliding_window": 4, "is_causal": False}, [4, 4]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("gemma3_text", {}, [4, None, 4]),
        ("gemma3_text", {"use_bidirectional_attention": False}, [7, None, 7]),
        ("gemma3_text", {"layer_types": None, "num_hidden_layers": 7}, [4, 4, 4, 4, 4, None, 4]),
    ],
)
def test_windows(model_type: str, facts: Config, windows: list[int | None]) -> None:
    assert [layer.window for layer in read(model_type, **facts).layers] == windows


def test_embedding_gemma_as_on_the_hub() -> None:
    """google/embeddinggemma-300m: 512 means 256 on each side, every sixth layer sees all with its own theta."""
    cfg = read(
        "gemma3_text",
        hidden_size=768,
        head_dim=256,
        num_hidden_layers=24,
        layer_types=([SLIDING] * 5 + [FULL]) * 4,
        sliding_window=512,
        query_pre_attn_scalar=256,
        dtype="float32",
        rope_parameters=None,
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
    )
    full = [i for i, layer in enumerate(cfg.layers) if layer.window is None]
    assert full == [5, 11, 17, 23]
    assert {layer.window for layer in cfg.layers} == {None, 256}
    ropes = {layer.rope.theta for layer in cfg.layers if layer.rope}
    assert (ropes, cfg.attn_scale) == ({1e6, 1e4}, 1 / 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_gemmas_embedding_scale_has_the_dtype_of_the_weights(dtype: torch.dtype, key: str) -> None:
    model: Any = Gemma3TextModel(Gemma3TextConfig(**GEMMA | {"hidden_size": 40}))
    model.to(dtype)
    torch.nn.init.ones_(model.embed_tokens.weight)
    scaled = model.embed_tokens(torch.tensor([5]))[0, 0].item()
    assert read("gemma3_text", hidden_size=40, **{key: str(dtype).split(".")[1]}).embed_scale == scaled


def test_a_linear_scaling_is_for_gemmas_full_layers_alone() -> None:
    """As transformers reads the old spelling of the larger Gemma 3 models."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    cfg = read("gemma3_text", rope_parameters=None, rope_scaling=scaling)
    facts = {k: v for k, v in GEMMA.items() if k != "rope_parameters"} | {"rope_scaling": dict(scaling)}
    theirs: Any = Gemma3TextConfig(**facts)
    for layer, kind in zip(cfg.layers, theirs.layer_types, strict=True):
        expected = theirs.rope_parameters[kind]
        assert layer.rope is not None
        assert layer.rope.theta == expected["rope_theta"]
        assert (layer.rope.scaling is not None) == ("factor" in expected)


@pytest.mark.parametrize("case", DECODER_CASES, ids=lambda case: case.name)
def test_what_lies_in_the_padding_does_not_matter(case: Case, tmp_path: Path) -> None:
    """NaN, and any other tokens."""
    save(case, tmp_path)
    loaded = load(tmp_path)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    real = mask.bool()
    clean = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    tokens = loaded.weights["embed.tokens.weight"]
    table = tokens.float32().copy()
    table[0] = np.nan
    poisoned = {**loaded.weights, "embed.tokens.weight": replace(tokens, data=table, dtype="F32")}
    dirty = run_torch(loaded.cfg, HIDDEN_STATES, poisoned, ids, mask)
    assert dirty[~real].isnan().any() or real.all()
    torch.testing.assert_close(dirty[real], clean[real], atol=0, rtol=0)
    for policy in (ONNXRUNTIME_CPU, PACKED):
        graph = run_onnx(replace(loaded, weights=poisoned), ids, mask, policy=policy)
        assert_near(graph[real], clean[real])
    other = ids.masked_fill(~real, 7)
    graph = run_onnx(loaded, other, mask, policy=ONNXRUNTIME_CPU)
    assert_near(graph[real], clean[real])


def test_old_checkpoints_store_frequencies(tmp_path: Path) -> None:
    """`rotary_emb.inv_freq`, as transformers once saved with every layer, is no weight."""
    case = next(case for case in DECODER_CASES if case.name == "llama")
    model: Any = save(case, tmp_path)
    extra = {f"layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    model.save_pretrained(tmp_path, state_dict=model.state_dict() | extra)
    assert extra.keys() <= stored_tensors(tmp_path).keys()
    assert load(tmp_path).adapter.name == "llama"
