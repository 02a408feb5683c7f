"""Folding changes no function, and brings planted outliers back into FP16, in torch and in the emitted graph."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from tests.adapters.cases import CASES
from tests.adapters.tiny import Loaded, batch, load, onnx_feeds, run_onnx, save

from bei.adapters.head import Head
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU, GraphPolicy
from bei.compiler.lowering.torch_ops import Storage, run_torch
from bei.compiler.precision.audit import Audit, Batch, audit
from bei.compiler.precision.islands import Trial, add_islands, smallest
from bei.compiler.precision.plan import BUDGET, plan_scales
from bei.compiler.precision.policy import FP16_MAX, PLAIN, Policy, scalable, units
from bei.compiler.weights import Weight

MEAN = Head(task="embed", pooling=("mean",), steps=())
FAMILIES = (
    "bert", "mpnet", "modernbert", "nomic-bert-moe", "jina-bert-code", "gte", "gemma3", "qwen2", "qwen3", "llama"
)  # fmt: skip
FP16 = ir.DataType.FLOAT16
HALF = replace(ONNXRUNTIME_CPU, compute=FP16, attention="primitive")
HALF_STREAM = replace(HALF, stream=FP16)


@cache
def loaded(name: str) -> Loaded:
    case = next(case for case in CASES if case.name == name)
    folder = Path(mkdtemp())
    save(case, folder)
    return load(folder)


def inputs(model: Loaded) -> tuple[torch.Tensor, torch.Tensor]:
    return batch((1, 7, 12), model.cfg.vocab)


def numbers(ids: torch.Tensor, mask: torch.Tensor) -> Batch:
    return ids.numpy(), mask.numpy(), np.zeros_like(ids.numpy())


def cosine(a: object, b: object) -> float:
    x, y = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    if not bool(torch.isfinite(x).all()):
        return -1.0
    return float(torch.nn.functional.cosine_similarity(x, y, dim=-1).min())


powers = st.integers(-12, 6).map(lambda k: 2.0**k)


@pytest.mark.parametrize("name", [case.name for case in CASES])
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_any_scales_leave_the_function_unchanged(name: str, data: st.DataObject) -> None:
    model = loaded(name)
    sites = sorted(scalable(model.cfg))
    scales = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(sites, powers)))
    policy = Policy(stream=data.draw(powers), scales=scales)
    ids, mask = inputs(model)
    plain = run_torch(model.cfg, MEAN, model.weights, ids, mask)
    folded = run_torch(model.cfg, MEAN, model.weights, ids, mask, policy=policy)
    torch.testing.assert_close(folded, plain, rtol=1e-6, atol=1e-6 * float(plain.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_takes_the_same_scales(name: str) -> None:
    model = loaded(name)
    policy = Policy(stream=2.0**-5, scales=dict.fromkeys(scalable(model.cfg), 2.0**-3))
    ids, mask = inputs(model)
    plain = run_onnx(model, ids, mask, head=MEAN)
    folded = run_onnx(model, ids, mask, head=MEAN, precision=policy)
    np.testing.assert_allclose(folded, plain, rtol=1e-5, atol=1e-5 * float(np.abs(plain).max()))


Planted = Mapping[str, Weight]


def times(weights: Planted, factors: Callable[[str], float]) -> Planted:
    return {name: replace(w, scale=w.scale * factors(name)) for name, w in weights.items()}


def large_stream(size: float) -> Callable[[str], float]:
    """Everything that enters a pre-norm or sandwich stream, larger; the norms that read it forget that. An embedding that
    is normalised itself stays as it is."""
    sites = ("tokens", "attn_out_norm", "ffn_out_norm", "o", "down")
    return lambda name: size if name.split(".")[-2] in sites else 1.0


def large_layers(size: float) -> Callable[[str], float]:
    """ModernBERT's: what the layers add, and not the embedding."""
    return lambda name: size if name.split(".")[-2] in ("o", "down") else 1.0


def large_post_stream(size: float) -> Callable[[str], float]:
    """BERT's stream is its norms' output: their weights and what is added are larger, what reads them undoes it."""

    def factor(name: str) -> float:
        *_, site, part = name.split(".")
        if site in ("norm", "attn_norm", "ffn_norm", "o", "down"):
            return size
        return 1 / size if site in ("q", "k", "v", "gate", "up") and part == "weight" else 1.0

    return factor


