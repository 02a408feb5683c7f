"""ONNX Runtime CUDA on a real GPU, from a bundle and through bei's executor: every architecture against TorchOps in fp32."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from benchmarks.bundled import ONNXRUNTIME, write_bundle
from tests.adapters.tiny import HIDDEN_STATES, load
from tests.gpu.prepared import names, read
from tests.gpu.results import cosines, ids_of, near_expected

import bei
from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head, Normalize
from bei.runtime.executors.onnxruntime_cuda import MULTIPLE, PROVIDER
from bei.runtime.model import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(not names(), reason="needs prepared models (tests/gpu/prepared.py)"),
    pytest.mark.skipif(PROVIDER not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"),
]

EMBED = Head(task="embed", pooling=("mean",), steps=(Normalize(),))


def longest(cfg: EncoderConfig, ids: torch.Tensor) -> int:
    """Where there is no table of positions, so long that every batch is padded to its bucket."""
    table = cfg.positions - (0 if cfg.position_pad is None else cfg.position_pad + 1)
    return table if cfg.positions else ids.shape[1] + MULTIPLE


def open_bundle(name: str, head: Head, out: Path) -> Model:
    folder, ids, _, _ = read(name)
    loaded = load(folder)
    write_bundle(out, loaded.cfg, head, loaded.weights, max_length=longest(loaded.cfg, ids))
    return bei.load(out, allow_unverified=True)


@pytest.mark.parametrize("name", names())
def test_every_architecture_computes_what_torch_ops_computes(name: str, tmp_path: Path) -> None:
    _, ids, mask, expected = read(name)
    with open_bundle(name, HIDDEN_STATES, tmp_path / "bundle") as model:
        assert model.target == ONNXRUNTIME
        for _ in range(2):
            near_expected(model.encode_tokens(ids_of(ids, mask)), expected, mask)


@pytest.fixture
def bert(tmp_path: Path) -> Iterator[Model]:
    with open_bundle("bert", EMBED, tmp_path / "bundle") as model:
        yield model


def test_a_text_does_not_depend_on_its_neighbours_nor_on_its_bucket(bert: Model) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, 97, n).tolist() for n in rng.permutation(np.arange(1, 41))]
    together = bert.encode(texts)
    assert together.dtype == np.float32 and np.isfinite(together).all()
    alone = np.concatenate([bert.encode([text]) for text in texts])
    assert cosines(alone, together).min() > 0.9999


def test_it_says_which_gpu_and_library_it_runs_on(bert: Model) -> None:
    facts = bert.executor.describe()
    assert facts["device"] == torch.cuda.get_device_name()
    assert facts["onnxruntime"] == onnxruntime.__version__
