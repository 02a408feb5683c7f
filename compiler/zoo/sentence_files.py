"""modules.json and the files of sentence-transformers' modules, for a stand-in."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bei.compiler.zoo.fact_files import CheckpointFacts, Pooling, SentenceFacts
from bei.compiler.zoo.shapes import TensorSpec, dimensions, size_of

_FLAGS: Mapping[str, Pooling | None] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": None,
    "pooling_mode_mean_sqrt_len_tokens": None,
}
_NEWER_FLAGS: Mapping[str, Pooling | None] = {
    "pooling_mode_weightedmean_tokens": None,
    "pooling_mode_lasttoken": "last",
}


def dense_tensors(facts: CheckpointFacts, config: Mapping[str, Any]) -> tuple[tuple[TensorSpec, ...], ...]:
    """The tensors of each Dense module, in order."""
    sizes = dimensions(config)
    return tuple(
        (
            TensorSpec(
                name="linear.weight",
                dtype=facts.dtype,
                shape=(size_of(dense.out_features, sizes), size_of(dense.in_features, sizes)),
            ),
        )
        for dense in (facts.sentence.dense if facts.sentence else ())
    )


def write_sentence_files(
    folder: Path, sentence: SentenceFacts, config: Mapping[str, Any], length: Callable[[int], int]
) -> None:
    """Write everything but the weights; ``length`` shrinks a limit in tokens. Normalize has no files at all."""
    sizes = dimensions(config)
    _write(folder / "modules.json", _modules(sentence))
    tokens = sentence.max_seq_length
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": None if tokens is None else length(tokens), "do_lower_case": False},
    )
    _write(folder / "config_sentence_transformers.json", _settings(sentence))
    _write(folder / "1_Pooling" / "config.json", _pooling(sentence, size_of(sentence.width, sizes)))
    for number, dense in enumerate(sentence.dense, 2):
        shape = {
            "in_features": size_of(dense.in_features, sizes),
            "out_features": size_of(dense.out_features, sizes),
        }
        module = {**shape, "bias": False, "activation_function": dense.activation}
        _write(folder / f"{number}_Dense" / "config.json", module)


def _modules(sentence: SentenceFacts) -> list[dict[str, Any]]:
    return [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(sentence.modules)
    ]


def _settings(sentence: SentenceFacts) -> dict[str, Any]:
    """Without prompts, as versions before 2.4 wrote it, where the facts say so."""
    settings: dict[str, Any] = {"__version__": sentence.saved_with} if sentence.saved_with else {}
    if sentence.prompts is not None:
        settings |= {
            "prompts": sentence.prompts,
            "default_prompt_name": None,
            "similarity_fn_name": sentence.similarity,
        }
    return settings


def _pooling(sentence: SentenceFacts, width: int) -> dict[str, Any]:
    newer = sentence.pooling == "last" or sentence.include_prompt is not None
    flags = {**_FLAGS, **_NEWER_FLAGS} if newer else _FLAGS
    config: dict[str, Any] = {"word_embedding_dimension": width}
    config |= {flag: mode == sentence.pooling for flag, mode in flags.items()}
    if newer:
        config["include_prompt"] = sentence.include_prompt is not False
    return config


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
