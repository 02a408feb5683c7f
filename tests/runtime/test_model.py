"""The Python API on real tiny bundles: every task, every promise of the docstrings."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.tiny import CLS, DIM, SEP, VOCAB, engine, expected, seal, write_bundle

import bei
from bei.errors import BundleError, EngineError, InputError
from bei.manifest import ParityRecord, decode_manifest
from bei.runtime import pipeline
from bei.runtime.executor import Row
from bei.runtime.model import Model, load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write_bundle(
        tmp_path_factory.mktemp("model") / "b", prompts={"query": "query: ", "empty": ""}, matryoshka=(2, 4)
    )
    return bei.load(folder)


def ids(text: str) -> list[int]:
    return [CLS, *(VOCAB[word] for word in text.split()), SEP]


def test_vectors_are_what_the_graph_defines(model: Model) -> None:
    texts = ["hello", "a b c d e f g", "world hello", "z"]
    vectors = model.encode(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [expected(ids(text)) for text in texts], atol=1e-6)


def test_one_string_gives_one_vector_as_in_sentence_transformers(model: Model) -> None:
    assert model.encode("hello").shape == (DIM,)
    assert model.encode(["hello"]).shape == (1, DIM)
    assert model.encode([]).shape == (0, DIM)
    assert model.encode(tuple(np.array(["a", "b"]))).shape == (2, DIM)


def test_order_survives_chunks_and_batches(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CHUNK", 7)
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 14))) for _ in range(100)]
    alone = np.stack([model.encode(text) for text in texts])
    np.testing.assert_allclose(model.encode(texts), alone, atol=1e-6)
    np.testing.assert_allclose(model.encode(texts, batch_tokens=20), alone, atol=1e-6)


def test_prompts(model: Model) -> None:
    asked = expected(ids("query : a"))
    np.testing.assert_allclose(model.encode("a", prompt_name="query"), asked, atol=1e-6)
    np.testing.assert_allclose(model.encode("a", prompt="query: "), asked, atol=1e-6)
    np.testing.assert_allclose(model.encode("a", prompt_name="empty"), expected(ids("a")), atol=1e-6)
    with pytest.raises(InputError, match="prompt_name: 'passage' is unknown; tiny has empty, query"):
        model.encode("a", prompt_name="passage")


def test_a_default_prompt_applies_unless_another_is_named(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", prompts={"query": "query: ", "none": ""}, default_prompt="query")
    with load(folder) as model:
        np.testing.assert_allclose(model.encode("a"), expected(ids("query : a")), atol=1e-6)
        np.testing.assert_allclose(model.encode("a", prompt_name="none"), expected(ids("a")), atol=1e-6)


def test_a_prompt_can_stay_out_of_the_pooling(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", prompts={"query": "query: "}, include_prompt=False)
    with load(folder) as model:
        (asked,) = model.encode(["a b"], prompt_name="query")
    np.testing.assert_allclose(asked, expected(ids("query : a b"), skip=3), atol=1e-6)


def test_a_prompt_and_token_ids_exclude_each_other(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", prompts={"query": "query: "}, default_prompt="query")
    with load(folder) as model:
        asked: Any
        for asked in ({"prompt_name": "query"}, {"prompt": "query: "}):
            for given in ([5, 6], (5, 6), np.array([5, 6])):
                with pytest.raises(InputError, match="input 1: token ids are used exactly as they are"):
                    model.encode(["a", given], **asked)
        np.testing.assert_allclose(model.encode([[5, 6]])[0], expected([5, 6]), atol=1e-6)
        assert len(model.encode([("a", "b"), "c"], prompt_name="query")) == 2


def test_dimensions_and_normalize(model: Model) -> None:
    full = expected(ids("hello"))
    np.testing.assert_allclose(
        model.encode("hello", dimensions=2), full[:2] / np.linalg.norm(full[:2]), atol=1e-6
    )
    with pytest.raises(InputError, match="trained for 2, 4, 8"):
        model.encode("hello", dimensions=3)
    with pytest.raises(InputError, match="normalize: false"):
        model.encode("hello", normalize=False)


def test_token_ids_are_run_exactly(model: Model) -> None:
    np.testing.assert_allclose(model.encode([[5, 6], "a"])[0], expected([5, 6]), atol=1e-6)


def test_long_texts_are_cut(model: Model) -> None:
    text = "a b c d e f g h i j k l m n o p q r"
    np.testing.assert_allclose(model.encode(text), expected([*ids(text)[:15], SEP]), atol=1e-6)


@pytest.mark.parametrize(
    "bad", [[3.5], ["a", None], ["a", ["x", "y", "z"]], 7, None, b"ab", {"a": "b"}, [[10**6]], ["\ud800"]]
)
def test_bad_inputs_raise_before_anything_is_returned(model: Model, bad: Any) -> None:
    with pytest.raises(InputError):
        model.encode(bad)


def test_the_index_named_is_the_callers(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CHUNK", 2)
    with pytest.raises(InputError, match="input 3: got float"):
        model.encode(["a", "a b c d", "a b", 1.5, "a b c"])  # type: ignore[list-item]


def test_a_row_that_is_not_finite_is_an_error_naming_it(model: Model) -> None:
    with pytest.raises(EngineError, match=r"NaN or infinity for 1 of the rows \(1\)"):
        model.encode(["a", "poison", "b"])


def test_the_wrong_task_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="tiny: made for 'embed', this call needs rerank"):
        model.rerank("a", ["b"])


def test_rerank(tmp_path: Path) -> None:
    with load(write_bundle(tmp_path / "b", task="rerank", labels=["score"])) as model:
        pair, types = [CLS, VOCAB["a"], SEP, VOCAB["b"], VOCAB["c"], SEP], [0, 0, 0, 1, 1, 1]
        logit = expected(pair, types, task="rerank", classes=1)[0]
        raw = model.rerank("a", ["b c", "d"], raw=True)
        assert raw.shape == (2,)
        np.testing.assert_allclose(raw[0], logit, atol=1e-5)
        np.testing.assert_allclose(model.rerank("a", ["b c"]), [1 / (1 + np.exp(-logit))], atol=1e-5)
        with pytest.raises(InputError, match="input 1: got int, need a query and a text"):
            model.rerank("a", ["b", 5])  # type: ignore[list-item]
        assert model.rerank("a", []).shape == (0,)


def test_classification(tmp_path: Path) -> None:
    with load(write_bundle(tmp_path / "b", task="classify", labels=["x", "y", "z"])) as model:
        logits = expected(ids("hello"), task="classify", classes=3)
        np.testing.assert_allclose(model.predict("hello", raw=True), logits, atol=1e-5)
        exp = np.exp(logits - logits.max())
        np.testing.assert_allclose(model.predict(["hello"])[0], exp / exp.sum(), atol=1e-5)


def test_token_classification(tmp_path: Path) -> None:
    with load(write_bundle(tmp_path / "b", task="token-classify", labels=["x", "y"])) as model:
        long, short = model.predict_tokens(["hello world a", "b"], raw=True)
        want = expected(ids("hello world a"), task="token-classify", classes=2)
        np.testing.assert_allclose(long.scores, want, atol=1e-5)
        assert short.scores.shape == (3, 2)
        assert long.spans.offsets[1].tolist() == [0, 5]
        np.testing.assert_allclose(model.predict_tokens(["b"])[0].scores.sum(axis=1), 1, rtol=1e-5)


def test_several_threads_share_a_model(model: Model) -> None:
    texts = [f"{a} {b}" for a in "abcdef" for b in "ghijkl"]
    want = model.encode(texts)
    got: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: got.update({n: model.encode(texts)})) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(6):
        np.testing.assert_allclose(got[n], want, atol=1e-6)


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    model = load(write_bundle(tmp_path / "b"))
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.encode("a")


def test_an_unproven_bundle_needs_permission(tmp_path: Path) -> None:
    folder = write_bundle(
        tmp_path / "b", parity=ParityRecord(file=None, verdicts={"onnxruntime-cpu": "failed"})
    )
    with pytest.raises(BundleError, match="parity verdict is 'failed'"):
        load(folder)
    with load(folder, allow_unverified=True) as model:
        assert model.encode("a").shape == (DIM,)


@pytest.fixture
def broken_first(tmp_path: Path) -> Path:
    """The first engine of the chain is there and should run, but its file is no graph."""
    records = (engine("fast", path="fast.onnx"), engine())
    verdicts = ParityRecord(file=None, verdicts={"fast": "passed", "onnxruntime-cpu": "passed"})
    folder = write_bundle(
        tmp_path / "b", engines=records, fallback=tuple(r.target for r in records), parity=verdicts
    )
    (folder / "fast.onnx").write_bytes(b"no graph")
    seal(folder, decode_manifest((folder / "manifest.json").read_bytes(), "manifest"))
    return folder


def test_an_engine_that_cannot_be_started_is_passed_over_for_the_next(broken_first: Path) -> None:
    with load(broken_first) as model:
        assert model.target == "onnxruntime-cpu"
        (skipped,) = model.choice.skipped
        assert skipped.target == "fast"
        assert "onnxruntime cannot load fast.onnx" in skipped.reason
        np.testing.assert_allclose(model.encode("hello"), expected(ids("hello")), atol=1e-6)


def test_an_engine_that_was_asked_for_is_not_replaced_by_another(broken_first: Path) -> None:
    with pytest.raises(EngineError, match=r"fast: onnxruntime cannot load fast\.onnx"):
        load(broken_first, target="fast")


def test_when_no_engine_starts_every_reason_is_given(broken_first: Path) -> None:
    manifest = decode_manifest((broken_first / "manifest.json").read_bytes(), "manifest")
    (broken_first / "model.onnx").write_bytes(b"no graph either")
    seal(broken_first, manifest)
    with pytest.raises(
        BundleError, match=r"(?s)fast: .*cannot load fast.onnx.*onnxruntime-cpu: .*model.onnx"
    ):
        load(broken_first)


def test_executors_are_called_one_at_a_time(model: Model) -> None:
    busy = threading.Lock()

    class Single:
        target = "single"
        concurrency = 1

        def run(self, rows: list[Row]) -> Sequence[Any]:
            assert busy.acquire(blocking=False), "two calls at once"
            try:
                return [np.full(DIM, len(row.ids), np.float32) for row in rows]
            finally:
                busy.release()

        def describe(self) -> dict[str, Any]:
            return {}

        def close(self) -> None: ...

    fake = Model(model.bundle, model.choice, model.tokenizer, Single())
    threads = [threading.Thread(target=fake.encode, args=(["a", "b c"] * 50,)) for _ in range(8)]
    failures: list[Any] = []
    threading.excepthook, before = failures.append, threading.excepthook
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert not failures


def test_batches_can_be_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, sizes = ["a b c d", "a", "a b", "b c d e f"] * 20, []
    with bei.load(write_bundle(tmp_path / "b")) as model:
        before, run = model.encode(texts), model.executor.run

        def watched(rows: list[Row]) -> Any:
            sizes.append(len(rows) * max(len(row.ids) for row in rows))
            return run(rows)

        monkeypatch.setattr(model.executor, "run", watched)
        model.limit_batches(20)
        assert model.encode(texts) == pytest.approx(before, abs=1e-6)
        assert 10 < max(sizes) <= 20
        with pytest.raises(
            InputError, match=r"max_batch_tokens: got 257, tiny was compiled for at most 256\."
        ):
            model.limit_batches(257)
