"""The encoder families of `cases`: both spellings of a config where the Hub has both, and eps, theta, window that show."""

from typing import Any

from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    GteConfig,
    GteModel,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    NomicBertConfig,
    NomicBertModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from bei.adapters.bert import BERT
from bei.adapters.distilbert import DISTILBERT
from bei.adapters.gte import GTE
from bei.adapters.jina_bert import JINA_BERT
from bei.adapters.jina_bert_code import JINA_BERT_CODE
from bei.adapters.jina_v3 import JINA_V3
from bei.adapters.modernbert import MODERNBERT
from bei.adapters.mpnet import MPNET
from bei.adapters.nomic_bert import NOMIC_BERT
from bei.adapters.roberta import ROBERTA
from tests.adapters.references.gte import Gte
from tests.adapters.references.jina import Jina
from tests.adapters.references.nomic import V1, V2_MOE, Nomic
from tests.adapters.tiny import Case

Config = dict[str, Any]

TINY: Config = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
POST: Config = TINY | {"layer_norm_eps": 0.02}
"""An eps so large that a model with another one gives visibly other values."""

ROBERTA_TINY: Config = POST | {"pad_token_id": 1, "type_vocab_size": 1}

DISTIL: Config = {
    "vocab_size": 97,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}

MODERN: Config = TINY | {
    "num_hidden_layers": 4,
    "norm_eps": 0.02,
    "local_attention": 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
    },
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2),
}

NOMIC: Config = POST | {
    "vocab_size": 128,
    "intermediate_size": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
}
DYNAMIC: Config = {
    "max_position_embeddings": 8,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 2.0},
}

NTK_AS_LINEAR: Config = {"rope_type": "linear", "rope_theta": 500.0 * 8, "factor": 8.0 ** (2 / 8)}
"""What `rope_scaling {"type": "ntk", "factor": 8}` with theta 500 is in transformers' own terms, for heads of 8."""


def mpnet(**changes: Any) -> MPNetModel:
    """Room for distances beyond the last bucket (128)."""
    return MPNetModel(MPNetConfig(**POST | {"max_position_embeddings": 154} | changes))


def modernbert(**changes: Any) -> ModernBertModel:
    """Two local layers between two global ones, window 4 on each side."""
    return ModernBertModel(ModernBertConfig(**MODERN | changes))


def modernbert_legacy(config: Config) -> Config:
    """As the Hub's checkpoints spell it, leftovers included."""
    rope = config.pop("rope_parameters")
    config.pop("layer_types")
    return config | {
        "global_attn_every_n_layers": 3,
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "position_embedding_type": "absolute",
        "layer_norm_eps": 1e-5,
    }


def nomic(**changes: Any) -> NomicBertModel:
    return NomicBertModel(NomicBertConfig(**NOMIC | changes))


def nomic_legacy(config: Config) -> Config:
    """The Hub's keys alone; 97 rows and 200 features are rounded up by the model's own code."""
    return V1 | {
        "layer_norm_epsilon": config["layer_norm_eps"],
        "rotary_emb_base": config["rope_parameters"]["rope_theta"],
        "rotary_scaling_factor": None,
    }


def nomic_both(config: Config) -> Config:
    """Newer commits of the Hub: the old keys and beside them the new ones."""
    return nomic_legacy(config) | config


def gte(**changes: Any) -> GteModel:
    return GteModel(GteConfig(**POST | {"pad_token_id": 1} | changes))


def gte_snowflake(config: Config) -> Config:
    """arctic-embed-m-v2.0: model_type gte in the old spelling, with flags that do not change the maths."""
    theta = config.pop("rope_parameters")["rope_theta"]
    return config | {
        "auto_map": {"AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel"},
        "pack_qkv": True,
        "position_embedding_type": "rope",
        "rope_scaling": None,
        "rope_theta": theta,
        "unpad_inputs": "true",
    }


def gte_new(config: Config) -> Config:
    """Alibaba's spelling of the same numbers."""
    config.pop("rope_parameters")
    return config | {"model_type": "new", "rope_theta": 500, "rope_scaling": {"type": "ntk", "factor": 8.0}}


AROUND_8 = (1, 3, 4, 5, 7, 8, 9, 40)
"""Lengths around a window of 8, which is 4 on each side, and the longest."""

ENCODER_CASES = (
    Case(adapter=BERT, name="bert", model=lambda: BertModel(BertConfig(**POST))),
    Case(
        adapter=ROBERTA,
        name="roberta",
        model=lambda: RobertaModel(RobertaConfig(**ROBERTA_TINY)),
        lengths=(1, 7, 38),
    ),
    Case(
        adapter=ROBERTA,
        name="xlm-roberta",
        model=lambda: XLMRobertaModel(XLMRobertaConfig(**ROBERTA_TINY)),
        lengths=(1, 7, 38),
    ),
    Case(
        adapter=ROBERTA,
        name="camembert",
        model=lambda: CamembertModel(CamembertConfig(**ROBERTA_TINY | {"pad_token_id": 3})),
        lengths=(1, 7, 36),
    ),
    Case(adapter=DISTILBERT, name="distilbert", model=lambda: DistilBertModel(DistilBertConfig(**DISTIL))),
    Case(adapter=MPNET, name="mpnet", model=mpnet, lengths=(1, 33, 152)),
    Case(adapter=MODERNBERT, name="modernbert", model=modernbert, lengths=AROUND_8),
    Case(
        adapter=MODERNBERT,
        name="modernbert-legacy",
        model=modernbert,
        edit=modernbert_legacy,
        lengths=AROUND_8,
    ),
    Case(adapter=NOMIC_BERT, name="nomic-bert", model=nomic),
    Case(adapter=NOMIC_BERT, name="nomic-bert-legacy", model=nomic, edit=nomic_legacy),
    Case(adapter=NOMIC_BERT, name="nomic-bert-both", model=nomic, edit=nomic_both),
    # one length: transformers takes the padded length of the batch for every text
    Case(adapter=NOMIC_BERT, name="nomic-bert-dynamic", model=lambda: nomic(**DYNAMIC), lengths=(12, 12)),
    Case(adapter=NOMIC_BERT, name="nomic-bert-ntk", model=lambda: Nomic(V1), lengths=(1, 5, 6, 7, 64)),
    Case(adapter=NOMIC_BERT, name="nomic-bert-moe", model=lambda: Nomic(V2_MOE)),
    Case(adapter=JINA_BERT, name="jina-bert", model=lambda: Jina(code=False)),
    Case(adapter=JINA_BERT, name="jina-bert-reglu", model=lambda: Jina(code=False, reglu=True)),
    Case(adapter=JINA_BERT_CODE, name="jina-bert-code", model=lambda: Jina(code=True)),
    Case(adapter=GTE, name="gte", model=lambda: gte(rope_parameters=NTK_AS_LINEAR)),
    Case(adapter=GTE, name="gte-snowflake", model=gte, edit=gte_snowflake),
    Case(adapter=GTE, name="gte-new", model=lambda: gte(rope_parameters=NTK_AS_LINEAR), edit=gte_new),
    Case(adapter=GTE, name="gte-new-reference", model=Gte),
    Case(adapter=GTE, name="gte-new-no-types", model=lambda: Gte(types=0)),
    Case(
        adapter=JINA_V3,
        name="jina-v3",
        model=lambda: JinaEmbeddingsV3Model(
            JinaEmbeddingsV3Config(
                **ROBERTA_TINY, rope_parameters={"rope_type": "default", "rope_theta": 300.0}
            )
        ),
    ),
)
