"""Encoder, head and weights to an ONNX model for one policy."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.encoder import output_width, run
from bei.compiler.lowering.graph import Graph
from bei.compiler.lowering.onnx_ops import OnnxOps
from bei.compiler.lowering.policy import GraphPolicy
from bei.compiler.lowering.probed import ProbedOnnxOps
from bei.compiler.precision.folding import Folded
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.weights import Weight


@dataclass(frozen=True, kw_only=True, slots=True)
class EmittedGraph:
    """``model`` refers to the checkpoint's files; ``inputs`` in order; ``weights`` by initializer name."""

    model: ir.Model
    inputs: tuple[str, ...]
    output: str
    weights: Mapping[str, Weight]

    def serialize(self) -> bytes:
        """An ONNX ModelProto; stored weights are external_data references, derived ones are inside."""
        return bytes(ir.to_proto(self.model).SerializeToString())


def emit(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    policy: GraphPolicy,
    precision: Policy = PLAIN,
    *,
    probed: bool = False,
) -> EmittedGraph:
    """The graph of ``run(cfg, head, …)``: ids to the head's output, in milliseconds and without reading a weight.
    ``precision``'s scales are folded into it and its islands computed in their wider type. A ``probed`` graph has one
    more output for each site: its largest magnitude over real tokens."""
    if cfg.placement != "post":
        policy = replace(policy, normed=None)
    own = dict(weights)
    g = Graph(own)
    kind = ProbedOnnxOps if probed else OnnxOps
    ops = kind(g, policy, cfg.position_pad, precision.islands)
    result = run(cfg, head, Folded(ops, own, precision, cfg)).value
    shape: tuple[str | int, ...] = ("batch", output_width(cfg, head))
    if not head.pooling:
        shape = ("batch", "sequence", output_width(cfg, head))
    probes = ops.probes if isinstance(ops, ProbedOnnxOps) else None
    model = g.model(result, head.output, shape, {"task": head.task}, probes)
    return EmittedGraph(model=model, inputs=tuple(g.inputs), output=head.output, weights=g.used)
