"""What a head computes is what sentence-transformers computes: every pooling, every module, in torch and as a graph."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tests.adapters.heads import load_head
from tests.adapters.tiny import Loaded, assert_near, batch, enliven, run_onnx
from tests.compiler.checkpoint import tiny
from torch import Tensor, nn

from bei.adapters.head import POOLINGS, Head
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.lowering.torch_ops import run_torch

PACKED = replace(ONNXRUNTIME_CPU, layout="packed")
PROMPT = 2
"""Tokens of a prompt, the first special token included."""
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
TOGETHER = (*((mode,) for mode in MODES), ("mean", "cls"), MODES)
WIDTH = 8


def saved(folder: Path, pooling: modules.Pooling, *steps: nn.Module) -> tuple[Any, Loaded, Head]:
    """A model of ``steps`` after a tiny encoder, saved by the library; the library's, and ours read from the folder."""
    source = tiny.write(folder / "source", tiny.files())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = modules.Transformer(str(source))
        for step in steps:
            enliven(step)
        model = SentenceTransformer(modules=[transformer, pooling, *steps], device="cpu").eval()
        model.save(str(folder / "saved"))
    loaded, head = load_head(folder / "saved")
    return model, loaded, head


def theirs(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    features = {"input_ids": ids, "attention_mask": mask, "prompt_length": PROMPT}
    with torch.inference_mode():
        vectors: Tensor = model(features)["sentence_embedding"]
    return vectors


def assert_same(found: tuple[Any, Loaded, Head]) -> None:
    model, loaded, head = found
    ids, mask = batch((4, 7, 12), len(tiny.WORDS))
    prompt = torch.full((3,), PROMPT)
    expected = theirs(model, ids, mask)
    ours = run_torch(loaded.cfg, head, loaded.weights, ids, mask, prompt=prompt)
    assert_near(ours.numpy(), expected)
    for policy in (ONNXRUNTIME_CPU, PACKED):
        assert_near(run_onnx(loaded, ids, mask, head=head, policy=policy, prompt=prompt), ours)


@pytest.mark.parametrize("include_prompt", [True, False], ids=["prompt", "no-prompt"])
@pytest.mark.parametrize("pooling", TOGETHER, ids="+".join)
def test_pooling(pooling: tuple[str, ...], include_prompt: bool, tmp_path: Path) -> None:
    found = saved(tmp_path, modules.Pooling(WIDTH, pooling, include_prompt=include_prompt))
    assert found[2].include_prompt is include_prompt
    assert_same(found)


def test_every_pooling_is_tried() -> None:
    assert len(MODES) == len(POOLINGS)


STEPS: dict[str, tuple[nn.Module, ...]] = {
    **{
        act.__class__.__name__: (modules.Dense(WIDTH, 6, activation_function=act),)
        for act in (nn.Tanh(), nn.Identity(), nn.GELU(), nn.ReLU(), nn.SiLU(), nn.Sigmoid())
    },
    "no bias": (modules.Dense(WIDTH, 6, bias=False),),
    "residual": (modules.Dense(WIDTH, WIDTH, use_residual=True),),
    "residual of another width": (modules.Dense(WIDTH, 6, use_residual=True),),
    "two": (modules.Dense(WIDTH, 24, bias=False), modules.Dense(24, WIDTH, bias=False)),
    "layer norm": (modules.LayerNorm(WIDTH),),
    "dropout": (modules.Dropout(0.5),),
    "normalize": (modules.Normalize(),),
    "all": (
        modules.Dense(WIDTH, 12, activation_function=nn.GELU()),
        modules.LayerNorm(12),
        modules.Dense(12, 12, activation_function=nn.Identity(), use_residual=True),
        modules.Normalize(),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps(name: str, tmp_path: Path) -> None:
    assert_same(saved(tmp_path, modules.Pooling(WIDTH, "mean"), *STEPS[name]))


@pytest.mark.parametrize("pooling", ["cls", "mean", "weightedmean", "lasttoken"])
def test_a_projection_of_every_token(pooling: str, tmp_path: Path) -> None:
    """A Dense before the pooling, as a checkpoint with a projection in its own code is best saved."""
    project = modules.Dense(
        WIDTH, 6, bias=False, activation_function=nn.Identity(), module_input_name="token_embeddings"
    )
    found = saved(tmp_path, project, modules.Pooling(6, pooling), modules.Normalize())  # type: ignore[arg-type]
    assert_same(found)


def test_the_comparison_sees_another_pooling(tmp_path: Path) -> None:
    model, loaded, head = saved(tmp_path, modules.Pooling(WIDTH, "mean", include_prompt=False))
    ids, mask = batch((4, 7, 12), len(tiny.WORDS))
    expected = theirs(model, ids, mask)
    others = [replace(head, pooling=(pooling,)) for pooling in POOLINGS if pooling != "mean"]
    for other in (*others, replace(head, include_prompt=True)):
        ours = run_torch(loaded.cfg, other, loaded.weights, ids, mask, prompt=torch.full((3,), PROMPT))
        assert float((ours - expected).abs().max()) > 1e-3, other


def test_a_sentence_without_its_prompt_is_itself(tmp_path: Path) -> None:
    """With ``include_prompt`` false the prompt changes what tokens mean, but is not pooled."""
    _, loaded, head = saved(tmp_path, modules.Pooling(WIDTH, "max", include_prompt=False))
    ids, mask = batch((4, 7, 12), len(tiny.WORDS))
    none = run_torch(loaded.cfg, head, loaded.weights, ids, mask)
    some = run_torch(loaded.cfg, head, loaded.weights, ids, mask, prompt=torch.full((3,), PROMPT))
    assert not np.allclose(none.numpy(), some.numpy())
