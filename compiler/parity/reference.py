"""The answer an engine is held to: Hugging Face in fp32 on the CPU, read from the checkpoint's own folder.

torch, transformers and sentence-transformers are the extra ``bei[parity]`` and are imported here only when asked for.
Nothing is fetched from the Hub, and no code that comes with a checkpoint is run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bei.compiler.parity.native import read_config, translated
from bei.compiler.parity.quiet import quiet
from bei.compiler.parity.texts import Sample
from bei.errors import ParityError
from bei.manifest import Task
from bei.runtime.entities import Strategy

if TYPE_CHECKING:
    import torch

F32 = npt.NDArray[np.float32]
Span = tuple[int, int, str]
"""First character, one past the last, label."""

BATCH_TOKENS = 2048
"""Padded tokens of one reference batch: enough to keep two cores busy, little to pad."""


class Reference(Protocol):
    """Where the right answers come from. Families that transformers does not have bring an implementation of their
    own, which must share no code with the compiler.

    ``name`` and ``versions`` go into the certificate.
    """

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...

    @property
    def versions(self) -> Mapping[str, str]: ...

    def token_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Each input's ids, truncated, special tokens included."""

    def outputs(self, samples: Sequence[Sample]) -> list[F32]:
        """embed: a vector [d]; embed-tokens: [n, d]; classify and rerank: logits [C]; token-classify: logits [n, C]."""


class TokenReference(Reference, Protocol):
    """A reference for token classification also knows how logits become entities."""

    def spans(self, samples: Sequence[Sample], logits: Sequence[F32], strategy: Strategy) -> list[list[Span]]:
        """The entities that ``logits`` [n, C] mean, one list a text."""


class LayerReference(Reference, Protocol):
    """A reference that shows what happens inside."""

    def hidden_states(self, sample: Sample) -> dict[str, F32]:
        """[n, D] by name: ``embed``, ``layers.0`` …, and ``output`` for the last, final norm included."""


