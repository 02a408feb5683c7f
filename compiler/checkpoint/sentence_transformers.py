"""What sentence-transformers does around the encoder, read from its files; both spellings, up to version 6.2.

Pooling, Dense, LayerNorm and Normalize become head steps; anything else is refused by name. Defaults are those of the
classes: Dense without an activation is Tanh, Pooling without a mode is the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from bei.adapters.base import view
from bei.adapters.config import Act
from bei.adapters.head import LINEAR_POOLINGS, Dense, LayerNorm, Normalize, Pooling, Step
from bei.compiler.checkpoint.files import read_object, read_optional
from bei.compiler.checkpoint.modules import CONFIG, MODULES, SENTENCE_CONFIGS, Module, read_modules
from bei.compiler.checkpoint.safetensors import SINGLE, no_weights, read_header
from bei.compiler.weights import Weight, resolve
from bei.errors import CheckpointError

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

_SIMILARITIES: dict[str, Similarity] = {s: s for s in ("cosine", "dot", "euclidean", "manhattan")}

_POOLINGS: dict[str, Pooling] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}

_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
"""The old spelling, in the order in which sentence-transformers concatenates."""

_ACTIVATIONS: dict[str, Act] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}

_NORM_EPS = 1e-5
"""torch.nn.LayerNorm's default; the module does not store it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerSettings:
    """``max_length`` in tokens, special ones included; ``lowercase`` as `do_lower_case`."""

    max_length: int | None = None
    lowercase: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceFiles:
    """Everything after (and just before) the encoder.

    ``pooling`` and ``steps`` are empty for a cross-encoder, whose head is the checkpoint's own. ``weights`` of the
    steps (named head.0, head.1, …) lie in the modules' own files. ``truncate_dim``: leading dimensions that
    sentence-transformers returns by default.
    """

    pooling: tuple[Pooling, ...]
    include_prompt: bool
    steps: tuple[Step, ...]
    weights: dict[str, Weight]
    prompts: dict[str, str]
    default_prompt: str | None
    max_length: int | None
    lowercase: bool
    similarity: Similarity
    truncate_dim: int | None
    cross_encoder: bool = False


def read_sentence_files(folder: Path) -> SentenceFiles | None:
    """Read the files of the checkpoint in ``folder``; None without modules.json. Raises CheckpointError."""
    modules = read_modules(folder)
    if modules is None:
        return None
    config = read_optional(folder, CONFIG)
    cross_encoder = _is_cross_encoder(config, modules)
    settings = _read_settings(folder, modules[0], cross_encoder)
    before, after = _around_pooling(modules)
    pooling, include_prompt = (
        ((), True) if cross_encoder else _read_pooling(folder, modules[1 + len(before) :])
    )
    steps, weights = _read_steps(folder, before, after)
    _check_projections(steps[: len(before)], before, pooling, weights)
    prompts, default_prompt = _read_prompts(config)
    return SentenceFiles(
        pooling=pooling,
        include_prompt=include_prompt,
        steps=steps,
        weights=weights,
        prompts=prompts,
        default_prompt=default_prompt,
        max_length=settings.max_length,
        lowercase=settings.lowercase,
        similarity=_SIMILARITIES.get(str(config.get("similarity_fn_name")), "cosine"),
        truncate_dim=_count(CONFIG, "truncate_dim", config.get("truncate_dim")),
        cross_encoder=cross_encoder,
    )


def _is_cross_encoder(config: Mapping[str, Any], modules: Sequence[Module]) -> bool:
    kind = config.get("model_type") or "SentenceTransformer"
    if kind == "SentenceTransformer":
        return False
    if kind != "CrossEncoder":
        _refuse(CONFIG, f"model_type {kind!r}: only SentenceTransformer and CrossEncoder are served")
    if [module.kind for module in modules] != ["Transformer"]:
        kinds = ", ".join(module.kind for module in modules)
        _refuse(MODULES, f"a CrossEncoder of {kinds}: only one whose head is the checkpoint's own is served")
    return True


