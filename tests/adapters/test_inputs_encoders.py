"""What a text's vectors may and may not depend on: padding, its own length, token types, padding ids inside it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import Weight
from tests.adapters.cases_encoders import DYNAMIC, ENCODER_CASES, gte, nomic
from tests.adapters.tiny import HIDDEN_STATES, Case, assert_near, batch, enliven, load, run_onnx, save

BY_NAME = {case.name: case for case in ENCODER_CASES}
PACKED = replace(ONNXRUNTIME_CPU, layout="packed")

by_name = pytest.mark.parametrize("case", ENCODER_CASES, ids=lambda case: case.name)


def with_row(weights: Mapping[str, Weight], row: int, value: float) -> dict[str, Weight]:
    """Token ``row`` of the embedding table (and its position, where padding has one) filled with ``value``."""
    changed = dict(weights)
    for name in ("embed.tokens.weight", "embed.positions.weight"):
        if name in weights:
            data = np.array(weights[name].float32())
            data[row] = value
            changed[name] = Weight(name=name, shape=data.shape, dtype="F32", data=data)
    return changed


@by_name
def test_padding_never_leaks(case: Case, tmp_path: Path) -> None:
    """NaN wherever a padding id would be read."""
    save(case, tmp_path)
    loaded = load(tmp_path)
    pad = loaded.cfg.position_pad or 0
    ids, mask = batch(tuple(sorted({*case.lengths, max(case.lengths) - 3})), loaded.cfg.vocab)
    ids, real = ids.masked_fill(mask == 0, pad), mask.bool()
    expected = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)[real]

    # rows 0 and 1 of a position table counted from 0 belong to real tokens
    counted = loaded.cfg.position_pad is not None
    tokens_only = {"embed.tokens.weight": loaded.weights["embed.tokens.weight"]}
    source = loaded.weights if counted else tokens_only
    poisoned = {**loaded.weights, **with_row(source, pad, float("nan"))}
    ours = run_torch(loaded.cfg, HIDDEN_STATES, poisoned, ids, mask)
    torch.testing.assert_close(ours[real], expected, atol=0, rtol=0)
    assert bool(ours[~real].isnan().all())

    for policy in (ONNXRUNTIME_CPU, PACKED):
        graph = run_onnx(replace(loaded, weights=poisoned), ids, mask, policy=policy)
        assert_near(graph[real], expected)


TWO_TYPES = (
    BY_NAME["bert"],
    BY_NAME["nomic-bert"],
    replace(BY_NAME["gte"], model=lambda: gte(type_vocab_size=2)),
)


@pytest.mark.parametrize("case", TWO_TYPES, ids=lambda case: case.name)
def test_token_types_are_read(case: Case, tmp_path: Path) -> None:
    model: Any = save(case, tmp_path)
    loaded = load(tmp_path)
    ids, mask = batch((1, 7, 12), loaded.cfg.vocab)
    types = (torch.arange(12)[None, :] >= 4).long() * mask
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    real = mask.bool()
    ours = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask, types=types)
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-5)
    graph = run_onnx(loaded, ids, mask, types=types)
    assert_near(graph[real], ours[real])
    without = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    assert float((without - expected)[real].abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["roberta", "camembert", "mpnet"])
def test_a_padding_id_inside_a_text_does_not_count_as_a_position(name: str, tmp_path: Path) -> None:
    """transformers counts positions from the ids, not from the mask."""
    model: Any = save(BY_NAME[name], tmp_path)
    loaded = load(tmp_path)
    ids, mask = batch((9, 12), loaded.cfg.vocab)
    pad = loaded.cfg.position_pad
    assert pad is not None
    ids[:, 4] = pad
    ids = ids.masked_fill(mask == 0, pad)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    ours = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-5)
    for policy in (ONNXRUNTIME_CPU, PACKED):
        graph = run_onnx(loaded, ids, mask, policy=policy)
        assert_near(graph[real], ours[real])


def test_dynamic_ntk_takes_each_texts_own_length(tmp_path: Path) -> None:
    """Where transformers differs: it gives a short text the frequencies of the longest in its batch."""
    save(replace(BY_NAME["nomic-bert"], model=lambda: nomic(**DYNAMIC)), tmp_path)
    loaded = load(tmp_path)
    ids, mask = batch((9, 12), loaded.cfg.vocab)
    ours = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    alone = hugging_face(ids[:1, :9])
    torch.testing.assert_close(ours[:1, :9], alone, atol=1e-5, rtol=1e-5)
    beside_a_longer = hugging_face(ids, mask)[:1, :9]
    assert float((beside_a_longer - alone).abs().max()) > 1e-3


def hugging_face(ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """From a fresh model each time: it also keeps the frequencies of the longest batch it has seen."""
    model: Any = enliven(nomic(**DYNAMIC))
    with torch.inference_mode():
        hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden
