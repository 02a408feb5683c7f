"""Which adapter serves a checkpoint, in which spelling of names and keys, and what is refused with which words."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bei.adapters.base import HfConfig, view
from bei.adapters.gte import GTE
from bei.adapters.modernbert import MODERNBERT
from bei.adapters.nomic_bert import NOMIC_BERT
from bei.adapters.registry import adapter_for
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import resolve
from bei.errors import BeiError, UnknownArchitecture, UnsupportedConfig, WeightMismatch
from tests.adapters.cases_encoders import DISTIL, ENCODER_CASES, MODERN, POST, Config, nomic, nomic_both
from tests.adapters.heads import assert_output
from tests.adapters.references.gte import CONFIG as NEW
from tests.adapters.references.gte import Gte
from tests.adapters.references.jina import config as jina
from tests.adapters.references.nomic import V1, V2_MOE
from tests.adapters.tiny import HIDDEN_STATES, assert_near, batch, enliven, load, save, stored_tensors

BY_NAME = {case.name: case for case in ENCODER_CASES}


# --- tensor names


def in_memory(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """NomicBERT's tensors under the names that transformers uses in memory."""
    model: Any = nomic()
    names = set(model.state_dict())
    renamed: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        parts = name.replace("encoder.", "").replace("emb_ln", "embeddings.LayerNorm")
        for hub, memory in (
            ("attn.out_proj", "self_attn.o_proj"),
            ("fc11", "up_proj"),
            ("fc12", "gate_proj"),
            ("fc2", "down_proj"),
            ("norm1", "post_attention_layernorm"),
            ("norm2", "post_mlp_layernorm"),
        ):
            parts = parts.replace(hub, memory)
        if "Wqkv" in parts:
            for x, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[parts.replace("attn.Wqkv", f"self_attn.{x}_proj")] = third.contiguous()
        else:
            renamed[parts] = tensor
    assert set(renamed) == names
    return renamed


def test_nomic_in_its_in_memory_names(tmp_path: Path) -> None:
    save(BY_NAME["nomic-bert"], tmp_path)
    ids, mask = batch((1, 7, 12), 97)
    hub = load(tmp_path)
    expected = run_torch(hub.cfg, HIDDEN_STATES, hub.weights, ids, mask)
    path = tmp_path / "model.safetensors"
    save_file(in_memory(load_file(path)), path)
    memory = load(tmp_path)
    ours = run_torch(memory.cfg, HIDDEN_STATES, memory.weights, ids, mask)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_bert_in_the_names_of_its_first_release(tmp_path: Path) -> None:
    """LayerNorm.gamma and .beta, `bert.` before every name, heads of pretraining beside them."""
    model: Any = save(BY_NAME["bert"], tmp_path)
    path = tmp_path / "model.safetensors"
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in load_file(path).items()
    }
    save_file(old | {"cls.predictions.transform.LayerNorm.gamma": torch.ones(32)}, path)
    loaded = load(tmp_path)
    ids, mask = batch((1, 7, 12), loaded.cfg.vocab)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    ours = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    assert_near(ours[mask.bool()].numpy(), expected[mask.bool()])


