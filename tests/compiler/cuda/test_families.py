"""What benchmarks/cuda_families.py runs on a GPU, as far as a simulated one goes."""

from pathlib import Path

import benchmarks.cuda_families as families
import pytest
from benchmarks import cuda_models
from benchmarks.cubins import shapes_only
from benchmarks.family_checkpoints import NAMES, config_of, depth, head_of, shape_of, write
from tests.compiler.cuda.simulated import SimulatedDevice

from bei.adapters.registry import ADAPTERS, adapter_for
from bei.compiler.engines.cuda import lower
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.runtime.cuda.engine import Engine

OPTIONS = CudaOptions(sm=90)


def test_every_family_is_measured_at_full_width() -> None:
    ours = {adapter_for(config_of(name)[0]).name for name in NAMES}
    others = {adapter_for(cuda_models.config_of(name)).name for name in cuda_models.SHAPES}
    assert ours | others == {adapter.name for adapter in ADAPTERS}
    assert ours.isdisjoint(others)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_model_lowers_from_its_shape_alone(name: str) -> None:
    cfg, names, dtype = shape_of(name)
    plan, kernels = lower(cfg, head_of(cfg), shapes_only(cfg, names, dtype), OPTIONS)
    assert len(cfg.layers) == (8 if name == "mistral-7b" else depth(name))
    assert len(plan.schedules) in (2, 3) and kernels


@pytest.mark.parametrize("name", ["mpnet-base", "distilbert-base"])
def test_one_layer_of_a_model_agrees_with_its_reference(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the zoo and one of transformers' own, with the kernels that their shapes alone ask for."""
    monkeypatch.setattr(families, "FEW", (3, 60, 1))
    monkeypatch.setattr(families, "MANY", (40,) * 103)
    folder = tmp_path / "model"
    write(name, folder, layers=1)
    model = families.load(folder)
    plan, kernels = lower(model.cfg, head_of(model.cfg), model.weights, OPTIONS)
    cfg, names, dtype = shape_of(name)
    every = lower(cfg, head_of(cfg), shapes_only(cfg, names, dtype), OPTIONS)[1].keys()
    assert kernels.keys() <= every, "of more layers, every other one begins with the last tokens"
    line = families.compare(model, folder, Engine(SimulatedDevice(plan, 1 << 29), plan, folder), "cpu")
    assert str(line["reference"]).startswith("transformers ")
    assert min(line["cosine min, few"], line["cosine min, many"], line["alone, cosine min"]) > 0.9999
    assert line["NaN"] == 0
    assert line["texts apart"] > 0.001, "another text's vector would be seen"