# --- Transformer


def _read_settings(folder: Path, module: Module, cross_encoder: bool) -> TransformerSettings:
    if module.kind != "Transformer":
        _refuse(MODULES, f"the first module is {module.kind}, but only Transformer is served there")
    if module.path:
        _refuse(
            MODULES,
            f"the Transformer lies in {module.path!r}, not in the repository's root. "
            "Load and save the model once with sentence-transformers",
        )
    name = next((name for name in SENTENCE_CONFIGS if (folder / name).exists()), None)
    if name is None:
        return TransformerSettings()
    settings = read_object(folder, name)
    _check_task(name, settings, cross_encoder)
    _check_calls(name, settings)
    return TransformerSettings(
        max_length=_read_max_length(name, settings),
        lowercase=_flag(name, "do_lower_case", settings.get("do_lower_case"), default=False),
    )


def _check_task(name: str, settings: Mapping[str, Any], cross_encoder: bool) -> None:
    """The text goes through `forward`, and what comes out is token vectors (or a cross-encoder's logits)."""
    task = "sequence-classification" if cross_encoder else "feature-extraction"
    output = "logits" if cross_encoder else "last_hidden_state"
    feature = "scores" if cross_encoder else "token_embeddings"
    text = {"method": "forward", "method_output_name": output}
    modality = settings.get("modality_config") or {"text": text}
    wanted: dict[str, tuple[Any, Any]] = {
        "transformer_task": (settings.get("transformer_task", task), task),
        "module_output_name": (settings.get("module_output_name", feature), feature),
        "modality_config.text": (modality.get("text") if isinstance(modality, dict) else modality, text),
    }
    for key, (got, need) in wanted.items():
        if got != need:
            _refuse(name, f"{key} is {got!r}, need {need!r}")


_NO_EFFECT = frozenset({"trust_remote_code", "use_fast", "padding_side", "clean_up_tokenization_spaces"})


def _check_calls(name: str, settings: Mapping[str, Any]) -> None:
    """Nothing that changes the text, the tokenizer or the model beyond its own files."""
    known = {
        "processor_kwargs": {"model_max_length", *_NO_EFFECT},
        "tokenizer_args": {"model_max_length", *_NO_EFFECT},
        "config_kwargs": {"trust_remote_code"},
        "config_args": {"trust_remote_code"},
        "query_length": set[str](),
        "document_length": set[str](),
        "query_expansion": set[str](),
    }
    for key, harmless in known.items():
        value = settings.get(key)
        if value and not (isinstance(value, dict) and value.keys() <= harmless):
            _refuse(name, f"{key} is {value!r}, which is not served")
    for kind, options in _processing(name, settings).items():
        if kind in ("text", "common") and not options.keys() <= {"padding", "truncation", "max_length"}:
            _refuse(name, f"processing_kwargs.{kind} is {options!r}, which is not served")


