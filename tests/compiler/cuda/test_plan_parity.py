"""The launch plan of every architecture, run by the real engine on a simulated device, against TorchOps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.adapters.cases import CASES
from tests.adapters.tiny import HIDDEN_STATES, Case, batch, load, save
from tests.compiler.cuda.simulated import SimulatedDevice

from bei.compiler.engines.cuda import CudaOptions, lower
from bei.compiler.lowering.torch_ops import run_torch
from bei.cuda_plan import decode_plan, encode_plan
from bei.runtime.cuda.engine import Engine
from bei.runtime.executor import Row


def rows_of(ids: torch.Tensor, mask: torch.Tensor) -> list[Row]:
    return [
        Row(ids=line[keep.bool()].numpy().astype(np.int32), types=np.zeros(int(keep.sum()), np.int32))
        for line, keep in zip(ids, mask, strict=True)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_architecture_computes_what_torch_ops_computes(case: Case, tmp_path: Path) -> None:
    save(case, tmp_path)
    loaded = load(tmp_path)
    ids, mask = batch(case.lengths, loaded.cfg.vocab)
    expected = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
    plan, _ = lower(loaded.cfg, HIDDEN_STATES, loaded.weights, CudaOptions(sm=90))
    plan = decode_plan(encode_plan(plan), "plan")
    engine = Engine(SimulatedDevice(plan), plan, tmp_path)
    for _ in range(2):  # the second time through the captured graph, in memory that the first left behind
        results = engine.run(rows_of(ids, mask))
        for line, keep, result in zip(expected, mask, results, strict=True):
            want = line[keep.bool()].numpy()
            cosine = (want * result).sum(-1) / np.linalg.norm(want, axis=-1) / np.linalg.norm(result, axis=-1)
            assert cosine.min() > 0.999 and np.median(cosine) > 0.9999  # a token may nearly cancel in a norm