def large_post_norms(name: str) -> float:
    """At width 32 a normalised value reaches 5.7 where it reaches 28 at Gemma's 768: 1e4 stands for 1e3 and more."""
    return 2e4 if "out_norm" in name else 1.0


def large_up(name: str) -> float:
    """act(gate)·up at 1e6 and beyond; down undoes it."""
    return {"up": 1e6, "down": 1e-6}.get(name.split(".")[-2], 1.0)


def large_v(name: str) -> float:
    return {"v": 1e5, "o": 1e-5 if name.endswith("weight") else 1.0}.get(name.split(".")[-2], 1.0)


Plant = tuple[str, Callable[[str], float], bool]
STREAM: Plant = ("stream 8e5", large_stream(4e5), True)
POST_STREAM: Plant = ("stream 8e5", large_post_stream(2e5), True)
LAYERS: Plant = ("stream 3e4", large_layers(3e4), True)
POST_NORMS: Plant = ("post-norms 1e3", large_post_norms, True)
BERT_NORMS: Plant = ("post-norms 1e3", large_post_stream(2e4), True)
UP: Plant = ("gate·up 1e6", large_up, False)
V: Plant = ("v 1e5", large_v, False)
PLANTED: Mapping[str, tuple[Plant, ...]] = {
    "gemma3": (STREAM, LAYERS, POST_NORMS, UP, V),
    "modernbert": (LAYERS, UP, V),
    "qwen2": (STREAM, LAYERS, UP, V),
    "qwen3": (STREAM, LAYERS, UP, V),
    "llama": (STREAM, LAYERS, UP, V),
    "bert": (POST_STREAM, BERT_NORMS, V),
    "mpnet": (POST_STREAM, BERT_NORMS, V),
    "gte": (POST_STREAM, BERT_NORMS, UP, V),
}
"""Family → what is planted, and whether its stream is stored in FP16 too. Without a gate the hidden value cannot be folded:
the test of islands has that case."""
OUTLIERS = [(name, *plant) for name, plants in PLANTED.items() for plant in plants]


KEPT_WIDE_BY_ORT = ("post-norms 1e3", "stream 3e4")
"""ONNX Runtime's CPU adds in fp32 and drops the roundings between two such nodes, so it never sees these overflow; the
evaluator that defines ONNX does."""


def run_to_the_letter(
    model: Loaded, ids: torch.Tensor, mask: torch.Tensor, graph: GraphPolicy, precision: Policy
) -> np.ndarray:
    """The emitted graph in numpy, every value in the type that the graph gives it."""
    emitted = emit(model.cfg, MEAN, model.weights, graph, precision)
    proto = ir.to_proto(emitted.model)
    onnx.load_external_data_for_model(proto, str(model.folder))
    feeds = onnx_feeds(graph, ids, mask, None, None)
    with np.errstate(all="ignore"):
        (out,) = ReferenceEvaluator(proto).run(None, {name: feeds[name] for name in emitted.inputs})
    return np.asarray(out)


@pytest.mark.parametrize(
    ("name", "what", "factor", "stream"), OUTLIERS, ids=[f"{n}: {w}" for n, w, _, _ in OUTLIERS]
)
def test_planted_outliers_are_folded_away(
    name: str, what: str, factor: Callable[[str], float], stream: bool
) -> None:
    """FP16 storage as it is gives NaN or a wrong vector; with the planned scales it is right."""
    model = replace(loaded(name), weights=times(loaded(name).weights, factor))
    ids, mask = inputs(model)
    storage = Storage(body=torch.float16, stream=torch.float16 if stream else torch.float32)
    graph = HALF_STREAM if stream else HALF
    expected = run_torch(model.cfg, MEAN, model.weights, ids, mask)

    def torch_cosine(policy: Policy) -> float:
        out = run_torch(model.cfg, MEAN, model.weights, ids, mask, storage=storage, policy=policy)
        return cosine(out, expected)

    def graph_cosine(policy: Policy) -> float:
        return cosine(run_onnx(model, ids, mask, head=MEAN, policy=graph, precision=policy), expected)

    def letter_cosine(policy: Policy) -> float:
        return cosine(run_to_the_letter(model, ids, mask, graph, policy), expected)

    kept_wide = what in KEPT_WIDE_BY_ORT
    assert torch_cosine(PLAIN) < 0.99
    assert (letter_cosine if kept_wide else graph_cosine)(PLAIN) < 0.99
    batches = [numbers(ids, mask)]
    policy = plan_scales(model.cfg, audit(model.cfg, MEAN, model.weights, batches).ranges, fp16_stream=stream)
    assert policy.reasons
    assert torch_cosine(policy) >= 0.9999
    assert graph_cosine(policy) >= 0.9999
    assert not kept_wide or letter_cosine(policy) >= 0.9999