def test_a_gte_embedder_may_list_a_classifier_too(tmp_path: Path) -> None:
    """gte-multilingual-base: `new.` before every name, and a classifier that nobody reads."""
    model = Gte()
    model.facts |= {"architectures": ["NewModel", "NewForTokenClassification"]}
    enliven(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = {f"new.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(stored | {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.ones(2)}, path)
    ids, mask = batch((1, 7, 12), 97)
    states = model(ids, mask).last_hidden_state
    expected = torch.stack([row[: int(n)].mean(0) for row, n in zip(states, mask.sum(1), strict=True)])
    assert assert_output(tmp_path, expected, ids, mask).task == "embed"


@pytest.mark.parametrize("stored", [["new"], ["old"], ["new", "old"], []], ids=str)
def test_a_view_is_read_otherwise_where_only_the_other_is_stored(stored: list[str], tmp_path: Path) -> None:
    save_file({name: torch.full((2,), float(len(name) + i)) for i, name in enumerate(stored)}, tmp_path / "w")
    tensors = stored_tensors(tmp_path, "w")
    rows = [("ours", view("new", otherwise=view("old")))]
    if stored == []:
        with pytest.raises(WeightMismatch, match=r"missing \(1\): new\n"):
            resolve("toy", rows, tensors, tmp_path)
    elif len(stored) == 2:
        with pytest.raises(WeightMismatch, match=r"unread  \(1\): old\n"):
            resolve("toy", rows, tensors, tmp_path)
    else:
        assert resolve("toy", rows, tensors, tmp_path)["ours"].float32().tolist() == [3.0, 3.0]


# --- who serves what

HUB = (
    ("jina-bert", jina("jina-bert-implementation")),
    (
        "jina-bert",
        jina("jina-bert-implementation") | {"_name_or_path": "jinaai/jina-bert-base-es-en-bpe-61k"},
    ),
    ("jina-bert-code", jina("jina-bert-v2-qk-post-norm")),
    (
        "jina-bert-code",
        jina("jina-bert-v2-qk-post-norm") | {"auto_map": {"AutoModel": "modeling_bert.JinaBertModel"}},
    ),
    ("nomic-bert", V1),
    ("nomic-bert", V2_MOE),
    ("gte", NEW),
    ("bert", {"model_type": "bert"}),
    ("roberta", {"model_type": "camembert"}),
)


@pytest.mark.parametrize(("name", "facts"), HUB, ids=lambda value: value if isinstance(value, str) else "")
def test_dispatch(name: str, facts: Config) -> None:
    assert adapter_for(HfConfig(facts)).name == name


ALIBI = {"model_type": "bert", "position_embedding_type": "alibi"}
JINA = jina("jina-bert-implementation")
UNKNOWN_CODE = (
    JINA | {"auto_map": {"AutoModel": "somebody/else--modeling_bert.JinaBertModel"}},
    JINA | {"auto_map": {"AutoModel": "modeling_bert.JinaBertModel"}, "_name_or_path": "./checkpoint"},
    JINA | {"auto_map": JINA["auto_map"] | {"AutoModel": "somebody/else--modeling_bert.JinaBertModel"}},
    JINA | {"auto_map": "somebody/else--modeling_bert.JinaBertModel"},
    V1 | {"auto_map": {"AutoModel": "somebody/else--modeling.OtherBertModel"}},
    V1 | {"auto_map": {"AutoModel": "somebody/else--modeling_hf_nomic_bert.NomicBertModel"}},
    V1 | {"auto_map": {"AutoModel": "modeling_changed.NomicBertModel"}},
    NEW | {"auto_map": {"AutoModel": "somebody/new-impl--modeling.NewModel"}},
    NEW | {"auto_map": NEW["auto_map"] | {"AutoModel": "modeling.NewModelWithAdapters"}},
    {"model_type": "roberta", "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash--modeling.XLMRobertaLoRA"}},
)


@pytest.mark.parametrize("facts", UNKNOWN_CODE, ids=lambda facts: str(facts["auto_map"])[:40])
def test_unknown_code_is_refused(facts: Config) -> None:
    with pytest.raises(UnknownArchitecture, match="which is never executed, and no adapter replaces it"):
        adapter_for(HfConfig(facts))


def test_a_copy_of_known_code_is_told_how_to_say_so() -> None:
    facts = NEW | {"auto_map": {"AutoModel": "somebody/gte-finetuned--modeling.NewModel"}}
    with pytest.raises(
        UnknownArchitecture, match=r"unchanged copy of the code of Alibaba-NLP/new-impl or Snow"
    ):
        adapter_for(HfConfig(facts))
    with pytest.raises(UnknownArchitecture) as refused:
        adapter_for(HfConfig(V1 | {"auto_map": {"AutoModel": "somebody/else--modeling.OtherBertModel"}}))
    assert "copy" not in str(refused.value)


@pytest.mark.parametrize(
    "target",
    ["modeling.NewModel", "Snowflake/snowflake-arctic-embed-m-v2.0--modeling_hf_alibaba_nlp_gte.GteModel"],
)
def test_known_code_beside_the_weights_and_in_its_own_repositories(target: str) -> None:
    assert adapter_for(HfConfig(NEW | {"auto_map": {"AutoModel": target}})).name == "gte"


def test_alibi_without_code_is_not_bert() -> None:
    """transformers itself would ignore the key and compute something else."""
    facts = HfConfig({**POST, **ALIBI, "hidden_act": "gelu", "type_vocab_size": 2})
    with pytest.raises(
        UnsupportedConfig, match="position_embedding_type='alibi', but the adapter needs 'absolute'"
    ):
        adapter_for(facts).config(facts)


# --- what is refused


def stored_config(name: str) -> Callable[[], Config]:
    """config.json as the case's model class writes it."""

    def facts() -> Config:
        model: Any = BY_NAME[name].model()
        return {key: value for key, value in model.config.to_dict().items() if value is not None}

    return facts


BOTH: Config = nomic_both(
    {**POST, "vocab_size": 128, "intermediate_size": 256} | {"rope_parameters": {"rope_theta": 300.0}}
)
NTK = {"type": "ntk", "factor": 8.0}

REFUSED: tuple[tuple[Config | str, Config, str], ...] = (
    (
        JINA,
        {"feed_forward_type": "original"},
        "feed_forward_type='original', but the adapter knows geglu, reglu",
    ),
    (JINA, {"position_embedding_type": "absolute"}, "position_embedding_type='absolute'.*needs 'alibi'"),
    (JINA, {"is_decoder": True}, "is_decoder=True, but the adapter needs False"),
    (NEW, {"logn_attention_scale": True}, "logn_attention_scale=True, but the adapter needs False"),
    (NEW, {"logn_attention_clip1": True}, "logn_attention_clip1=True, but the adapter needs False"),
    (NEW, {"layer_norm_type": "rms_norm"}, "layer_norm_type='rms_norm', but the adapter needs 'layer_norm'"),
    (NEW, {"position_embedding_type": "absolute"}, "position_embedding_type='absolute'.*needs 'rope'"),
    (NEW, {"pack_qkv": False}, "pack_qkv=False, but the adapter needs True"),
    (NEW, {"rope_scaling": NTK | {"mixed_b": 0.3}}, "mixed_b=0.3, but the adapter needs None"),
    (NEW, {"rope_scaling": NTK | {"factor": 0.5}}, "factor=0.8.*, but the adapter needs at least 1"),
    (NEW, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope type 'yarn', but the adapter knows"),
    (NEW, {"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\], but the adapter knows"),
    (NEW, {"hidden_act": "mish"}, "hidden_act='mish', but the adapter knows"),
    (NEW, {"type_vocab_size": -1}, "type_vocab_size=-1, but the adapter needs a positive integer"),
    (V1, {"prenorm": True}, "prenorm=True, but the adapter needs False"),
    (V1, {"parallel_block": True}, "parallel_block=True, but the adapter needs False"),
    (V1, {"causal": True}, "causal=True, but the adapter needs False"),
    (V1, {"use_rms_norm": True}, "use_rms_norm=True, but the adapter needs False"),
    (V1, {"num_heads_kv": 2}, "num_heads_kv=2, but the adapter needs None"),
    (V1, {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction=0.5, but the adapter needs 1.0"),
    (V1, {"rotary_emb_interleaved": True}, "rotary_emb_interleaved=True, but the adapter needs False"),
    (V1, {"rotary_emb_scale_base": 512}, "rotary_emb_scale_base=512, but the adapter needs None"),
    (V1, {"rotary_scaling_factor": 0.5}, "rope factor=0.5, but the adapter needs at least 1"),
    (V1, {"rotary_scaling_factor": "2"}, "rotary_scaling_factor='2', but the adapter needs a finite number"),
    (
        V1,
        {"rotary_scaling_factor": None, "rope_parameters": 3},
        "rope_parameters=3, but the adapter needs an object",
    ),
    (V2_MOE, {"num_experts": "8"}, "num_experts='8', but the adapter needs a positive integer"),
    (V1, {"qkv_proj_bias": True}, "qkv_proj_bias=True, but the adapter needs False"),
    (V1, {"mlp_fc1_bias": True}, "mlp_fc1_bias=True, but the adapter needs False"),
    (V1, {"mlp_fc2_bias": True}, "mlp_fc2_bias=True, but the adapter needs False"),
    (
        V1,
        {"activation_function": "glu"},
        "activation_function='glu', but the adapter knows geglu, gelu, swiglu",
    ),
    (V1, {"head_dim": 16}, "head_dim=16, but the adapter needs 8"),
    (BOTH, {"hidden_size": 64}, "hidden_size=64, but the older keys beside it say 32"),
    (BOTH, {"intermediate_size": 200}, "intermediate_size=200, but the older keys beside it say 256"),
    (BOTH, {"rotary_emb_base": 1000}, "rope_parameters=.*but the older keys beside it say .*1000"),
    (BOTH, {"rotary_scaling_factor": 2}, "rope_parameters=.*but the older keys beside it say .*dynamic"),
    (V2_MOE, {"qkv_proj_bias": False}, "qkv_proj_bias=False, but the adapter needs True"),
    (V2_MOE, {"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights=True, but .* needs False"),
    (V2_MOE, {"expert_choice_router": True}, "expert_choice_router=True, but the adapter needs False"),
    (V2_MOE, {"num_shared_experts": 1}, "num_shared_experts=1, but the adapter needs 0"),
    (V2_MOE, {"ffn_div": 2}, "ffn_div=2, but the adapter needs 1"),
    (V1 | {"num_experts": 8}, {}, "activation_function='swiglu', but the adapter needs 'gelu'"),
    ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets=64, but .* needs 32"),
    ("mpnet", {"hidden_act": "mish"}, "hidden_act='mish', but the adapter knows"),
    ("distilbert", {"activation": "mish"}, "activation='mish', but the adapter knows"),
    ("modernbert", {"attention_bias": True}, "attention_bias=True, but the adapter needs False"),
    ("modernbert", {"mlp_bias": True}, "mlp_bias=True, but the adapter needs False"),
    ("modernbert", {"norm_bias": True}, "norm_bias=True, but the adapter needs False"),
    ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*needs None"),
    ("modernbert", {"layer_types": ["full_attention"]}, "layer_types=.*needs 4 of sliding_attention, full"),
    ("modernbert", {"layer_types": [{}] * 4}, "layer_types=.*needs 4 of sliding_attention"),
    ("modernbert", {"layer_types": ["chunked_attention"] * 4}, "layer_types=.*needs 4 of sliding_attention"),
    ("modernbert", {"local_attention": 0}, "local_attention=0, but the adapter needs a positive integer"),
    ("modernbert", {"rope_parameters": {}, "local_rope_theta": None}, "local_rope_theta=None, but .* number"),
    ("jina-v3", {"hidden_act": "mish"}, "hidden_act='mish', but the adapter knows"),
    ("jina-v3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
)


@pytest.mark.parametrize(
    ("facts", "change", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_refusals(facts: Config | str, change: Config, message: str) -> None:
    known = stored_config(facts)() if isinstance(facts, str) else facts
    if change:
        adapter_for(HfConfig(known)).config(HfConfig(known))
    hf = HfConfig(known | change)
    with pytest.raises(UnsupportedConfig, match=message):
        adapter_for(hf).config(hf)


@pytest.mark.parametrize(
    "name", ["mpnet", "modernbert", "nomic-bert", "gte", "jina-bert", "jina-v3", "distilbert"]
)
def test_every_key_read_is_needed_or_has_a_default(name: str) -> None:
    """Without any one key: the same encoder, another (then the reference's own default), or a message; never a crash."""
    case = BY_NAME[name]
    model: Any = case.model()
    facts = model.facts if hasattr(model, "facts") else model.config.to_dict()
    for key in set(facts) - {"model_type"}:
        fewer = HfConfig({k: v for k, v in facts.items() if k != key})
        try:
            case.adapter.config(fewer)
        except BeiError as error:
            assert key in str(error)


def test_head_of_an_unknown_pooling_is_refused() -> None:
    hf = HfConfig({**MODERN, "model_type": "modernbert", "classifier_pooling": "max"})
    assert MODERNBERT.sequence_head is not None
    with pytest.raises(UnsupportedConfig, match="classifier_pooling='max', but the adapter knows cls, mean"):
        MODERNBERT.sequence_head(hf)


# --- facts that two spellings share


def test_ntk_is_linear_scaling_of_a_larger_theta() -> None:
    rope = GTE.config(HfConfig(NEW)).layers[0].rope
    assert rope is not None and rope.theta == 4000.0
    assert rope.scaling is not None and rope.scaling == replace(rope.scaling, factor=8.0 ** (2 / 8))


def test_native_dynamic_beside_silent_old_keys() -> None:
    """A re-save in the wild: `rope_parameters` dynamic, `rotary_scaling_factor` null."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000}
    facts = V1 | {"rotary_scaling_factor": None, "rope_parameters": dynamic, "max_position_embeddings": 2048}
    rope = NOMIC_BERT.config(HfConfig(facts)).layers[0].rope
    assert rope is not None and rope.scaling is not None
    assert rope.scaling.factor == 2.0 and rope.scaling.trained_positions == 2048  # type: ignore[union-attr]


def test_mpnets_padding_id_is_not_read() -> None:
    """transformers' class counts positions from 1 whatever config.json says."""
    facts = stored_config("mpnet")() | {"pad_token_id": 0}
    assert adapter_for(HfConfig(facts)).config(HfConfig(facts)).position_pad == 1


def test_distilbert_has_no_eps_to_read() -> None:
    hf = HfConfig({**DISTIL, "model_type": "distilbert", "activation": "gelu", "layer_norm_eps": 1.0})
    assert adapter_for(hf).config(hf).norm_eps == 1e-12
