"""What the real checkpoints contain, read from facts/*.yaml: enough to write a stand-in with the same layout.

tensors.yaml holds groups of tensors, tokenizers.yaml the tokenizers, every other file the checkpoints of a family
(`checkpoints:`; its other keys are there for YAML anchors alone). Keys that this module does not know are refused.
"""

import difflib
from collections.abc import Mapping
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from bei.errors import CheckpointError

FOLDER = Path(__file__).parent / "facts"
SHARED = ("tensors.yaml", "tokenizers.yaml")

Dim = int | str
Shape = tuple[Dim, ...]
Pooling = Literal["mean", "cls", "last"]
Module = Literal["Transformer", "Pooling", "Dense", "Normalize"]


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, and strict when read."""


class Files(_Facts, frozen=True):
    """Which files hold the weights: shards, whether headers have `__metadata__` and end on a multiple of 8 bytes.

    ``pickles`` names what the Hub has where it has no safetensors; a stand-in has safetensors all the same.
    """

    shards: int = 1
    metadata: bool = True
    padded_header: bool = True
    pickles: tuple[str, ...] = ()


class TokenizerUse(_Facts, frozen=True):
    """A tokenizer of tokenizers.yaml; ``fixed_length``: truncation and padding that tokenizer.json carries."""

    name: str
    model_max_length: int
    fixed_length: int | None = None


class DenseFacts(_Facts, frozen=True):
    """A Dense module without bias; sizes are shape symbols."""

    in_features: Dim = msgspec.field(name="in")
    out_features: Dim = msgspec.field(name="out")
    activation: str = "torch.nn.modules.linear.Identity"


class SentenceFacts(_Facts, frozen=True):
    """sentence-transformers' files. ``prompts`` None: the file has no such key; ``width``: pooling's dimension."""

    modules: tuple[Module, ...]
    pooling: Pooling
    max_seq_length: int | None
    prompts: dict[str, str] | None = {}
    width: Dim = "D"
    similarity: str = "cosine"
    include_prompt: bool | None = None
    dense: tuple[DenseFacts, ...] = ()
    saved_with: dict[str, str] = {}


class RevisionFacts(_Facts, frozen=True):
    """How another revision differs: configuration keys set and removed, other tensors, other modules."""

    config: dict[str, Any] = {}
    without: tuple[str, ...] = ()
    tensors: dict[str, tuple[str, ...]] | None = None
    sentence: SentenceFacts | None = None


class CheckpointFacts(_Facts, frozen=True):
    """One checkpoint.

    ``config``: in the file also a list of mappings, of which later ones override earlier ones.
    ``tensors``: prefix → groups of tensors.yaml. ``count`` tensors in all; ``bytes`` of the one weights file where
    the real size is known. ``layers``: how many are enough for every kind of layer. ``norm_centre``: what norm
    weights lie around. ``ffn_multiple``: the MLP width is a multiple of it. ``unverified``: paths of facts that come
    from memory or inference.
    """

    repo: str
    tensors: dict[str, tuple[str, ...]]
    dtype: Literal["F32", "F16", "BF16"]
    count: int
    config: dict[str, Any]
    tokenizer: TokenizerUse
    bytes: int | None = None
    layers: int = 2
    norm_centre: float = 1.0
    ffn_multiple: int = 8
    files: Files = Files()
    sentence: SentenceFacts | None = None
    unverified: tuple[str, ...] = ()
    revisions: dict[str, RevisionFacts] = {}


class TokenizerFacts(_Facts, frozen=True):
    """See the head of tokenizers.yaml. ``split`` names the pre-tokenizer where the kind leaves a choice."""

    kind: Literal["wordpiece", "byte-bpe", "unigram", "sentencepiece-bpe"]
    name: str = msgspec.field(name="class")
    size: int
    roles: dict[str, str]
    ids: dict[str, int]
    unused: str
    single: str | None
    pair: str | None
    split: Literal["gpt2", "qwen2", "llama3", "spaces", "prefix"] | None = None
    lowercase: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    lstrip: tuple[str, ...] = ()
    added: bool = False
    listed: bool = False
    settings: dict[str, Any] = {}


Groups = Mapping[str, Mapping[str, Shape | dict[str, Shape]]]


@cache
def load_facts() -> Mapping[str, CheckpointFacts]:
    """Repository → facts, in the order of the files and within them; raises CheckpointError for a damaged file."""
    found: dict[str, CheckpointFacts] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name in SHARED:
            continue
        for repo, entry in _load(path)["checkpoints"].items():
            found[repo] = _convert({"repo": repo, **_merged(entry)}, CheckpointFacts, f"{path.name}: {repo}")
    return found


def _merged(entry: dict[str, Any]) -> dict[str, Any]:
    """A list of configs as one, later ones overriding earlier ones. (YAML's own merge keys with a list are not used:
    PyYAML 6.0.4 takes them in another order than 6.0.3.)"""
    config = entry.get("config")
    return {**entry, "config": reduce(or_, config)} if isinstance(config, list) else entry


@cache
def tokenizer_facts() -> Mapping[str, TokenizerFacts]:
    """Tokenizer name → facts."""
    listed = _load(FOLDER / "tokenizers.yaml")
    return {
        name: _convert(entry, TokenizerFacts, f"tokenizers.yaml: {name}") for name, entry in listed.items()
    }


@cache
def tensor_groups() -> Groups:
    """Group → tensor name pattern → shape, or {dtype: shape}."""
    kind = dict[str, dict[str, tuple[int | str, ...] | dict[str, tuple[int | str, ...]]]]
    groups: Groups = _convert(_load(FOLDER / "tensors.yaml"), kind, "tensors.yaml")
    return groups


def facts_of(repo: str, revision: str | None = None) -> CheckpointFacts:
    """The facts of a repository, as one of its listed revisions has them; raises CheckpointError."""
    known = load_facts()
    if repo not in known:
        near = difflib.get_close_matches(repo, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise CheckpointError(f"{repo}: not in the zoo.{hint} `bei-zoo list` prints what is.")
    facts = known[repo]
    return facts if revision is None else _at_revision(facts, revision)


def _at_revision(facts: CheckpointFacts, revision: str) -> CheckpointFacts:
    if revision not in facts.revisions:
        listed = ", ".join(facts.revisions) or "none"
        raise CheckpointError(f"{facts.repo}: no facts about revision {revision!r} (there are: {listed}).")
    other = facts.revisions[revision]
    config = {key: value for key, value in facts.config.items() if key not in other.without} | other.config
    changed: dict[str, Any] = {"config": config, "revisions": {}}
    if other.tensors is not None:
        changed |= {"tensors": other.tensors, "bytes": None}
    if other.sentence is not None:
        changed["sentence"] = other.sentence
    return msgspec.structs.replace(facts, **changed)


def _load(path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, loader)


def _convert(value: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{where}: {error}. Reinstall bei, or mend the file.") from None
