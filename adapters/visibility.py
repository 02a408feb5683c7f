"""Which tokens a token sees in the decoder families: one direction or both, everything or a window.

A decoder made bidirectional says so in one of these ways, and nothing else in its config differs:

    "is_causal": false                        transformers' own switch (llama, mistral, qwen2, qwen3)
    "use_bidirectional_attention": true       Gemma 3's; voyage-4-nano writes it for qwen3
    "auto_map": {"AutoModel": "….Qwen3BidirectionalModel"}     a class known to be bidirectional, also in `architectures`
"""

from collections.abc import Collection, Iterator, Sequence

from bei.adapters.base import HfConfig
from bei.adapters.remote_code import remote_classes
from bei.errors import UnsupportedConfig

SLIDING, FULL = "sliding_attention", "full_attention"
NATIVE = ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")


def is_causal(hf: HfConfig, family: str, bidirectional: Collection[str] = ()) -> bool:
    """Whether a token sees only those before it; transformers' class for ``family`` (Qwen3) does where nothing is said.

    ``bidirectional``: classes that are known to look both ways, as `mapped_classes` or by name alone. Raises UnsupportedConfig where two facts contradict
    each other, and where a class that transformers does not have may mean either.
    """
    said = dict(_statements(hf, bidirectional))
    if len(set(said.values())) > 1:
        _refuse(hf, f"{' but '.join(said)}, which contradict each other")
    if said:
        return next(iter(said.values()))
    foreign = [name for name in architectures(hf) if name not in {family + end for end in NATIVE}]
    if foreign:
        _refuse(hf, f"{', '.join(foreign)} may be causal or not, and config.json does not say")
    return True


def _statements(hf: HfConfig, bidirectional: Collection[str]) -> Iterator[tuple[str, bool]]:
    for key, causal_when in (("is_causal", True), ("use_bidirectional_attention", False)):
        value = flag(hf, key)
        if value is not None:
            yield f"{key}={value}", value == causal_when
    for name in (*architectures(hf), *mapped_classes(hf)):
        if {name, name.split(".")[-1]} & set(bidirectional):
            yield name, False


def flag(hf: HfConfig, key: str) -> bool | None:
    """True, false or, where the key is absent or null, None; raises UnsupportedConfig for anything else."""
    value = hf.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise UnsupportedConfig(f"{hf.name}: {key}={value!r}, but the adapter needs true or false")


def architectures(hf: HfConfig) -> list[str]:
    """The classes of `architectures`."""
    listed = hf.get("architectures", [])
    return [str(name) for name in listed] if isinstance(listed, list) else [str(listed)]


def mapped_classes(hf: HfConfig) -> list[str]:
    """The model classes of `auto_map` with their module, without repository: modeling_qwen.Qwen2Model."""
    return [found.name for found in remote_classes(hf) if found.key.startswith("AutoModel")]


def _refuse(hf: HfConfig, what: str) -> None:
    raise UnsupportedConfig(
        f"{hf.name}: {what}. Write the direction the model was trained with into config.json: "
        '"is_causal": false where tokens see those after them, true where they do not, and no other switch.'
    )


def layer_types(hf: HfConfig, derived: Sequence[str]) -> Sequence[str]:
    """`layer_types`, or ``derived`` where config.json has none; one of SLIDING and FULL for each layer."""
    kinds = hf.get("layer_types", list(derived))
    found = [kind for kind in kinds if kind in (SLIDING, FULL)] if isinstance(kinds, list) else []
    if not len(found) == len(derived) == len(kinds):
        raise UnsupportedConfig(
            f"{hf.name}: layer_types={kinds!r}, but the adapter needs {len(derived)} of {SLIDING}, {FULL}"
        )
    return found


def window(hf: HfConfig, causal: bool) -> int:
    """Keys visible on each side, from `sliding_window` W: W − 1 before a causal token (W with itself), W both ways.

    The latter is what transformers does where `is_causal` is false; other switches leave it open and are refused.
    """
    if not causal and hf.get("is_causal") is None:
        raise UnsupportedConfig(
            f"{hf.name}: a sliding window in a bidirectional model, but no is_causal in config.json, "
            "so whether sliding_window counts one side or both is unknown. Use a revision without a window."
        )
    return hf.size("sliding_window") - causal
