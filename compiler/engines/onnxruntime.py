"""The ONNX Runtime engine: the emitted graph itself, beside the weights it refers to."""

import onnxruntime

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.bundle import BundleWriter
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.target import Target
from bei.compiler.weights import Weights
from bei.errors import EngineError
from bei.manifest import EngineRecord

GRAPH_FILE = "model.onnx"


def build(
    target: Target, cfg: EncoderConfig, head: Head, weights: Weights, writer: BundleWriter
) -> EngineRecord:
    """Write ``model.onnx`` at the bundle's root, where its external data lies. Raises EngineError."""
    if target.device != "cpu":
        raise EngineError(f"target {target.name!r}: not built by this version. Use onnxruntime-cpu.")
    graph = emit(cfg, head, weights, ONNXRUNTIME_CPU)
    data = graph.serialize()
    writer.write(GRAPH_FILE, data)
    return EngineRecord(
        target=target.name,
        backend="onnxruntime",
        device="cpu",
        layout="padded",
        precision="fp32",
        path=GRAPH_FILE,
        inputs=graph.inputs,
        status="built, not executed",
        tool_versions={"onnxruntime": onnxruntime.__version__},
        evidence={"graph_bytes": len(data), "nodes": len(graph.model.graph)},
    )
