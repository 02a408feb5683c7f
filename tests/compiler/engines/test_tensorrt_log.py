"""The builder's messages, as TensorRT-RTX 1.7 prints them."""

from bei.compiler.engines.tensorrt_log import (
    BuildLog,
    Constant,
    first_profile,
    fused_nodes,
    kernels_per_layer,
    weight_elements,
)

_HALF = "Strides: [64,1], StrideOrder: [1,0], Datatype: Half, Format: (Linear) Row major linear format }"


def line(
    name: str, kind: str = "kgen", nodes: tuple[str, ...] = (), constants: str = "", tactic: str = ""
) -> str:
    tags = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {{ Name: x, Dimensions: [-1,64], {_HALF}], "
        f"Constants: [{constants}], Outputs: [ {{ Name: y, Dimensions: [-1,64], {_HALF}], "
        f"TacticName: {tactic}, StreamId: 0, Metadata: {tags}"
    )


def weight(name: str, dims: str) -> str:
    return f" {{ Name: {name}, Dimensions: [{dims}], {_HALF}"


ONE_LAYER = (
    line("__mye1_0_myl0_0", "shape_call"),
    line("_gemm_mha_v2_myl0_1", nodes=("attention 0",), tactic="_gemm_mha_v2_0xabc"),
    line("signal", "signal"),
    line(
        "__mye2", "gemm", ("node_MatMul_1", "node_Cast_2"), weight("w", "64,192") + "," + weight("b", "192")
    ),
)
TWO_LAYERS = (
    *ONE_LAYER,
    line("__mye2", "runtime_fusion", ("node_Gelu_3",), weight("w", "64,192")),
    line("_gemm_mha_v2_myl0_5", nodes=("attention 1",)),
)


def read(*lines: str) -> BuildLog:
    log = BuildLog()
    log.read(4, "Layers:\n" + "\n".join(lines) + "\n\nI/O Tensors:\n Name: input_ids, IOMode: Input")
    return log


def test_a_kernel_with_its_nodes_and_constants() -> None:
    kernels = read(*ONE_LAYER).kernels
    assert [kernel.kind for kernel in kernels] == ["shape_call", "kgen", "signal", "gemm"]
    assert [kernel.fused_attention for kernel in kernels] == [False, True, False, False]
    assert kernels[1].function == "_gemm_mha_v2_0xabc"
    assert kernels[3].nodes == ("node_MatMul_1", "node_Cast_2")
    assert kernels[3].constants == (
        Constant(name="w", dtype="Half", elements=64 * 192),
        Constant(name="b", dtype="Half", elements=192),
    )
    assert kernels[0].nodes == ()


def test_kernels_from_attention_to_attention() -> None:
    assert kernels_per_layer(read(*TWO_LAYERS).kernels) == [3]
    assert kernels_per_layer(read(*ONE_LAYER).kernels) == []


def test_a_constant_read_twice_counts_once() -> None:
    assert weight_elements(read(*TWO_LAYERS).kernels) == {"Half": 64 * 192 + 192}


def test_an_attention_must_be_fused_in_every_profile() -> None:
    log = read(*TWO_LAYERS, *ONE_LAYER, line("a"), line("b"))
    assert len(first_profile(log.kernels, 2)) == len(TWO_LAYERS)
    assert fused_nodes(log.kernels, 1) == {"attention 0", "attention 1"}
    assert fused_nodes(log.kernels, 2) == {"attention 0"}


def test_errors_warnings_and_memory() -> None:
    log = BuildLog()
    for level, text in (
        (1, "first\n  error"),
        (0, "second"),
        (1, "first error"),
        (2, "a warning"),
        (3, "Total Activation Memory: 8783872 bytes"),
        (3, "Total Activation Memory: 512 bytes"),
        (3, "Total Weights Memory: 1 bytes"),
        (4, "chatter"),
    ):
        log.read(level, text)
    assert log.error() == "first error / second"
    assert log.warnings == ["a warning"]
    assert log.activation == [8783872, 512]
    assert BuildLog().error() == "it gave no reason"


def test_the_cause_is_shown_without_its_echoes() -> None:
    log = BuildLog()
    log.read(1, "ModelImporter.cpp:151: ERROR: node 51: mask has type Int32")
    assert log.error() == "ModelImporter.cpp:151: ERROR: node 51: mask has type Int32"
    log.read(1, "API Usage Error (mask has type Int32)")
    log.read(1, "[checkMacros.cpp::catchCudaError::250] Cuda Runtime (cudaError 35)")
    assert log.error() == "API Usage Error (mask has type Int32)"
