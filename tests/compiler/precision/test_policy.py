"""The policy: measured or written by hand, refused where it names what is not there, and never ignored in silence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.adapters.tiny import Loaded
from tests.compiler.parity.tiny import MINILM, embedder
from tests.compiler.precision.test_folding import (
    MEAN,
    inputs,
    large_stream,
    large_up,
    large_v,
    loaded,
    numbers,
    times,
)
from tokenizers import Tokenizer

from bei.adapters.head import Dense, Head
from bei.compiler.cli import main
from bei.compiler.engines import tensorrt
from bei.compiler.parity.texts import builtin
from bei.compiler.precision.calibration import COUNT, MAX_TOKENS, _spread, calibration_batches
from bei.compiler.precision.decide import compared_head, decide
from bei.compiler.precision.islands import Trial
from bei.compiler.precision.plan import BUDGET
from bei.compiler.precision.policy import (
    FP16_MAX,
    PLAIN,
    Mode,
    Policy,
    policy_of,
    read_policy,
    scalable,
    units,
)
from bei.errors import InputError, ParityError
from bei.runtime.bundle import open_bundle


def decided(model: Loaded, **options: Any) -> Policy:
    ids, mask = inputs(model)
    return decide(model.cfg, MEAN, model.weights, [numbers(ids, mask)], **options)


def outlying() -> Loaded:
    """llama with v at 1e5."""

    return replace(loaded("llama"), weights=times(loaded("llama").weights, large_v))


def test_auto_folds_what_is_too_large_and_says_why_and_what_it_reaches() -> None:
    policy = decided(outlying())
    assert policy.mode == "auto"
    assert policy.scales and not policy.islands
    assert set(policy.scales) <= scalable(outlying().cfg)
    for site in policy.scales:
        assert "reaches" in policy.reasons[site]
        assert policy.ranges[site] > 8188 >= policy.folded[site]
    assert policy.storage_cosine is not None and policy.storage_cosine >= 0.9999


def test_decisions_in_words() -> None:
    policy = Policy(
        stream=2.0**-6,
        scales={"layers.0.v": 0.25},
        islands={"layers.1.mlp": "bf16"},
        reasons={"layers.1.mlp": "it overflows"},
    )
    assert list(policy.decisions()) == [
        "stream × 2^-6",
        "layers.0.v × 2^-2",
        "layers.1.mlp in bf16: it overflows",
    ]
    assert not list(PLAIN.decisions())


def test_an_fp16_stream_where_it_was_tried_and_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = decided(loaded("llama"))
    assert policy.fp16_stream and not policy.islands
    assert policy.storage_cosine is not None and policy.storage_cosine >= 0.99999
    assert [line for line in policy.decisions() if "stream in fp16" in line and "cosine 0.99999" in line]
    assert not decided(loaded("llama"), search=False).fp16_stream
    assert not decided(loaded("bert")).fp16_stream  # its stored stream is a norm's output already

    real = Trial.cosine
    monkeypatch.setattr(Trial, "cosine", lambda self, p: 0.99995 if p.fp16_stream else real(self, p))
    policy = decided(loaded("llama"))
    assert not policy.fp16_stream and not policy.islands and policy.storage_cosine != 0.99995


def test_an_fp16_stream_is_scaled_into_its_range() -> None:
    model = replace(loaded("gemma3"), weights=times(loaded("gemma3").weights, large_stream(4e5)))
    policy = decided(model)
    assert policy.fp16_stream and policy.stream < 1
    assert max(policy.ranges.values()) > FP16_MAX and max(policy.folded.values()) <= BUDGET


def test_without_a_search_the_audit_alone_decides() -> None:
    policy = decided(outlying(), search=False)
    assert policy.scales and policy.storage_cosine is None


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_one_type_throughout(mode: Mode) -> None:
    policy = decided(loaded("llama"), mode=mode)
    assert policy.islands == dict.fromkeys(units(loaded("llama").cfg), mode)
    assert set(policy.reasons.values()) == {f"--precision {mode}"}


def test_fp16_has_scales_and_no_islands() -> None:

    model = loaded("bert")  # its hidden value cannot be folded
    model = replace(model, weights=times(model.weights, large_up))
    assert decided(model).islands
    assert not decided(model, mode="fp16").islands


@pytest.mark.parametrize("search", [True, False])
def test_what_cannot_be_scaled_and_has_no_headroom_left_is_wider_though_it_does_not_overflow(
    search: bool,
) -> None:
    """GELU's result is stored as it is: at 3e4 these texts pass in FP16, but others may not."""

    model = loaded("bert")
    factor = 3e4 / decided(model, search=False).ranges["layers.1.hidden"]
    up = {"layers.1.up.weight": factor, "layers.1.up.bias": factor, "layers.1.down.weight": 1 / factor}
    policy = decided(
        replace(model, weights=times(model.weights, lambda name: up.get(name, 1.0))), search=search
    )
    assert policy.islands == {"layers.1.mlp": "bf16"}
    assert "budget 8188, and cannot be scaled" in policy.reasons["layers.1.mlp"]
    assert 8188 < policy.ranges["layers.1.hidden"] < 65504


