"""The run-time guard, on bundles whose first engine gives NaN for one word and whose fp32 engine does not."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from tests.runtime.tiny import CLS, DIM, POISON, SEP, VOCAB, Array, engine, seal, weights, write_bundle

from bei.errors import EngineError
from bei.manifest import Task, Verdict
from bei.runtime.bundle import open_bundle
from bei.runtime.executor import Output, Row
from bei.runtime.executors import registry
from bei.runtime.model import Model, load
from bei.runtime.rescue import Rescue
from bei.runtime.service import Embedded, Service

CURE = np.linspace(-1, 1, DIM, dtype=np.float32)
SPARE = "onnxruntime-cpu-spare"


def with_spare(
    folder: Path, *, task: Task = "embed", cured: bool = True, verdict: Verdict = "passed"
) -> Path:
    """The engine that runs calls itself fp16; the spare one has another vector, or none, for the poisoned word."""
    labels = ["O", "PER"] if task == "token-classify" else []
    write_bundle(folder, task=task, labels=labels)
    tensors = load_file(folder / "model.safetensors")
    tensors["tokens"][POISON] = CURE if cured else np.inf
    save_file(tensors, folder / "spare.safetensors")
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "spare.safetensors"
    onnx.save(graph, folder / "spare.onnx")
    manifest = open_bundle(folder).manifest
    (first,) = manifest.engines
    engines = (
        msgspec.structs.replace(first, precision="fp16"),
        engine(SPARE, path="spare.onnx", inputs=first.inputs),
    )
    parity = msgspec.structs.replace(manifest.parity, verdicts={first.target: "passed", SPARE: verdict})
    names = (first.target, SPARE)
    seal(folder, msgspec.structs.replace(manifest, engines=engines, fallback=names, parity=parity))
    return folder


def rescued(ids: list[int]) -> Array:
    w = weights(0)
    w["tokens"][POISON] = CURE
    mean_D = (w["tokens"][ids] + w["types"][0]).mean(axis=0)
    return np.asarray(mean_D / np.linalg.norm(mean_D), np.float32)


def of_word(word: str) -> list[int]:
    return [CLS, VOCAB[word], SEP]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with load(with_spare(tmp_path / "b")) as loaded:
        yield loaded


def test_only_the_row_that_is_no_number_runs_again(model: Model) -> None:
    assert (model.target, model.rescue.spare and model.rescue.spare.target) == ("onnxruntime-cpu", SPARE)
    vectors = model.encode(["a", "poison", "b", "poison poison"])
    for vector, ids in zip(vectors, [of_word("a"), of_word("poison"), of_word("b")], strict=False):
        np.testing.assert_allclose(vector, rescued(ids), atol=1e-6)
    np.testing.assert_allclose(vectors[3], rescued([CLS, POISON, POISON, SEP]), atol=1e-6)
    assert (model.rescue.counts.non_finite, model.rescue.counts.rescued) == (2, 2)


def test_the_spare_engine_starts_when_it_is_needed_and_stays(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    create = registry.create

    def counted(path, record, *args, **kwargs):  # type: ignore[no-untyped-def]
        started.append(record.target)
        return create(path, record, *args, **kwargs)

    monkeypatch.setattr(registry, "create", counted)
    model.encode(["a", "b"])
    assert started == []
    model.encode(["poison"])
    model.encode(["poison"])
    assert started == [SPARE]


def test_token_scores_are_rescued_too(tmp_path: Path) -> None:
    with load(with_spare(tmp_path / "b", task="token-classify")) as model:
        healthy, poisoned = model.predict_tokens(["a", "a poison"], raw=True)
        want = (CURE + weights(2)["types"][0]) @ weights(2)["classifier"]
        np.testing.assert_allclose(poisoned.scores[2], want, atol=1e-5)
        np.testing.assert_allclose(healthy.scores[1], poisoned.scores[1], atol=1e-6)
        assert len(model.entities(["a poison"], strategy="none", ignore=())[0]) == 2
        assert model.rescue.counts.rescued == 2


def test_a_row_that_nothing_can_save_is_an_error_that_names_it(tmp_path: Path) -> None:
    with load(with_spare(tmp_path / "b", cured=False)) as model:
        with pytest.raises(
            EngineError, match=rf"for 2 of the rows \(1, 3\), and {SPARE} in fp32 gives no number"
        ):
            model.encode(["a", "poison", "b", "poison"])
        assert (model.rescue.counts.non_finite, model.rescue.counts.rescued) == (2, 0)
        assert np.isfinite(model.encode(["a", "b"])).all()


def test_an_engine_that_does_not_start_is_said(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EngineError("out of memory")

    monkeypatch.setattr(registry, "create", broken)
    with pytest.raises(
        EngineError, match=r"rows \(0\), and the fp32 engine could not run them: out of memory"
    ):
        model.encode(["poison"])


def test_an_unproven_engine_rescues_nobody_unless_allowed(tmp_path: Path) -> None:
    folder = with_spare(tmp_path / "b", verdict="failed")
    with load(folder) as model:
        assert model.rescue.spare is None
        with pytest.raises(EngineError, match=r"for 1 of the rows \(0\)\. Check"):
            model.encode(["poison"])
    with load(folder, allow_unverified=True) as model:
        assert np.isfinite(model.encode(["poison"])).all()


def test_the_spare_itself_has_no_other(tmp_path: Path) -> None:
    with load(with_spare(tmp_path / "b"), target=SPARE) as model:
        assert model.rescue.spare is None


def test_a_closed_model_has_closed_its_spare_engine(tmp_path: Path) -> None:
    model = load(with_spare(tmp_path / "b"))
    model.encode(["poison"])
    model.close()
    assert model.rescue.spare is None
    with pytest.raises(EngineError, match="closed"):
        model.encode(["poison"])


async def served(
    model: Model, *requests: list[str], patience: float | None = None
) -> list[Embedded | BaseException]:
    """What each request is answered; cancelled after ``patience`` seconds, as the HTTP layer does at a deadline."""
    service = Service(model, max_queue_tokens=10_000)
    service.start()
    try:
        asked = (service.embed(inputs, truncation=service.truncation()) for inputs in requests)
        patient = (asyncio.wait_for(request, patience) for request in asked)
        return await asyncio.gather(*patient, return_exceptions=True)
    finally:
        await service.close(5)


def test_served_requests_are_rescued(model: Model) -> None:
    one, two = asyncio.run(served(model, ["a", "poison"], ["b"]))
    assert isinstance(one, Embedded) and isinstance(two, Embedded)
    np.testing.assert_allclose(one.vectors[1], rescued(of_word("poison")), atol=1e-6)
    np.testing.assert_allclose(two.vectors[0], rescued(of_word("b")), atol=1e-6)
    assert model.rescue.counts.rescued == 1


def test_only_the_request_that_owns_the_row_fails(tmp_path: Path) -> None:
    with load(with_spare(tmp_path / "b", cured=False)) as model:
        fine, bad, also_fine = asyncio.run(served(model, ["a"], ["b", "poison"], ["c"]))
    assert isinstance(bad, EngineError) and "rows (1)" in str(bad)
    assert not isinstance(fine, BaseException) and not isinstance(also_fine, BaseException)


def test_a_rescue_does_not_outlast_the_clients_patience(model: Model) -> None:
    answered = threading.Event()

    class Slow(Rescue):
        def outputs(self, rows: Mapping[int, Row]) -> dict[int, Output]:
            answered.wait(60)
            return {}

    async def ask() -> list[Embedded | BaseException]:
        try:
            return await served(model, ["poison"], patience=0.5)
        finally:
            answered.set()

    model.rescue = Slow()
    (late,) = asyncio.run(ask())
    assert isinstance(late, asyncio.TimeoutError)
