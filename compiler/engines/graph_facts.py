"""What a builder needs to know of a serialised graph: its inputs, the weights it refers to, its attentions."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from bei.errors import EngineError

ATTENTION_OPS = frozenset({"Attention", "TRT_Attention"})


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphFacts:
    """``inputs``: name → symbolic axes, such as ("batch", "sequence"). ``products``: MatMul node → the weights it
    multiplies with, such as layers.3.gate and layers.3.up. ``attentions``: attention node → its place, such as layers.3.attention, in
    order. A node whose weight is not found stands for itself."""

    inputs: Mapping[str, tuple[str, ...]]
    attentions: Mapping[str, str]
    products: Mapping[str, tuple[str, ...]]


def read_graph(graph: bytes) -> GraphFacts:
    """Facts of a ModelProto without weight data. Raises EngineError when it is none."""
    try:
        main = onnx.ModelProto.FromString(graph).graph
    except Exception as error:  # noqa: BLE001 — protobuf, which onnx does not re-export, has its own tree
        raise EngineError(f"graph: not an ONNX model ({error}).") from None
    products = _products(main)
    return GraphFacts(
        inputs={value.name: _axes(value) for value in main.input},
        attentions=_attentions(main, products),
        products=products,
    )


def decomposable(graph: bytes) -> bytes:
    """The same graph with every attention marked as one that may be taken apart (``TRT_decomposable``)."""
    model = onnx.ModelProto.FromString(graph)
    for node in model.graph.node:
        if node.op_type in ATTENTION_OPS and all(a.name != "TRT_decomposable" for a in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
    return bytes(model.SerializeToString())


def _axes(value: onnx.ValueInfoProto) -> tuple[str, ...]:
    return tuple(dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _products(main: onnx.GraphProto) -> dict[str, tuple[str, ...]]:
    """Follows a MatMul's second input through casts, transposes and joins to the initializers it comes from."""
    weights = {tensor.name for tensor in main.initializer}
    source = _sources(main)

    def origins(value: str) -> list[str]:
        if value in weights or value not in source:
            return [value] if value in weights else []
        node = source[value]
        return [
            name for x in (node.input if node.op_type == "Concat" else node.input[:1]) for name in origins(x)
        ]

    return {
        node.name: tuple(name.removesuffix(".weight") for name in origins(node.input[1])) or (node.name,)
        for node in main.node
        if node.op_type == "MatMul"
    }


def _attentions(main: onnx.GraphProto, products: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Follows an attention's queries back to their product: the attention of ``layers.3.q`` is layers.3.attention."""
    source = _sources(main)
    found = {}
    for node in main.node:
        if node.op_type in ATTENTION_OPS:
            at = node
            while at.op_type != "MatMul" and at.input[0] in source:
                at = source[at.input[0]]
            (first, *_) = products.get(at.name, ("",))
            layer = first.rpartition(".")[0]
            found[node.name] = f"{layer}.attention" if layer else node.name
    return found


def _sources(main: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Value → the node that makes it, where that node has an input to follow."""
    return {value: node for node in main.node if node.input for value in node.output}