def _processing(name: str, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = settings.get("processing_kwargs") or {}
    if not isinstance(found, dict) or not all(isinstance(options, dict) for options in found.values()):
        _refuse(name, f"processing_kwargs is {found!r}, need an object of objects")
    return found


def _read_max_length(name: str, settings: Mapping[str, Any]) -> int | None:
    """At each call, else for the tokenizer, else max_seq_length: the order in which they override one another."""
    processing = _processing(name, settings)
    for key in ("text", "common"):
        if (length := processing.get(key, {}).get("max_length")) is not None:
            return _count(name, f"processing_kwargs.{key}.max_length", length)
    for key in ("processor_kwargs", "tokenizer_args"):
        if (length := (settings.get(key) or {}).get("model_max_length")) is not None:
            return _count(name, f"{key}.model_max_length", length)
    return _count(name, "max_seq_length", settings.get("max_seq_length"))


# --- Pooling


def _around_pooling(modules: Sequence[Module]) -> tuple[Sequence[Module], Sequence[Module]]:
    """What lies between the Transformer and the Pooling (Dense modules of every token), and what follows it."""
    count = next((i for i, module in enumerate(modules[1:]) if module.kind != "Dense"), 0)
    return modules[1 : 1 + count], modules[2 + count :]


def _check_projections(
    steps: Sequence[Step],
    modules: Sequence[Module],
    pooling: tuple[Pooling, ...],
    weights: Mapping[str, Weight],
) -> None:
    """A linear map of every token may run once, on the pooled vector."""
    for step, module in zip(steps, modules, strict=True):
        assert isinstance(step, Dense)
        linear = step.act == "identity" and not step.residual and f"{step.name}.bias" not in weights
        if not linear or len(pooling) != 1 or pooling[0] not in LINEAR_POOLINGS:
            _refuse(
                module.file("config.json"),
                f"a Dense of every token before {' + '.join(pooling)} pooling, which cannot be moved behind it "
                f"(need no bias, no activation, and one of {', '.join(sorted(LINEAR_POOLINGS))})",
            )


def _read_pooling(folder: Path, modules: Sequence[Module]) -> tuple[tuple[Pooling, ...], bool]:
    """``modules`` from the Pooling on."""
    if not modules or modules[0].kind != "Pooling":
        second = modules[0].kind if modules else "nothing"
        _refuse(MODULES, f"{second} follows the Transformer, but only Pooling is served there")
    name = modules[0].file("config.json")
    config = read_object(folder, name)
    unknown = config.keys() - _FLAGS.keys() - _POOLING_KEYS
    if unknown:
        _refuse(name, f"unknown keys {', '.join(sorted(unknown))}")
    include_prompt = _flag(name, "include_prompt", config.get("include_prompt"), default=True)
    return _pooling_modes(name, config), include_prompt


_POOLING_KEYS = frozenset(
    {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
)


def _pooling_modes(name: str, config: Mapping[str, Any]) -> tuple[Pooling, ...]:
    if "pooling_mode" not in config:
        return tuple(mode for flag, mode in _FLAGS.items() if config.get(flag)) or ("mean",)
    stated = config["pooling_mode"]
    modes = [stated] if isinstance(stated, str) else stated
    if not isinstance(modes, list) or not modes or not all(mode in _POOLINGS for mode in map(str, modes)):
        _refuse(name, f"pooling_mode is {stated!r}; known are {', '.join(_POOLINGS)}")
    return tuple(_POOLINGS[mode] for mode in modes)


# --- Dense, LayerNorm, Normalize


def _read_steps(
    folder: Path, before: Sequence[Module], after: Sequence[Module]
) -> tuple[tuple[Step, ...], dict[str, Weight]]:
    """Of the modules ``before`` the pooling, which see every token, and of those ``after`` it."""
    steps: list[Step] = []
    weights: dict[str, Weight] = {}
    for module in (*before, *after):
        name = f"head.{sum(not isinstance(step, Normalize) for step in steps)}"
        match module.kind:
            case "Dense":
                feature = "token_embeddings" if module in before else "sentence_embedding"
                steps.append(_read_dense(folder, module, name, feature, weights))
            case "LayerNorm":
                steps.append(LayerNorm(name=name, eps=_NORM_EPS))
                weights.update(_read_weights(folder, module, {f"{name}.{p}": f"norm.{p}" for p in _PARTS}))
            case "Normalize":
                _check_features(module, module.config(folder), "sentence_embedding")
                steps.append(Normalize())
            case "Dropout":
                pass  # the identity when a model is not in training
            case kind:
                _refuse(MODULES, f"{kind} is not served after Pooling (Dense, LayerNorm, Normalize are)")
    return tuple(steps), weights


_PARTS = ("weight", "bias")


def _read_dense(folder: Path, module: Module, name: str, feature: str, weights: dict[str, Weight]) -> Dense:
    """``feature`` is what it must read and write; its weights are added to ``weights`` under ``name``."""
    file = module.file("config.json")
    config = read_object(folder, file)
    _check_features(module, config, feature)
    wide, out = (_count(file, key, config.get(key)) for key in ("in_features", "out_features"))
    if wide is None or out is None:
        _refuse(file, "no in_features or out_features")
    residual = _flag(file, "use_residual", config.get("use_residual"), default=False)
    parts = _PARTS if _flag(file, "bias", config.get("bias"), default=True) else _PARTS[:1]
    rows = {f"{name}.{part}": f"linear.{part}" for part in parts}
    if residual and wide != out:
        rows[f"{name}.residual.weight"] = "residual.weight"
    found = _read_weights(folder, module, rows)
    for ours in rows.keys() - {f"{name}.bias"}:
        if found[ours].shape != (out, wide):
            _refuse(
                module.file(SINGLE),
                f"{rows[ours]} has the shape {found[ours].shape}, but config.json says {(out, wide)}",
            )
    weights.update(found)
    return Dense(name=name, out=out, act=_activation(file, config), residual=residual)


def _activation(file: str, config: Mapping[str, Any]) -> Act:
    stated = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    package, _, name = stated.rpartition(".") if isinstance(stated, str) else ("", "", "")
    if package.split(".")[0] != "torch" or name not in _ACTIVATIONS:
        _refuse(file, f"activation_function {stated!r}; known are torch's {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _check_features(module: Module, config: Mapping[str, Any], feature: str) -> None:
    """Absent, the input is the sentence_embedding, and the output is as the input."""
    read = config.get("module_input_name") or "sentence_embedding"
    written = config.get("module_output_name") or read
    for key, got in (("module_input_name", read), ("module_output_name", written)):
        if got != feature:
            _refuse(module.file("config.json"), f"{key} is {got!r}, need {feature!r}")


def _read_weights(folder: Path, module: Module, rows: Mapping[str, str]) -> dict[str, Weight]:
    file = module.file(SINGLE)
    if not (folder / file).exists():
        there = folder / module.path
        names = (path.name for path in there.iterdir()) if there.is_dir() else ()
        raise CheckpointError(no_weights(module.path, names))
    tensors = read_header(folder, file)
    if tensors.keys() != set(rows.values()):
        _refuse(
            file, f"holds {', '.join(sorted(tensors)) or 'nothing'}, need {', '.join(sorted(rows.values()))}"
        )
    return resolve(file, ((ours, view(theirs)) for ours, theirs in rows.items()), tensors, folder)


# --- prompts and plain values


def _read_prompts(config: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """Prompts as stored (null is ""), and the name of the one used when none is asked for."""
    stored = config.get("prompts") or {}
    if not isinstance(stored, dict) or not all(isinstance(text, str | None) for text in stored.values()):
        _refuse(CONFIG, f"prompts is {stored!r}, need an object of strings")
    prompts = {name: text or "" for name, text in stored.items()}
    default = config.get("default_prompt_name")
    if default is None:
        return prompts, None
    if not isinstance(default, str):
        _refuse(CONFIG, f"default_prompt_name is {default!r}, need a string")
    if default in ("query", "document"):
        prompts.setdefault(default, "")
    if default not in prompts:
        _refuse(
            CONFIG,
            f"default_prompt_name {default!r} is not among the prompts ({', '.join(prompts) or 'none'})",
        )
    return prompts, default


def _count(file: str, key: str, value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _refuse(file, f"{key} is {value!r}, need a positive integer")
    return value


def _flag(file: str, key: str, value: object, *, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        _refuse(file, f"{key} is {value!r}, need true or false")
    return value


def _refuse(file: str, what: str) -> NoReturn:
    raise CheckpointError(f"{file}: {what}. Use another revision or model; this one is not approximated.")
