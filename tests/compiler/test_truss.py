"""Baseten Truss configs as build requests."""

from pathlib import Path

import pytest

from bei.compiler.truss import TrussRequest, read_truss
from bei.errors import CheckpointError

WHOLE = """
model_name: my-embeddings
resources: {accelerator: H100, use_gpu: true}
trt_llm:
  build:
    base_model: encoder_bert
    checkpoint_repository:
      source: HF
      repo: acme/tiny
      revision: refs/pr/5
      runtime_secret_name: hf_access_token
    max_num_tokens: 16384
    max_batch_size: 32
    quantization_type: no_quant
    plugin_configuration: {paged_kv_cache: false}
  runtime:
    webserver_default_route: /v1/embeddings
    kv_cache_free_gpu_mem_fraction: 0.9
    batch_scheduler_policy: guaranteed_no_evict
"""

LEAST = "trt_llm: {build: {base_model: encoder, checkpoint_repository: {source: HF, repo: acme/tiny}}}"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, "utf-8")
    return path


def build(**changes: str) -> str:
    """LEAST with further or other keys of trt_llm.build, as YAML text."""
    keys = {"base_model": "encoder", "checkpoint_repository": "{source: HF, repo: acme/tiny}", **changes}
    return "trt_llm: {build: {" + ", ".join(f"{key}: {value}" for key, value in keys.items()) + "}}"


def test_a_whole_config(tmp_path: Path) -> None:
    request = read_truss(write(tmp_path, WHOLE))
    assert (request.repo, request.revision) == ("acme/tiny", "refs/pr/5")
    assert (request.max_batch_tokens, request.max_batch) == (16384, 32)
    assert request.default_route == "/v1/embeddings"
    assert request.warnings == (
        "checkpoint_repository.runtime_secret_name has no effect; the Hub token comes from HF_TOKEN.",
        "trt_llm.build.plugin_configuration has no effect for encoders.",
        "trt_llm.runtime.batch_scheduler_policy has no effect for encoders.",
        "trt_llm.runtime.kv_cache_free_gpu_mem_fraction has no effect for encoders.",
        "model_name, resources: about a deployment, no effect on compiling.",
    )


def test_the_least_config(tmp_path: Path) -> None:
    assert read_truss(write(tmp_path, LEAST)) == TrussRequest(
        repo="acme/tiny",
        revision=None,
        max_batch_tokens=None,
        max_batch=None,
        default_route=None,
        warnings=(),
    )


def test_another_source_only_where_a_folder_is_there(tmp_path: Path) -> None:
    path = write(tmp_path, build(checkpoint_repository="{source: GCS, repo: weights}"))
    with pytest.raises(CheckpointError, match=r"source is 'GCS', need HF. Download the checkpoint"):
        read_truss(path)
    (tmp_path / "weights").mkdir()
    request = read_truss(path)
    assert request.repo == str(tmp_path / "weights")
    assert request.warnings[0].startswith("checkpoint_repository.source 'GCS' is not contacted")


@pytest.mark.parametrize(
    ("key", "low", "high"), [("max_num_tokens", 65, 1_048_576), ("max_batch_size", 1, 2048)]
)
def test_ranges(tmp_path: Path, key: str, low: int, high: int) -> None:
    for value in (low, high):
        request = read_truss(write(tmp_path, build(**{key: str(value)})))
        assert value in (request.max_batch_tokens, request.max_batch)
    for wrong in (str(low - 1), str(high + 1), "'100'", "true", "99.5", "[100]"):
        with pytest.raises(CheckpointError, match=f"{key} is .*, need an integer from {low} to {high}"):
            read_truss(write(tmp_path, build(**{key: wrong})))


@pytest.mark.parametrize(
    "kind", ["fp8", "fp8_kv", "fp4", "fp4_mlp_only", "smooth_quant", "weights_int8", "true"]
)
def test_quantised_types_are_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match=r"quantization_type is .*, need no_quant\. Engines are FP16"):
        read_truss(write(tmp_path, build(quantization_type=kind)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "need a Truss config .* got NoneType"),
        ("- a", "need a Truss config .* got list"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        ("a: 1", "trt_llm is missing"),
        ("trt_llm: 1", "trt_llm is 1, need a mapping"),
        ("trt_llm: {}", "trt_llm.build is missing"),
        ("trt_llm: {build: [], runtime: {}}", r"trt_llm.build is \[\], need a mapping"),
        ("trt_llm: {build: {}}", "base_model is None, need encoder_bert or encoder"),
        (build(base_model="decoder"), "base_model is 'decoder', need encoder_bert or encoder"),
        (build(checkpoint_repository="x"), "checkpoint_repository is 'x', need a mapping"),
        (build(checkpoint_repository="{source: HF}"), "repo is None, need a Hub id"),
        (build(checkpoint_repository="{source: HF, repo: 7}"), "repo is 7, need a Hub id"),
        (
            build(checkpoint_repository="{source: HF, repo: a/b, revision: 123}"),
            "revision is 123. Put it in quotes",
        ),
        (build(checkpoint_repository="{source: S3, repo: a/b}"), "source is 'S3', need HF"),
        (build(checkpoint_repository="{repo: a/b}"), "source is None, need HF"),
        (
            LEAST[:-1] + ", runtime: {webserver_default_route: /v1/chat}}",
            "'/v1/chat', need one of /v1/embeddings",
        ),
        (LEAST[:-1] + ", runtime: 3}", "trt_llm.runtime is 3, need a mapping"),
    ],
)
def test_refuses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_truss(write(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_truss(tmp_path / "absent.yaml")
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(CheckpointError, match="not valid YAML"):
        read_truss(tmp_path / "config.yaml")
