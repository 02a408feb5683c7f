"""A Triton repository: configurations that Triton's own format accepts, steps that fit each other, right answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import bei
from bei.compiler.export.cli import export
from bei.compiler.export.triton import largest_batch, lengths, model_name
from bei.errors import BundleError
from bei.manifest import Limits, Profile, decode_manifest
from bei.runtime.bundle import open_bundle
from tests.compiler.export.triton_double import Request, read_config, tokenizer_step
from tests.consumers import needs_consumers
from tests.runtime.tiny import engine, seal, write_bundle

pytestmark = needs_consumers
NUMPY = {"TYPE_INT64": np.int64, "TYPE_INT32": np.int32, "TYPE_FP32": np.float32}


def repository(tmp_path: Path, **bundle: Any) -> tuple[Path, Path]:
    """The bundle and its export."""
    folder = write_bundle(tmp_path / "tiny.bundle", **bundle)
    export(open_bundle(folder), "triton", tmp_path / "models")
    return folder, tmp_path / "models"


def run(models: Path, request: Request) -> Any:
    """One request through the ensemble as its configuration wires it."""
    ensemble = read_config(models / "tiny" / "config.pbtxt")
    values: dict[str, Any] = {}
    for step in ensemble.ensemble_scheduling.step:
        config = read_config(models / step.model_name / "config.pbtxt")
        if config.backend == "python":
            with tokenizer_step(models / step.model_name) as model:
                (response,) = model.execute([request])
            assert response.error is None, response.error
            made = response.tensors
        else:
            made = engine_step(models, config, {n: values[v] for n, v in step.input_map.items()})
        assert set(made) == {output.name for output in config.output} == set(step.output_map)
        values |= {step.output_map[name]: array for name, array in made.items()}
    return {output.name: values[output.name] for output in ensemble.output}


def engine_step(models: Path, config: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    enum = config.DESCRIPTOR.file.enum_types_by_name["DataType"]
    for tensor in config.input:
        array = feeds[tensor.name]
        assert array.dtype == NUMPY[enum.values_by_number[tensor.data_type].name]
        assert fits(array.shape[1:], tensor.dims)
        if tensor.HasField("reshape"):
            feeds[tensor.name] = array.reshape(array.shape[0], *tensor.reshape.shape)
    session = onnxruntime.InferenceSession(models / config.name / "1" / "model.onnx")
    assert {value.name for value in session.get_inputs()} == set(feeds)
    outputs = [output.name for output in config.output]
    found = session.run(outputs, feeds)
    assert all(fits(a.shape[1:], o.dims) for a, o in zip(found, config.output, strict=True))
    return dict(zip(outputs, found, strict=True))


def fits(shape: tuple[int, ...], dims: Any) -> bool:
    return len(shape) == len(dims) and all(d in (-1, n) for n, d in zip(shape, dims, strict=True))


def test_an_ensemble_gives_the_bundles_vectors(tmp_path: Path) -> None:
    bundle, models = repository(tmp_path, max_length=7, max_batch_tokens=64)
    texts = ["hello world", "a b c d e f g h i j k l m n o p q r s t u v w", "Hello, wörld."]
    got = run(models, Request({"TEXT": [*texts]}))["sentence_embedding"]
    with bei.load(bundle) as model:
        np.testing.assert_allclose(got, model.encode(texts), atol=1e-6)


def test_pairs_for_a_reranker(tmp_path: Path) -> None:
    bundle, models = repository(tmp_path, task="rerank", labels=["yes"])
    got = run(models, Request({"TEXT": ["query", "query"], "TEXT_PAIR": ["hello", "world . a"]}))["logits"]
    with bei.load(bundle) as model:
        np.testing.assert_allclose(
            got[:, 0], model.rerank("query", ["hello", "world . a"], raw=True), atol=1e-6
        )


def test_token_labels_come_with_the_places_of_the_tokens(tmp_path: Path) -> None:
    bundle, models = repository(tmp_path, task="token-classify", labels=["a", "b", "c"])
    got = run(models, Request({"TEXT": ["hello world", "x"]}))
    with bei.load(bundle) as model:
        for row, want in enumerate(model.predict_tokens(["hello world", "x"], raw=True)):
            real = got["attention_mask"][row].astype(bool)
            np.testing.assert_allclose(got["logits"][row][real], want.scores, atol=1e-6)
            np.testing.assert_array_equal(got["offsets"][row][real], want.spans.offsets)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts(tmp_path: Path, include_prompt: bool) -> None:
    prompts = {"query": "query : ", "plain": ""}
    bundle, models = repository(
        tmp_path, prompts=prompts, default_prompt="query", include_prompt=include_prompt
    )
    default = run(models, Request({"TEXT": ["hello"]}))["sentence_embedding"]
    plain = run(models, Request({"TEXT": ["hello"]}, prompt_name="plain"))["sentence_embedding"]
    with bei.load(bundle) as model:
        np.testing.assert_allclose(default, model.encode(["hello"]), atol=1e-6)
        np.testing.assert_allclose(plain, model.encode(["hello"], prompt_name="plain"), atol=1e-6)
    assert not np.allclose(default, plain) or not include_prompt


def test_a_bad_request_gets_its_own_error(tmp_path: Path) -> None:
    _, models = repository(tmp_path)
    with tokenizer_step(models / "tiny_tokenizer") as step:
        bad = [
            Request({"TEXT": ["a"]}, prompt_name="nope"),
            Request({"TEXT": [b"\xff"]}),
            Request({"TEXT": ["a"]}),
        ]
        first, second, good = step.execute(bad)
    assert "prompt_name: 'nope' is unknown" in str(first.error)
    assert "utf-8" in str(second.error)
    assert good.error is None


def test_rows_are_padded_to_a_length_of_the_list_so_that_requests_can_be_batched(tmp_path: Path) -> None:
    _, models = repository(tmp_path, max_length=64)
    with tokenizer_step(models / "tiny_tokenizer") as step:
        one, other = step.execute([Request({"TEXT": ["a"]}), Request({"TEXT": ["a b c d e f g"]})])
    assert one.tensors["input_ids"].shape == other.tensors["input_ids"].shape == (1, 16)
    assert one.tensors["attention_mask"].sum() == 3


def test_every_batch_that_triton_can_make_is_within_the_budget() -> None:
    limits = Limits(max_length=512, max_batch_tokens=16384, max_batch=256)
    assert largest_batch(limits) * limits.max_length <= limits.max_batch_tokens
    assert largest_batch(Limits(max_length=8192, max_batch_tokens=8192, max_batch=8)) == 1
    assert lengths(512) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert lengths(9) == [9]
    assert model_name("my model (v1)") == "my-model-v1"


def test_a_plan_with_two_profiles(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny.bundle", max_length=512, max_batch_tokens=4096)
    (folder / "plan").write_bytes(b"not run here")
    plan = engine(
        "tensorrt-sm90",
        backend="tensorrt",
        device="cuda",
        path="plan",
        tool_versions={"tensorrt": "11.1.0"},
        profiles=tuple(Profile(max_batch=4096 // n, max_length=n, max_tokens=4096) for n in (128, 512)),
    )
    _with_engine(folder, plan)
    export(open_bundle(folder), "triton", tmp_path / "models")
    config = read_config(tmp_path / "models" / "tiny_engine" / "config.pbtxt")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 8)
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert [(w.batch_size, w.inputs["input_ids"].dims[0]) for w in config.model_warmup] == [(1, 16), (8, 512)]
    assert config.HasField("dynamic_batching")
    assert (tmp_path / "models" / "tiny_engine" / "1" / "model.plan").read_bytes() == b"not run here"
    with tokenizer_step(tmp_path / "models" / "tiny_tokenizer") as step:
        (answer,) = step.execute([Request({"TEXT": ["a"]})])
    assert {array.dtype for array in answer.tensors.values()} == {np.dtype(np.int32)}
    assert "TensorRT 11.1.0" in (tmp_path / "models" / "README.md").read_text()


@pytest.mark.parametrize(
    ("backend", "layout", "says"),
    [("tensorrt-rtx", "padded", "no back end for tensorrt-rtx"), ("tensorrt", "packed", "--layout padded")],
)
def test_engines_that_triton_cannot_run(tmp_path: Path, backend: str, layout: str, says: str) -> None:
    folder = write_bundle(tmp_path / "tiny.bundle")
    (folder / "plan").write_bytes(b"x")
    _with_engine(folder, engine("t", backend=backend, device="cuda", layout=layout, path="plan"))
    with pytest.raises(BundleError, match=says):
        export(open_bundle(folder), "triton", tmp_path / "models", target="t")
    assert not (tmp_path / "models").exists()


def test_the_request_in_the_readme_is_one_that_the_ensemble_takes(tmp_path: Path) -> None:
    _, models = repository(tmp_path, task="rerank", labels=["yes"])
    readme = (models / "README.md").read_text()
    body = json.loads(readme[readme.index("-d '") + 4 : readme.index("'\n\nThe answer")])
    config = read_config(models / "tiny" / "config.pbtxt")
    assert [i["name"] for i in body["inputs"]] == [i.name for i in config.input]
    assert all(fits(tuple(i["shape"][1:]), c.dims) for i, c in zip(body["inputs"], config.input, strict=True))
    assert {i["datatype"] for i in body["inputs"]} == {"BYTES"}


def _with_engine(folder: Path, record: Any) -> None:
    import msgspec

    manifest = decode_manifest((folder / "manifest.json").read_bytes(), "manifest")
    record = msgspec.structs.replace(record, inputs=manifest.engines[0].inputs)
    parity = msgspec.structs.replace(
        manifest.parity, verdicts={**manifest.parity.verdicts, record.target: "passed"}
    )
    seal(folder, msgspec.structs.replace(manifest, engines=(*manifest.engines, record), parity=parity))