def hugging_face(
    folder: Path, task: Task, *, max_length: int | None = None
) -> "Embedder | Classifier | Tagger":
    """The reference for the checkpoint in ``folder``; inputs are cut at ``max_length`` tokens where that is shorter.

    Raises ParityError: the extra is not installed, the folder cannot be loaded, or transformers would load it as
    another architecture.
    """
    if not (folder / "config.json").is_file():
        raise ParityError(f"{folder}: no config.json there. Give the folder of a Hugging Face checkpoint.")
    try:
        import transformers  # noqa: F401  (is the extra there?)
    except ModuleNotFoundError as error:
        raise ParityError(f"parity: {error.name} is not installed. Run: pip install 'bei[parity]'") from None
    with quiet(), translated(folder) as readable:
        _refuse_misread(readable)
        pooled = task in ("classify", "rerank") and read_config(folder).get("model_type") == "llama_bidirec"
        load = _load_pooled if pooled else LOADERS[task]
        return load(readable, task, max_length)


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedder:
    """sentence-transformers, with the folder's own pooling, dense layers, prompts and lengths."""

    model: Any
    task: Task = "embed"
    name: str = "sentence-transformers fp32"
    versions: Mapping[str, str]

    def token_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        with quiet():
            return [self._features(sample)["input_ids"][0].tolist() for sample in samples]

    def outputs(self, samples: Sequence[Sample]) -> list[F32]:
        done: dict[int, F32] = {}
        lengths = [len(ids) for ids in self.token_ids(samples)]
        with quiet():
            for prompt in sorted({sample.prompt for sample in samples}, key=str):
                chosen = [i for i, sample in enumerate(samples) if sample.prompt == prompt]
                for batch in batches([lengths[i] for i in chosen], BATCH_TOKENS):
                    rows = [chosen[i] for i in batch]
                    texts = [samples[i].text for i in rows]
                    vectors = self.model.encode(
                        texts, prompt_name=prompt, batch_size=len(texts), show_progress_bar=False
                    )
                    done.update(zip(rows, vectors.astype(np.float32), strict=True))
        return [done[i] for i in range(len(samples))]

    def hidden_states(self, sample: Sample) -> dict[str, F32]:
        with quiet():
            return named_states(self.model.transformers_model, self._inputs(sample))

    def _inputs(self, sample: Sample) -> dict[str, "torch.Tensor"]:
        return {key: value for key, value in self._features(sample).items() if key in MODEL_INPUTS}

    def _features(self, sample: Sample) -> Mapping[str, Any]:
        prompt = sample.prompt or self.model.default_prompt_name
        if prompt is not None and prompt not in self.model.prompts:
            have = ", ".join(self.model.prompts) or "none"
            raise ParityError(f"reference: no prompt named {prompt!r} in the checkpoint (it has {have}).")
        features: Mapping[str, Any] = self.model.preprocess(
            [sample.text], prompt=None if prompt is None else self.model.prompts[prompt]
        )
        return features


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEmbedder(Embedder):
    """What the model that sentence-transformers pools over gives: its last hidden state, text by text."""

    task: Task = "embed-tokens"
    name: str = "transformers fp32"

    def outputs(self, samples: Sequence[Sample]) -> list[F32]:
        import torch

        with quiet(), torch.inference_mode():
            return [
                self.model.transformers_model(**self._inputs(sample)).last_hidden_state[0].numpy()
                for sample in samples
            ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """transformers' sequence classification, for labels and for rerankers: one logit a label."""

    model: Any
    tokenizer: Any
    max_length: int
    task: Task
    name: str = "transformers fp32"
    versions: Mapping[str, str]

    def token_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        with quiet():
            return [_tokenize(self, [sample])["input_ids"][0].tolist() for sample in samples]

    def outputs(self, samples: Sequence[Sample]) -> list[F32]:
        return [logits for logits, _ in _forward(self, samples)]

    def hidden_states(self, sample: Sample) -> dict[str, F32]:
        with quiet():
            return named_states(self.model, dict(_tokenize(self, [sample])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagger:
    """transformers' token classification and its pipeline's five ways to join tokens into entities."""

    model: Any
    tokenizer: Any
    max_length: int
    pipeline: Any
    task: Task = "token-classify"
    name: str = "transformers fp32"
    versions: Mapping[str, str]
    _encoded: dict[str, Any] = field(default_factory=dict, repr=False)

    def token_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        with quiet():
            return [_tokenize(self, [sample])["input_ids"][0].tolist() for sample in samples]

    def outputs(self, samples: Sequence[Sample]) -> list[F32]:
        return [logits[:n] for logits, n in _forward(self, samples)]

    def hidden_states(self, sample: Sample) -> dict[str, F32]:
        with quiet():
            return named_states(self.model, dict(_tokenize(self, [sample])))

    def spans(self, samples: Sequence[Sample], logits: Sequence[F32], strategy: Strategy) -> list[list[Span]]:
        with quiet():
            pairs = zip(samples, logits, strict=True)
            return [self._spans(sample.text, scores, strategy) for sample, scores in pairs]

    def _spans(self, text: str, logits: F32, strategy: Strategy) -> list[Span]:
        import torch
        from transformers.pipelines.token_classification import AggregationStrategy

        if text not in self._encoded:
            self._encoded[text] = self.tokenizer(
                text,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
                return_special_tokens_mask=True,
                return_offsets_mapping=True,
            )
        chunk = {**self._encoded[text], "logits": torch.from_numpy(logits[None].copy()), "sentence": text}
        found = self.pipeline.postprocess([chunk], AggregationStrategy(strategy))
        return [(int(e["start"]), int(e["end"]), str(e.get("entity_group", e.get("entity")))) for e in found]


MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices of rows with these lengths, longest first, in batches of at most ``tokens`` padded tokens (or one row)."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if found and lengths[found[-1][0]] * (len(found[-1]) + 1) <= tokens:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _tokenize(of: Classifier | Tagger, samples: Sequence[Sample]) -> Mapping[str, Any]:
    pairs = [sample.pair for sample in samples]
    encoded: Mapping[str, Any] = of.tokenizer(
        [sample.text for sample in samples],
        None if pairs[0] is None else pairs,
        truncation=True,
        max_length=of.max_length,
        padding=True,
        return_tensors="pt",
    )
    return encoded


def _forward(of: Classifier | Tagger, samples: Sequence[Sample]) -> list[tuple[F32, int]]:
    """Each sample's logits, padded ones included, and how many tokens are its own."""
    import torch

    done: dict[int, tuple[F32, int]] = {}
    lengths = [len(ids) for ids in of.token_ids(samples)]
    with quiet(), torch.inference_mode():
        for paired in (False, True):
            chosen = [i for i, sample in enumerate(samples) if (sample.pair is not None) == paired]
            for batch in batches([lengths[i] for i in chosen], BATCH_TOKENS):
                rows = [chosen[i] for i in batch]
                logits = of.model(**_tokenize(of, [samples[i] for i in rows])).logits.numpy()
                done.update((i, (logits[at], lengths[i])) for at, i in enumerate(rows))
    return [done[i] for i in range(len(samples))]


def named_states(model: Any, inputs: dict[str, "torch.Tensor"]) -> dict[str, F32]:
    """A transformers model's hidden states [n, D] for one text. It applies a final norm to the last one only, so that
    one is called ``output``."""
    import torch

    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True).hidden_states
    names = ["embed", *(f"layers.{i}" for i in range(len(states) - 2)), "output"]
    return {name: state[0].numpy() for name, state in zip(names, states, strict=True)}


def _load_embedder(folder: Path, task: Task, max_length: int | None) -> Embedder:
    import torch

    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ParityError(f"parity: {error.name} is not installed. Run: pip install 'bei[parity]'") from None

    def load() -> Any:
        return SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": torch.float32, "use_safetensors": True},
        )

    model = _loaded(load, folder)
    own = model.max_seq_length
    if max_length is not None and (own is None or max_length < own):
        model.max_seq_length = max_length
    kind = TokenEmbedder if task == "embed-tokens" else Embedder
    return kind(model=model, versions=_versions("sentence-transformers", "transformers", "torch"))


def _load_classifier(folder: Path, task: Task, max_length: int | None) -> Classifier:
    from transformers import AutoModelForSequenceClassification

    model, tokenizer, length = _load_with_head(folder, AutoModelForSequenceClassification, max_length)
    return Classifier(
        model=model,
        tokenizer=tokenizer,
        max_length=length,
        task=task,
        versions=_versions("transformers", "torch"),
    )


def _load_pooled(folder: Path, task: Task, max_length: int | None) -> Classifier:
    from transformers import AutoTokenizer

    from bei.compiler.parity.pooled import load_pooled

    def load() -> tuple[Any, Any]:
        return load_pooled(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)

    model, tokenizer = _loaded(load, folder)
    limits = [tokenizer.model_max_length, model.config.max_position_embeddings, max_length]
    return Classifier(
        model=model.eval(),
        tokenizer=tokenizer,
        max_length=min(limit for limit in limits if limit is not None),
        task=task,
        versions=_versions("transformers", "torch"),
    )


def _load_tagger(folder: Path, task: Task, max_length: int | None) -> Tagger:
    import transformers
    from transformers import AutoModelForTokenClassification

    pipeline_class: Any = transformers.TokenClassificationPipeline
    model, tokenizer, length = _load_with_head(folder, AutoModelForTokenClassification, max_length)
    return Tagger(
        model=model,
        tokenizer=tokenizer,
        max_length=length,
        pipeline=pipeline_class(model=model, tokenizer=tokenizer, device=-1),
        versions=_versions("transformers", "torch"),
    )


def _load_with_head(folder: Path, auto_class: Any, max_length: int | None) -> tuple[Any, Any, int]:
    """Model, tokenizer and the longest input. Refuses a head or layer that the file lacks: it would be random."""
    import torch
    from transformers import AutoTokenizer

    def load() -> tuple[Any, Mapping[str, Any], Any]:
        model, info = auto_class.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        return (
            model,
            info,
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        )

    model, info, tokenizer = _loaded(load, folder)
    if absent := sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])}):
        shown = ", ".join(absent[:5])
        raise ParityError(
            f"{folder}: {len(absent)} tensors that {type(model).__name__} needs are not in the file ({shown}); "
            "transformers would make them up. Is this checkpoint made for the task?"
        )
    limits = [tokenizer.model_max_length, model.config.max_position_embeddings, max_length]
    return model.eval(), tokenizer, min(limit for limit in limits if limit is not None)


