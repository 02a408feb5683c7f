"""A Baseten Truss `config.yaml` as a request to compile: what it asks for, and what has no effect here.

https://docs.baseten.co/engines/bei/bei-reference: `trt_llm.build` of an encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bei.errors import CheckpointError

BASE_MODELS = ("encoder_bert", "encoder")
ROUTES = ("/v1/embeddings", "/rerank", "/predict", "/predict_tokens")
MAX_TOKENS = (65, 1_048_576)
MAX_BATCH = (1, 2048)

_BUILD_KEYS = frozenset(
    {"base_model", "checkpoint_repository", "max_num_tokens", "max_batch_size", "quantization_type"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrussRequest:
    """``max_batch_tokens`` from max_num_tokens, ``max_batch`` from max_batch_size; None where not stated.

    ``warnings`` name the keys that were read but change nothing.
    """

    repo: str
    revision: str | None
    max_batch_tokens: int | None
    max_batch: int | None
    default_route: str | None
    warnings: tuple[str, ...]


def read_truss(path: Path) -> TrussRequest:
    """Read a Truss config; raises CheckpointError for anything that an encoder cannot honour."""
    config = _load(path)
    trt_llm = _section(path, config, "trt_llm", required=True)
    build = _section(path, trt_llm, "build", required=True, prefix="trt_llm.")
    runtime = _section(path, trt_llm, "runtime", prefix="trt_llm.")
    _check_base_model(path, build)
    _check_quantization(path, build)
    repo, revision, ignored = _repository(path, build)
    return TrussRequest(
        repo=repo,
        revision=revision,
        max_batch_tokens=_number(path, build, "max_num_tokens", *MAX_TOKENS),
        max_batch=_number(path, build, "max_batch_size", *MAX_BATCH),
        default_route=_route(path, runtime),
        warnings=(*ignored, *_without_effect(config, trt_llm, build, runtime)),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: need a Truss config (a mapping), got {type(value).__name__}.")
    return value


def _section(
    path: Path, parent: Mapping[str, Any], key: str, *, required: bool = False, prefix: str = ""
) -> dict[str, Any]:
    value = parent.get(key)
    if value is None and not required:
        return {}
    if not isinstance(value, dict):
        what = "is missing" if value is None else f"is {value!r}, need a mapping"
        raise CheckpointError(f"{path}: {prefix}{key} {what}. Give a Truss config with trt_llm.build.")
    return value


def _check_base_model(path: Path, build: Mapping[str, Any]) -> None:
    stated = build.get("base_model")
    if stated not in BASE_MODELS:
        raise CheckpointError(
            f"{path}: base_model is {stated!r}, need {' or '.join(BASE_MODELS)}. Only encoders are compiled here."
        )


def _check_quantization(path: Path, build: Mapping[str, Any]) -> None:
    stated = build.get("quantization_type")
    if stated not in (None, "no_quant"):
        raise CheckpointError(
            f"{path}: quantization_type is {stated!r}, need no_quant. Engines are FP16 with FP32 where it matters, "
            "proven against Hugging Face; quantised weights would not pass that proof."
        )


def _repository(path: Path, build: Mapping[str, Any]) -> tuple[str, str | None, tuple[str, ...]]:
    section = _section(path, build, "checkpoint_repository", required=True, prefix="trt_llm.build.")
    source, repo, revision = section.get("source"), section.get("repo"), section.get("revision")
    if not isinstance(repo, str) or not repo.strip():
        raise CheckpointError(f"{path}: checkpoint_repository.repo is {repo!r}, need a Hub id or a folder.")
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError(f"{path}: checkpoint_repository.revision is {revision!r}. Put it in quotes.")
    ignored = sorted(section.keys() - {"source", "repo", "revision"})
    notes = tuple(
        f"checkpoint_repository.{key} has no effect; the Hub token comes from HF_TOKEN." for key in ignored
    )
    if source == "HF":
        return repo, revision or None, notes
    folder = path.parent / repo
    if not folder.is_dir():
        raise CheckpointError(
            f"{path}: checkpoint_repository.source is {source!r}, need HF. Download the checkpoint, put the folder's "
            "path in repo (or pass it as --repo), and try again."
        )
    stated = f"source {source!r} is not contacted: {folder} is a folder and is used."
    return str(folder), None, (*notes, f"checkpoint_repository.{stated}")


def _number(path: Path, build: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    value = build.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CheckpointError(f"{path}: {key} is {value!r}, need an integer from {low} to {high}.")
    return value


def _route(path: Path, runtime: Mapping[str, Any]) -> str | None:
    value = runtime.get("webserver_default_route")
    if value is not None and value not in ROUTES:
        raise CheckpointError(
            f"{path}: webserver_default_route is {value!r}, need one of {', '.join(ROUTES)}."
        )
    return None if value is None else str(value)


def _without_effect(
    config: Mapping[str, Any],
    trt_llm: Mapping[str, Any],
    build: Mapping[str, Any],
    runtime: Mapping[str, Any],
) -> list[str]:
    unused = [f"trt_llm.{key}" for key in sorted(trt_llm.keys() - {"build", "runtime"})]
    unused += [f"trt_llm.build.{key}" for key in sorted(build.keys() - _BUILD_KEYS)]
    unused += [f"trt_llm.runtime.{key}" for key in sorted(runtime.keys() - {"webserver_default_route"})]
    notes = [f"{key} has no effect for encoders." for key in unused]
    others = sorted(str(key) for key in config.keys() - {"trt_llm"})
    if others:
        notes.append(f"{', '.join(others)}: about a deployment, no effect on compiling.")
    return notes
