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
from bei.adapters.remote_code import RemoteClass, is_replaced, known_repositories, remote_classes
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
    where an adapter says that it replaces all of it: nothing from the checkpoint is ever executed.
    """
    model_type = hf.get("model_type", "")
    candidates = [adapter for adapter in adapters if model_type in adapter.model_types]
    if not candidates:
        raise UnknownArchitecture(_unknown(str(model_type), adapters))
    remote = remote_classes(hf)
    serving = [
        adapter
        for adapter in candidates
        if all(is_replaced(found, adapter) for found in remote)
        and (adapter.claims is None or adapter.claims(hf))
    ]
    if len(serving) == 1:
        return serving[0]
    if remote and not serving:
        raise UnknownArchitecture(_foreign(str(model_type), remote, candidates))
    names = ", ".join(adapter.name for adapter in serving or candidates)
    found = "more than one adapter claims" if serving else "no adapter claims"
    raise UnknownArchitecture(f"{model_type}: {found} this config.json ({names}). See adapters/README.md.")


def _foreign(model_type: str, remote: Sequence[RemoteClass], candidates: Sequence[Adapter]) -> str:
    listed = ", ".join(sorted({str(found) for found in remote}))
    known = known_repositories(remote, candidates)
    copied = (
        f" If it is an unchanged copy of the code of {' or '.join(known)}, name that repository in auto_map."
        if known
        else ""
    )
    return (
        f"{model_type}: config.json asks for the checkpoint's own code ({listed} in auto_map), which is never executed, "
        f"and no adapter replaces it.{copied} Use a revision that transformers loads natively, "
        "or add an adapter (adapters/README.md)."
    )


def _unknown(model_type: str, adapters: Sequence[Adapter]) -> str:
    known = sorted({name for adapter in adapters for name in adapter.model_types})
    near = difflib.get_close_matches(model_type, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no adapter for model_type {model_type!r}.{hint} Known: {', '.join(known)}."
