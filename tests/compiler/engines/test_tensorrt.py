"""Real builds with TensorRT-RTX, which needs no GPU to build; what is claimed about them is read from the builder."""

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest

from bei.compiler.engines import tensorrt
from bei.compiler.engines.tensorrt import Built, TensorRtOptions
from bei.compiler.engines.tensorrt_table import BACKENDS
from bei.compiler.lowering.emit import EmittedGraph
from bei.compiler.weights import Weight
from bei.errors import EngineError
from tests.compiler.engines.small import BERT, WINDOWED, graph, options, random_weights

REASON = tensorrt.available("tensorrt-rtx")
rtx = pytest.mark.skipif(REASON is not None, reason=str(REASON))
FOUR = "tensorrt-rtx-sm80+sm86+sm89+sm120"


def build(emitted: EmittedGraph, choice: TensorRtOptions, folder: Path) -> Built:
    return tensorrt.build(emitted.serialize(), emitted.weights, choice, folder / "plan")


@rtx
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_bert_for_four_sms_in_one_plan(layout: Literal["padded", "packed"], tmp_path: Path) -> None:
    built = build(graph(BERT, tmp_path, layout), options(FOUR, layout), tmp_path)
    proof = built.evidence
    assert built.plan_path.stat().st_size == proof["plan_bytes"] > 100_000
    assert built.tool_versions["tensorrt-rtx"].startswith("1.")
    assert (proof["attention_layers"], proof["fused_attention"], proof["unfused_attention"]) == (2, 2, [])
    assert proof["kernels_per_layer"] == [9]
    assert len(proof["gemm_accumulation"]) == 12
    assert set(proof["gemm_accumulation"].values()) == {"fp32"}
    assert proof["gemm_weights"] == dict.fromkeys(proof["gemm_accumulation"], "Half")
    assert proof["attention_accumulation"] == {f"layers.{i}.attention": ["fp32", "fp32"] for i in range(2)}
    matrices = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert proof["weight_bytes"]["Half"] >= 2 * matrices
    assert proof["weight_bytes"]["Float"] < 4 * matrices
    assert proof["warnings"] == []
    assert proof["decomposable_retry"] is False
    (profile,) = built.profiles
    assert (profile.max_batch, profile.max_length, profile.max_tokens) == (4, 64, 256)
    assert profile.activation_bytes


@rtx
def test_grouped_queries_rotary_positions_and_a_window_stay_fused(tmp_path: Path) -> None:
    built = build(graph(WINDOWED, tmp_path, "padded"), options("tensorrt-rtx-sm89"), tmp_path)
    assert built.evidence["fused_attention"] == 2
    assert set(built.evidence["gemm_accumulation"].values()) == {"fp32"}
    assert list(built.evidence["attention_accumulation"].values()) == [["fp32", "fp32"]] * 2


@rtx
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_norms_of_heads_and_a_causal_mask_cost_one_kernel(
    layout: Literal["padded", "packed"], tmp_path: Path
) -> None:
    """The norms' statistics; the mask has none."""
    normed = replace(WINDOWED, layers=WINDOWED.layers[:1] * 2, causal=True)
    plain = replace(normed, qk_norm=None)
    found = [
        build(graph(cfg, tmp_path, layout), options("tensorrt-rtx-sm89", layout), tmp_path).evidence
        for cfg in (normed, plain)
    ]
    assert [proof["kernels_per_layer"] for proof in found] == [[11], [10]]
    assert found[0]["kernels"] - found[1]["kernels"] == 2
    assert [list(proof["attention_accumulation"].values()) for proof in found] == [[["fp32", "fp32"]] * 2] * 2


@rtx
def test_a_lost_fusion_is_an_error_that_names_the_layers_and_the_retry(tmp_path: Path) -> None:
    """There is no kernel for heads of 512; the retry builds, but scores go through memory."""
    wide = replace(BERT, head_dim=512, layers=BERT.layers[:1], dim=64)
    emitted = graph(wide, tmp_path, "padded")
    with pytest.raises(EngineError) as refusal:
        build(emitted, options("tensorrt-rtx-sm89"), tmp_path)
    assert "1 of 1 attentions were not fused into one kernel: layers.0.attention" in str(refusal.value)
    assert "TRT_decomposable was tried" in str(refusal.value)
    assert not (tmp_path / "plan").exists()
    accepted = build(emitted, options("tensorrt-rtx-sm89", allow_unfused=True), tmp_path).evidence
    assert (accepted["fused_attention"], accepted["unfused_attention"]) == (0, ["layers.0.attention"])
    assert accepted["decomposable_retry"] is True


@rtx
def test_fp16_products_are_reported_as_the_librarys_choice(tmp_path: Path) -> None:
    """The evidence tells a graph without the casts from one with them."""
    emitted = graph(BERT, tmp_path, "padded", accumulate32=False)
    proof = build(emitted, options("tensorrt-rtx-sm89"), tmp_path).evidence
    assert set(proof["gemm_accumulation"].values()) == {"library's choice"}
    assert all("fp16" in pair for pair in proof["attention_accumulation"].values())


@rtx
def test_weights_come_from_the_mapped_file_and_scales_and_slices_apply(tmp_path: Path) -> None:
    """A row slice at an odd offset and a derived array give the very plan that whole tensors give."""
    emitted = graph(BERT, tmp_path, "padded")
    whole = build(emitted, options("tensorrt-rtx-sm89"), tmp_path).plan_path.read_bytes()
    shifted = {name: shift(weight, tmp_path / f"{name}.bin") for name, weight in emitted.weights.items()}
    other = tensorrt.build(
        emitted.serialize(), shifted, options("tensorrt-rtx-sm89"), tmp_path / "other"
    ).plan_path.read_bytes()
    half = emitted.weights["layers.0.down.weight"].stored().astype(np.float16).tobytes()
    assert half in whole
    assert half in other
    assert len(other) == len(whole)


