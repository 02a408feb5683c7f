"""Every adapter against its Hugging Face class: random weights, fp32, CPU, padding in the batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bei.adapters.registry import ADAPTERS
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.lowering.torch_ops import run_torch
from tests.adapters.cases import CASES
from tests.adapters.tiny import HIDDEN_STATES, Case, assert_near, batch, load, run_onnx, save

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_every_adapter_has_a_case() -> None:
    assert {case.adapter.name for case in CASES} == {adapter.name for adapter in ADAPTERS}


@by_name
def test_three_rungs(case: Case, tmp_path: Path) -> None:
    """TorchOps equals Hugging Face; the ONNX graph, padded and packed, equals TorchOps."""
    model = save(case, tmp_path)
    loaded = load(tmp_path)
    assert loaded.adapter.name == case.adapter.name
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    config: Any = model.config
    pad = config.pad_token_id or 0
    ids = ids.masked_fill(mask == 0, pad)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    ours = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    real = mask.bool()
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-5)
    for policy in (ONNXRUNTIME_CPU, replace(ONNXRUNTIME_CPU, layout="packed")):
        graph = run_onnx(loaded, ids, mask, policy=policy)
        assert_near(graph[real], ours[real])


@by_name
def test_a_row_does_not_depend_on_its_neighbours(case: Case, tmp_path: Path) -> None:
    save(case, tmp_path)
    loaded = load(tmp_path)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    together = run_onnx(loaded, ids, mask)
    for row, length in enumerate(case.lengths):
        alone = run_onnx(loaded, ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert_near(alone[0], torch.from_numpy(together[row, :length]))