LOADERS: Mapping[Task, Callable[[Path, Task, int | None], Embedder | Classifier | Tagger]] = {
    "embed": _load_embedder,
    "embed-tokens": _load_embedder,
    "classify": _load_classifier,
    "rerank": _load_classifier,
    "token-classify": _load_tagger,
}


def _loaded(load: Callable[[], Any], folder: Path) -> Any:
    try:
        return load()
    except Exception as error:  # these libraries raise nearly anything for a folder they cannot read
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ParityError(f"{folder}: transformers cannot load it ({lines[0]}).") from error


def _refuse_misread(folder: Path) -> None:
    """Refuse what transformers loads without complaint as another function than the checkpoint's own."""
    config = read_config(folder)
    kind = config.get("model_type")
    positions = config.get("position_embedding_type") or "absolute"
    if kind == "bert" and positions != "absolute":
        why = f"has position_embedding_type={positions!r}, which its BERT ignores"
    elif config.get("use_bidirectional_attention") and not str(kind).startswith("gemma3"):
        why = f"sets use_bidirectional_attention, which its {kind} ignores"
    elif kind == "nomic_bert" and "hidden_size" not in config:
        why = "has only the older nomic_bert keys, which it replaces by defaults"
    else:
        return
    raise ParityError(
        f"{folder}: transformers is no reference for this checkpoint: it {why}. Give a reference of its own."
    )


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}
