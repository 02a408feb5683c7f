"""Which task a checkpoint is for, and the head that its own files describe.

modules.json → embed; else `…ForSequenceClassification` → rerank (one label) or classify, `…ForTokenClassification` →
token-classify; else embed as sentence-transformers treats a bare model: the mean (the last token for a causal
language model), not normalised.
"""

from dataclasses import dataclass
from typing import NoReturn

from bei.adapters.base import Adapter, HeadReader, HfConfig, Shapes, Source, TaskHead
from bei.adapters.config import EncoderConfig
from bei.adapters.head import LINEAR_POOLINGS, Dense, Head, Pooling
from bei.compiler.checkpoint.checkpoint import Checkpoint
from bei.compiler.checkpoint.sentence_transformers import SentenceFiles, read_sentence_files
from bei.compiler.weights import Weight
from bei.errors import UnsupportedConfig
from bei.manifest import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadFiles:
    """The head and what comes with it.

    ``rows`` are read from the encoder's own tensors, ``weights`` are already resolved (sentence-transformers
    modules). ``default_prompt`` is a name in ``prompts``. ``max_length`` is the limit that sentence-transformers was
    given, if any; ``lowercase`` its `do_lower_case`.
    """

    head: Head
    rows: tuple[tuple[str, Source], ...]
    weights: dict[str, Weight]
    prompts: dict[str, str]
    default_prompt: str | None
    max_length: int | None
    lowercase: bool


def read_head(checkpoint: Checkpoint, adapter: Adapter, cfg: EncoderConfig) -> HeadFiles:
    """Decide the task and read the head; raises CheckpointError or UnsupportedConfig."""
    sentence = read_sentence_files(checkpoint.folder)
    embeds = sentence is not None and not sentence.cross_encoder
    reader = None if embeds else _task_reader(checkpoint.config, adapter)
    if sentence is not None and sentence.cross_encoder and reader is None:
        _refuse(
            checkpoint.config,
            f"a CrossEncoder without a classification head ({_architecture(checkpoint.config)})",
        )
    if reader is None:
        stored = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        head, rows = _embedding(checkpoint.config, adapter, cfg, sentence, stored)
    else:
        head, rows = _task(checkpoint.config, *reader)
    return HeadFiles(
        head=head,
        rows=rows,
        weights=sentence.weights if sentence else {},
        prompts=sentence.prompts if sentence else {},
        default_prompt=sentence.default_prompt if sentence else None,
        max_length=sentence.max_length if sentence else None,
        lowercase=sentence.lowercase if sentence else False,
    )


def read_labels(hf: HfConfig) -> tuple[str, ...]:
    """The labels in logit order, as transformers names them; raises UnsupportedConfig naming a missing index."""
    stored = hf.get("id2label")
    if stored is None:
        return tuple(f"LABEL_{i}" for i in range(hf.size("num_labels", 2)))
    if not isinstance(stored, dict) or not stored:
        _refuse(hf, f"id2label={stored!r}, need an object of index to label")
    try:
        labels = {int(index): str(label) for index, label in stored.items()}
    except (TypeError, ValueError):
        _refuse(hf, f"id2label has keys that are no integers ({', '.join(map(str, list(stored)[:5]))})")
    for index in range(len(labels)):
        if index not in labels:
            _refuse(hf, f"id2label has {len(labels)} labels but none for index {index}")
    return tuple(labels[index] for index in range(len(labels)))


def _task_reader(hf: HfConfig, adapter: Adapter) -> tuple[Task | None, HeadReader] | None:
    """The reader of the task head that `architectures` names, None for an embedding model."""
    architecture = _architecture(hf)
    readers: dict[str, tuple[Task | None, HeadReader | None]] = {
        "ForSequenceClassification": (None, adapter.sequence_head),
        "ForTokenClassification": ("token-classify", adapter.token_head),
    }
    for suffix, (task, reader) in readers.items():
        if architecture.endswith(suffix):
            if reader is None:
                _refuse(hf, f"{architecture} has a head that the adapter {adapter.name} does not read")
            return task, reader
    return None


def _architecture(hf: HfConfig) -> str:
    listed = hf.get("architectures", [])
    return str(listed[0]) if isinstance(listed, list) and listed else ""


def _task(hf: HfConfig, task: Task | None, reader: HeadReader) -> tuple[Head, tuple[tuple[str, Source], ...]]:
    labels = read_labels(hf)
    found = reader(hf)
    outputs = [step.out for step in found.steps if isinstance(step, Dense)]
    if outputs and outputs[-1] != len(labels):
        _refuse(hf, f"the head gives {outputs[-1]} values but there are {len(labels)} labels")
    head = Head(
        task=task or ("rerank" if len(labels) == 1 else "classify"),
        pooling=found.pooling,
        steps=found.steps,
        labels=labels,
        problem_type=hf.get("problem_type"),
    )
    return head, found.weights


def _embedding(
    hf: HfConfig, adapter: Adapter, cfg: EncoderConfig, sentence: SentenceFiles | None, stored: Shapes
) -> tuple[Head, tuple[tuple[str, Source], ...]]:
    own = adapter.embedding_head(hf, stored) if adapter.embedding_head else None
    pooling = _pooling(hf, own, sentence)
    steps = sentence.steps if sentence else ()
    if own is not None and own.steps:
        _check_commutes(hf, own, pooling)
        steps = (*own.steps, *steps)
    cut = sentence.truncate_dim if sentence else None
    widths = [step.out for step in steps if isinstance(step, Dense)]
    width = widths[-1] if widths else cfg.dim * len(pooling)
    head = Head(
        task="embed",
        pooling=pooling,
        steps=steps,
        include_prompt=sentence.include_prompt if sentence else True,
        matryoshka=(cut,) if cut is not None and cut < width else (),
    )
    return head, own.weights if own else ()


def _pooling(hf: HfConfig, own: TaskHead | None, sentence: SentenceFiles | None) -> tuple[Pooling, ...]:
    """The stored one, else the model class's own, else sentence-transformers' default for a bare model."""
    if sentence is not None and not sentence.cross_encoder:
        return sentence.pooling
    if own is not None and own.pooling:
        return own.pooling
    causal = _architecture(hf).endswith("ForCausalLM") and hf.get("is_causal", True)
    return ("last",) if causal else ("mean",)


def _check_commutes(hf: HfConfig, own: TaskHead, pooling: tuple[Pooling, ...]) -> None:
    """Steps that the model applies to every token may run once on the pooled vector instead."""
    if len(pooling) == 1 and pooling[0] in LINEAR_POOLINGS:
        return
    names = ", ".join(step.name for step in own.steps if isinstance(step, Dense))
    _refuse(
        hf,
        f"its projection ({names}) is applied to every token, which cannot be moved behind "
        f"{' + '.join(pooling)} pooling (need one of {', '.join(sorted(LINEAR_POOLINGS))})",
    )


def _refuse(hf: HfConfig, what: str) -> NoReturn:
    raise UnsupportedConfig(
        f"{hf.name}: {what}. Use another revision or model; this one is not approximated."
    )