def test_heads_are_left_out_of_the_comparison() -> None:
    steps = (Dense(name="head.0", out=2, act="identity"),)
    assert compared_head(Head(task="classify", pooling=("cls",), steps=steps)).steps == ()
    assert compared_head(Head(task="embed", pooling=("cls",), steps=steps)).steps == steps


def test_a_file_by_hand_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(
        json.dumps({"stream": 0.5, "scales": {"layers.0.v": 0.25}, "islands": {"layers.1.mlp": "bf16"}})
    )
    policy = decided(outlying(), file=file)
    assert (policy.stream, policy.scales, policy.islands) == (
        0.5,
        {"layers.0.v": 0.25},
        {"layers.1.mlp": "bf16"},
    )
    assert policy.folded["layers.0.v"] == pytest.approx(policy.ranges["layers.0.v"] / 4)


def test_a_policy_from_a_manifest_is_one_by_hand(tmp_path: Path) -> None:
    found = decided(outlying())

    (tmp_path / "policy.json").write_bytes(msgspec.json.encode(found))
    again = decided(outlying(), file=tmp_path / "policy.json")
    assert (again.scales, again.stream, again.islands) == (found.scales, found.stream, found.islands)


BAD: list[tuple[object, str]] = [
    ({"scales": {"layers.9.v": 0.5}}, r"'layers\.9\.v' cannot carry a scale\. Known: layers\.0"),
    ({"scales": {"layers.0.gate": 0.5}}, r"'layers\.0\.gate' cannot carry a scale"),
    ({"scales": {"layers.0.v": 0.3}}, "need a power of two"),
    ({"scales": {"layers.0.v": 0}}, "need a power of two"),
    ({"scales": {"layers.0.v": -2}}, "need a power of two"),
    ({"stream": 3}, "stream has the scale 3"),
    ({"islands": {"layers.0.mlps": "fp32"}}, r"no unit 'layers\.0\.mlps'\. Known: layers\.0\.attention"),
    ({"islands": {"layers.0.mlp": "fp8"}}, "not a precision policy .*fp8"),
    ({"scale": {}}, "not a precision policy .*unknown field `scale`"),
    ([], "not a precision policy"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_what_a_file_gets_wrong_is_named(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_policy(file, loaded("llama").cfg)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_policy(tmp_path / "absent.json", loaded("llama").cfg)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="not a precision policy"):
        read_policy(tmp_path / "bytes.json", loaded("llama").cfg)


# calibration


def tokenizer() -> str:
    """As a bundle has it: without the file's own padding."""
    library = Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    library.no_padding()
    return library.to_str()


def rows(batches: Any) -> list[list[int]]:
    return [
        row[: keep.sum()].tolist() for ids, mask, _ in batches for row, keep in zip(ids, mask, strict=True)
    ]


@pytest.mark.parametrize("task", ["embed", "rerank", "token-classify"])
def test_the_built_in_set_has_every_kind_and_every_length(task: Any) -> None:
    whole = builtin(task, 256)
    chosen = _spread(whole)
    assert {sample.kind for sample in chosen} == {sample.kind for sample in whole}
    assert COUNT <= len(chosen) < 2 * COUNT
    lengths = [len(row) for row in rows(calibration_batches(tokenizer(), task, 256, 0))]
    assert min(lengths) <= (12 if task == "rerank" else 4) and max(lengths) == 256
    assert max(map(len, rows(calibration_batches(tokenizer(), task, 8192, 0)))) == MAX_TOKENS


def test_a_file_of_ones_own_replaces_it_whole(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(
        "\n".join([*(json.dumps(f"text number {i}") for i in range(90)), '{"text": "a", "pair": "b"}'])
    )
    batches = calibration_batches(tokenizer(), "classify", 64, 0, texts=file, tokens=5)
    assert len(rows(batches)) == 91, "a budget of tokens is for the built-in texts alone"
    assert sum(int(types.sum()) for _, _, types in batches) == 2, "b and its [SEP] are of the second kind"
    with pytest.raises(ParityError, match="cannot be read"):
        calibration_batches(tokenizer(), "embed", 64, 0, texts=tmp_path / "absent.txt")


# bei-compile


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedder(tmp_path_factory.mktemp("policy"))


@pytest.mark.skipif(tensorrt.available("tensorrt-rtx") is not None, reason="needs TensorRT-RTX")
def test_ones_own_texts_and_policy_reach_the_manifest(checkpoint: Path, tmp_path: Path) -> None:
    own, by_hand = tmp_path / "own.txt", tmp_path / "policy.json"
    own.write_text("one single text\n")
    by_hand.write_text(json.dumps({"islands": {"layers.0.mlp": "fp32"}}))

    def built(name: str, *options: str) -> Policy:
        out = tmp_path / name
        args = ["--repo", str(checkpoint), "--target", "tensorrt-rtx-sm89", "--no-parity", "--out", str(out)]
        assert main([*args, *options]) == 0
        return policy_of(open_bundle(out).manifest)

    default, texts, file = (
        built("a"),
        built("b", "--calibration", str(own)),
        built("c", "--policy", str(by_hand)),
    )
    assert default.ranges.keys() == texts.ranges.keys()
    assert all(texts.ranges[site] <= default.ranges[site] * 1.5 for site in default.ranges)
    assert any(not np.isclose(texts.ranges[site], default.ranges[site]) for site in default.ranges)
    assert file.islands == {"layers.0.mlp": "fp32"}