def test_after_folding_every_site_is_within_its_budget() -> None:
    model = replace(loaded("gemma3"), weights=times(loaded("gemma3").weights, large_stream(4e5)))
    ids, mask = inputs(model)
    batches = [numbers(ids, mask)]
    policy = plan_scales(model.cfg, audit(model.cfg, MEAN, model.weights, batches).ranges, fp16_stream=True)
    before = audit(model.cfg, MEAN, model.weights, batches).ranges
    after = audit(model.cfg, MEAN, model.weights, batches, policy).ranges
    assert max(before.values()) > FP16_MAX
    assert max(after.values()) <= BUDGET


def test_ranges_do_not_depend_on_the_padding() -> None:
    model = loaded("bert")
    ids, mask = inputs(model)
    wider = torch.nn.functional.pad(ids, (0, 5), value=7), torch.nn.functional.pad(mask, (0, 5))
    a = audit(model.cfg, MEAN, model.weights, [numbers(ids, mask)]).ranges
    b = audit(model.cfg, MEAN, model.weights, [numbers(*wider)]).ranges
    assert a.keys() == b.keys()
    assert a == pytest.approx(b, rel=1e-5)


def trial(model: Loaded, batches: list[Batch], found: Audit) -> Trial:
    return Trial(cfg=model.cfg, head=MEAN, weights=model.weights, batches=batches, reference=found.outputs)


def test_an_overflow_that_cannot_be_folded_becomes_the_smallest_island() -> None:
    """GELU is not linear: a plain MLP whose hidden value overflows in one layer needs that unit wider."""
    model = loaded("bert")

    def factor(name: str) -> float:
        return {"layers.1.up.weight": 3e5, "layers.1.up.bias": 3e5, "layers.1.down.weight": 3e-5}.get(
            name, 1.0
        )

    model = replace(model, weights=times(model.weights, factor))
    ids, mask = inputs(model)
    batches = [numbers(ids, mask)]
    found = audit(model.cfg, MEAN, model.weights, batches)
    case = trial(model, batches, found)
    policy = plan_scales(model.cfg, found.ranges)
    assert case.cosine(policy) < 0.99
    with_islands = add_islands(case, policy)
    assert list(with_islands.islands) == ["layers.1.mlp"]
    assert "cosine" in with_islands.reasons["layers.1.mlp"]
    assert case.cosine(with_islands) == with_islands.storage_cosine
    assert case.cosine(with_islands) >= 0.9999


def test_no_island_where_none_is_needed() -> None:
    model = loaded("llama")
    ids, mask = inputs(model)
    batches = [numbers(ids, mask)]
    case = trial(model, batches, audit(model.cfg, MEAN, model.weights, batches))
    policy = add_islands(case, PLAIN)
    assert policy == msgspec.structs.replace(PLAIN, storage_cosine=policy.storage_cosine)
    assert policy.storage_cosine is not None and policy.storage_cosine >= 0.9999
    assert units(model.cfg)[:2] == ["layers.0.attention", "layers.0.mlp"]


@given(needed=st.sets(st.integers(0, 30), max_size=6))
def test_bisection_finds_exactly_what_is_needed(needed: set[int]) -> None:
    items = [str(i) for i in range(31)]
    found = smallest(items, lambda subset: needed <= {int(i) for i in subset})
    assert found is not None
    assert {int(i) for i in found} == needed
    assert smallest(items, lambda subset: False) is None