def shift(weight: Weight, file: Path) -> Weight:
    """The same weight 3 bytes into a file of its own: no alignment at all."""
    file.write_bytes(b"\0\0\0" + weight.stored().tobytes() + b"\0")
    return replace(weight, folder=file.parent, file=file.name, offset=3)


@rtx
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_several_profiles_and_a_timing_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's way, tried on the library that is here."""
    row = replace(BACKENDS["tensorrt-rtx"], timing_cache=True)
    monkeypatch.setitem(BACKENDS, "tensorrt-rtx", row)
    choice = options(
        "tensorrt-rtx-sm89",
        "packed",
        max_batch=32,
        max_batch_tokens=128,
        timing_cache=tmp_path / "timing.cache",
    )
    built = build(graph(BERT, tmp_path, "packed"), choice, tmp_path)
    proof = built.evidence
    assert (tmp_path / "timing.cache").exists()
    assert [(p.max_batch, p.max_length) for p in built.profiles] == [(8, 16), (2, 64)]
    assert all(p.activation_bytes for p in built.profiles)
    assert (proof["fused_attention"], proof["kernels_per_layer"]) == (2, [9])


@rtx
def test_the_parsers_words_reach_the_user(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    model = onnx.ModelProto.FromString(emitted.serialize())
    next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Gelum"
    with pytest.raises(EngineError, match=r"tensorrt-rtx-sm89: the parser refused the graph: .*Gelum"):
        tensorrt.build(
            model.SerializeToString(), emitted.weights, options("tensorrt-rtx-sm89"), tmp_path / "plan"
        )


@rtx
def test_the_builders_words_reach_the_user(tmp_path: Path) -> None:
    """An FP32 mask parses, and is only refused while building."""
    emitted = graph(BERT, tmp_path, "padded")
    model = onnx.ModelProto.FromString(emitted.serialize())
    at, attention = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Attention")
    cast = onnx.helper.make_node("Cast", [attention.input[3]], ["mask32"], to=onnx.TensorProto.FLOAT)
    attention.input[3] = "mask32"
    model.graph.node.insert(at, cast)
    with pytest.raises(EngineError, match=r"tensorrt-rtx-sm89: the builder failed: \S"):
        tensorrt.build(
            model.SerializeToString(), emitted.weights, options("tensorrt-rtx-sm89"), tmp_path / "plan"
        )
    assert not (tmp_path / "plan").exists()


@rtx
def test_a_weight_that_is_missing_or_of_the_wrong_size(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    name = "layers.1.up.weight"
    for weights, says in (
        (
            {n: w for n, w in emitted.weights.items() if n != name},
            f"refers to weight '{name}', which was not",
        ),
        (
            {**emitted.weights, name: replace(emitted.weights[name], shape=(64, 64))},
            f"weight '{name}' has 16384 bytes, the graph needs 32768",
        ),
    ):
        with pytest.raises(EngineError, match=says):
            tensorrt.build(emitted.serialize(), weights, options("tensorrt-rtx-sm89"), tmp_path / "plan")


@rtx
def test_a_full_disk_is_an_error_and_leaves_no_plan(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    with file_limit(1 << 20), pytest.raises(EngineError, match=r"cannot write the plan to .*File too large"):
        build(emitted, options("tensorrt-rtx-sm89"), tmp_path)
    assert not (tmp_path / "plan").exists()


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Writes past ``size`` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@rtx
def test_ctrl_c_stops_the_build_and_leaves_no_plan(tmp_path: Path) -> None:
    """Raised inside a callback of the library, KeyboardInterrupt would vanish."""
    emitted = graph(replace(BERT, layers=BERT.layers * 8), tmp_path, "padded")
    plan = tmp_path / "plan"

    def interrupt() -> None:
        while not plan.exists():  # opened when the builder starts
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        build(emitted, options("tensorrt-rtx-sm89"), tmp_path)
    thread.join()
    assert not plan.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_tensorrt_itself_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Not installed, or installed without a GPU."""
    reason = tensorrt.available("tensorrt")
    if reason is None:
        pytest.skip("TensorRT and a GPU are here")
    assert "tensorrt is not installed" in reason or "no CUDA driver was found" in reason
    emitted = graph(BERT, tmp_path, "padded")
    with pytest.raises(EngineError, match="tensorrt-sm90: cannot be built here: "):
        build(emitted, options("tensorrt-sm90"), tmp_path)


def test_other_backends_are_no_business_of_this_module() -> None:
    with pytest.raises(EngineError, match="backend 'cuda': not a TensorRT backend"):
        tensorrt.available("cuda")


def test_an_old_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "1.1.3"

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", Old)
    reason = tensorrt.available("tensorrt-rtx")
    assert reason is not None
    assert "tensorrt-rtx 1.1.3 is too old (need 1.5)" in reason


def test_a_library_that_cannot_be_imported_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    reason = tensorrt.available("tensorrt-rtx")
    assert reason is not None
    assert "install bei[tensorrt-rtx]" in reason


def test_random_weights_are_all_views(tmp_path: Path) -> None:
    """What the tests above build from is what a checkpoint gives: nothing in memory, everything in the file."""
    assert all(weight.data is None for weight in random_weights(BERT, tmp_path).values())
