"""Reading the graph that a builder is given."""

from pathlib import Path

import onnx
import pytest

from bei.compiler.engines.graph_facts import decomposable, read_graph
from bei.errors import EngineError
from tests.compiler.engines.small import BERT, WINDOWED, graph


def test_facts_of_a_packed_encoder(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "packed")
    facts = read_graph(emitted.serialize())
    assert facts.inputs == {
        "input_ids": ("tokens",),
        "token_type_ids": ("tokens",),
        "unpad_index": ("tokens",),
        "pad_index": ("batch", "sequence"),
        "attention_mask": ("batch", "sequence"),
    }
    assert list(facts.attentions.values()) == ["layers.0.attention", "layers.1.attention"]
    together = (("q", "k", "v"), ("o",), ("up",), ("down",))
    products = [tuple(f"layers.{i}.{name}" for name in names) for i in range(2) for names in together]
    assert list(facts.products.values()) == products


def test_places_are_found_through_rotary_positions_and_norms(tmp_path: Path) -> None:
    facts = read_graph(graph(WINDOWED, tmp_path, "padded").serialize())
    assert list(facts.attentions.values()) == ["layers.0.attention", "layers.1.attention"]


def test_decomposable_marks_attention_and_nothing_else(tmp_path: Path) -> None:
    before = graph(BERT, tmp_path, "padded").serialize()
    after = onnx.ModelProto.FromString(decomposable(before))
    marked = [
        n.op_type for n in after.graph.node for a in n.attribute if a.name == "TRT_decomposable" and a.i
    ]
    assert marked == ["Attention", "Attention"]
    for node in after.graph.node:
        kept = [a for a in node.attribute if a.name != "TRT_decomposable"]
        del node.attribute[:]
        node.attribute.extend(kept)
    assert after == onnx.ModelProto.FromString(before)
    assert decomposable(decomposable(before)) == decomposable(before)


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(EngineError, match="not an ONNX model"):
        read_graph(b"\xff\xff\xff\xff")
