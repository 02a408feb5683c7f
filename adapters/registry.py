"""The list of architectures. One line each; which one serves a checkpoint is decided here and nowhere else."""

import difflib
from collections.abc import Sequence

from bei.adapters.base import Adapter, HfConfig
from bei.adapters.bert import BERT
from bei.adapters.distilbert import DISTILBERT
from bei.adapters.eurobert import EUROBERT
from bei.adapters.gemma3 import GEMMA3
from bei.adapters.gte import GTE
from bei.adapters.jina_bert import JINA_BERT
from bei.adapters.jina_bert_code import JINA_BERT_CODE
from bei.adapters.jina_v3 import JINA_V3
from bei.adapters.llama import LLAMA
from bei.adapters.llama_bidirec import LLAMA_BIDIREC
from bei.adapters.mistral import MISTRAL
from bei.adapters.modernbert import MODERNBERT
from bei.adapters.mpnet import MPNET
from bei.adapters.nomic_bert import NOMIC_BERT
from bei.adapters.qwen2 import QWEN2
from bei.adapters.qwen3 import QWEN3
from bei.adapters.roberta import ROBERTA
from bei.errors import UnknownArchitecture

ADAPTERS: tuple[Adapter, ...] = (
    BERT,
    ROBERTA,
    DISTILBERT,
    MPNET,
    MODERNBERT,
    NOMIC_BERT,
    JINA_BERT,
    JINA_BERT_CODE,
    GTE,
    JINA_V3,
    LLAMA,
    LLAMA_BIDIREC,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA3,
    EUROBERT,
)


def adapter_for(hf: HfConfig, adapters: Sequence[Adapter] = ADAPTERS) -> Adapter:
    """The one adapter that serves this config.json; raises UnknownArchitecture.

    `model_type` names the candidates, their `claims` decide among them, and remote code (`auto_map`) is accepted only
    where an adapter says that it replaces exactly those classes: nothing from the checkpoint is ever executed.
    """
    model_type = hf.get("model_type", "")
    candidates = [adapter for adapter in adapters if model_type in adapter.model_types]
    if not candidates:
        raise UnknownArchitecture(_unknown(str(model_type), adapters))
    remote = remote_classes(hf)
    serving = [a for a in candidates if remote <= set(a.remote_code) and (a.claims is None or a.claims(hf))]
    if len(serving) == 1:
        return serving[0]
    if remote and not serving:
        raise UnknownArchitecture(
            f"{model_type}: config.json asks for the checkpoint's own code ({', '.join(sorted(remote))} in auto_map), "
            "which is never executed, and no adapter replaces it. Use a revision that transformers loads natively, "
            "or add an adapter (adapters/README.md)."
        )
    names = ", ".join(adapter.name for adapter in serving or candidates)
    found = "more than one adapter claims" if serving else "no adapter claims"
    raise UnknownArchitecture(f"{model_type}: {found} this config.json ({names}). See adapters/README.md.")


def remote_classes(hf: HfConfig) -> frozenset[str]:
    """The classes `auto_map` names, without repository and module: {'NewModel', 'NewConfig'}."""
    auto_map = hf.get("auto_map", {})
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    flat = (name for value in values for name in (value if isinstance(value, list) else [value]) if name)
    return frozenset(str(name).split(".")[-1] for name in flat)


def _unknown(model_type: str, adapters: Sequence[Adapter]) -> str:
    known = sorted({name for adapter in adapters for name in adapter.model_types})
    near = difflib.get_close_matches(model_type, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no adapter for model_type {model_type!r}.{hint} Known: {', '.join(known)}."
