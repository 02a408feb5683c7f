"""ONNX Runtime engines: the emitted graph itself, with references into the bundle's weights."""

from collections import Counter
from dataclasses import replace

import onnx_ir as ir
import onnxruntime

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.bundle import BundleWriter
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU, ONNXRUNTIME_CUDA, GraphPolicy
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.target import Target
from bei.compiler.weights import Weights
from bei.manifest import EngineRecord

GRAPH_FILE = "model.onnx"


def build(
    target: Target, cfg: EncoderConfig, head: Head, weights: Weights, writer: BundleWriter, precision: Policy
) -> EngineRecord:
    """``model.onnx`` at the bundle's root for the CPU (fp32), or the FP16 graph under the target's folder for CUDA; both
    refer to the checkpoint's file at the root. Needs no GPU."""
    cpu = target.device == "cpu"
    name = GRAPH_FILE if cpu else f"engines/{target.name}/{GRAPH_FILE}"
    policy = ONNXRUNTIME_CPU if cpu else cuda_policy(cfg, precision)
    graph = emit(cfg, head, weights, policy, PLAIN if cpu else precision)
    data = graph.serialize()
    writer.write(name, data)
    nodes = Counter(node.op_type for node in graph.model.graph)
    evidence = {"graph_bytes": len(data), "nodes": nodes.total()}
    if not cpu:
        evidence["attention_nodes"] = nodes["MultiHeadAttention"]
    return EngineRecord(
        target=target.name,
        backend="onnxruntime",
        device=target.device,
        layout="padded",
        precision="fp32" if cpu or precision.mode == "bf16" else precision.name,
        path=name,
        inputs=graph.inputs,
        status="built, not executed",
        tool_versions={"onnxruntime": onnxruntime.__version__},
        evidence=evidence,
    )


def cuda_policy(cfg: EncoderConfig, precision: Policy) -> GraphPolicy:
    """After post-norms the stream is FP16, so that ONNX Runtime joins each sum with its norm (statistics in fp32);
    elsewhere, and where a unit needs more than FP16, it is fp32."""
    if cfg.placement != "post" or precision.islands:
        return ONNXRUNTIME_CUDA
    return replace(ONNXRUNTIME_CUDA, stream=ir.DataType.FLOAT16, norm=ir.DataType.FLOAT16)
