"""A checkpoint folder through the real loader, its head's output compared with a reference on every interpreter."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bei.adapters.head import Head
from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.load import load_model
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.lowering.signature import signature
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import check_shapes
from tests.adapters.tiny import Loaded, assert_near, run_onnx


def load_head(folder: Path) -> tuple[Loaded, Head]:
    """As a compile does, shapes checked."""
    checkpoint = open_checkpoint(str(folder))
    adapter = adapter_for(checkpoint.config)
    model = load_model(checkpoint, adapter)
    needs = signature(model.cfg, model.head)
    check_shapes(adapter.name, model.weights, needs.needed, needs.optional)
    return Loaded(adapter=adapter, cfg=model.cfg, weights=model.weights, folder=folder), model.head


def assert_output(folder: Path, expected: Tensor, ids: Tensor, mask: Tensor) -> Head:
    """TorchOps, and the ONNX graph padded and packed, give ``expected`` (logits or vectors, a row a text or token)."""
    loaded, head = load_head(folder)
    real = mask.bool() if head.task == "token-classify" else torch.ones(len(ids), dtype=torch.bool)
    ours = run_torch(loaded.cfg, head, loaded.weights, ids, mask)
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-5)
    for policy in (ONNXRUNTIME_CPU, replace(ONNXRUNTIME_CPU, layout="packed")):
        graph = run_onnx(loaded, ids, mask, head=head, policy=policy)
        assert_near(graph[real], ours[real])
    return head
