"""Accumulation types found in the bytes of a plan, wherever they lie."""

from pathlib import Path

import pytest

from bei.compiler.engines import tensorrt_plan
from bei.compiler.engines.tensorrt_plan import read_plan

GEMM = (
    b'\n  fully_connected={ name="__mye1" output={"__mye2" } trA=false accumulation_type=%s runtime_tactic=true '
    b'layers="[ONNX Layer: node_MatMul_1]\x1f[ONNX Layer: node_Cast_2]" }\n  function={ name=x layers="" }\n'
)
ATTENTION = (
    b"  using Kernel_traits = fmha::Kernel_traits_v2<\n\tfmha::Ampere_hmma_%s_traits,\n\tfmha::Ampere_hmma_%s_traits,"
    b'\n\tfalse, // uses_bnsh_layout\n\t64 // padded\n>;\n extern "C" __global__ void _gemm_mha_v2_0xabc(\n int x) {}'
)
FLASH = ATTENTION.replace(b"Kernel_traits_v2<", b"Kernel_traits_v2_flash_attention<")


def plan(folder: Path, *parts: bytes) -> Path:
    (folder / "plan").write_bytes(b"\0".join((b"\x01" * 50, *parts, b"\x02" * 50)))
    return folder / "plan"


def test_a_product_and_the_nodes_in_it(tmp_path: Path) -> None:
    facts = read_plan(plan(tmp_path, GEMM % b"2"))
    assert facts.gemms == {"node_MatMul_1": "fp32", "node_Cast_2": "fp32"}
    assert read_plan(plan(tmp_path, GEMM % b"0")).gemms["node_MatMul_1"] == "library's choice"
    assert read_plan(plan(tmp_path, GEMM % b"9")).gemms == {}


def test_an_attention_kernel_and_both_its_products(tmp_path: Path) -> None:
    found = read_plan(plan(tmp_path, ATTENTION % (b"fp16", b"fp32"), FLASH % (b"bf16", b"fp16")))
    assert found.attentions == {"_gemm_mha_v2_0xabc": {("fp16", "fp32"), ("fp32", "fp16")}}


@pytest.mark.parametrize("offset", [-400, -200, -40, -5, 0, 5])
def test_entries_across_the_edge_of_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    chunk = 1 << 12
    monkeypatch.setattr(tensorrt_plan, "_CHUNK", chunk)
    monkeypatch.setattr(tensorrt_plan, "_OVERLAP", 1 << 10)
    body = GEMM % b"2" + ATTENTION % (b"fp32", b"fp32")
    (tmp_path / "plan").write_bytes(b"\1" * (chunk + offset) + body + b"\1" * chunk)
    facts = read_plan(tmp_path / "plan")
    assert facts.gemms["node_MatMul_1"] == "fp32"
    assert facts.attentions == {"_gemm_mha_v2_0xabc": {("fp32", "fp32")}}


def test_nothing_readable_is_nothing_claimed(tmp_path: Path) -> None:
    facts = read_plan(plan(tmp_path, b"fully_connected={ name=", b"fmha::Kernel_traits_v2<int, int>"))
    assert facts.gemms == {}
    assert facts.attentions == {}
