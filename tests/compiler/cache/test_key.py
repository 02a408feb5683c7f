"""What a key depends on, and what it does not."""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from bei.compiler.cache import key
from bei.compiler.cache.request import request_of
from bei.compiler.engines import build, cuda
from bei.compiler.engines.portability import Portability
from bei.compiler.options import BuildOptions
from bei.errors import EngineError
from bei.gpu import Gpu
from tests.compiler.checkpoint import tiny


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildOptions:
    """A GPU engine, so that every option means something; nothing is built here."""
    monkeypatch.setattr(build, "why_not", lambda target: None)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.0"))
    folder = tiny.write(tmp_path / "checkpoint", tiny.files())
    return BuildOptions(repo=str(folder), out=tmp_path / "a.bundle", targets=("onnxruntime-cuda",))


def key_of(options: BuildOptions, *, certified: bool = False) -> str:
    return request_of(options, certified=certified).key


CHANGES: dict[str, Callable[[BuildOptions], BuildOptions]] = {
    "targets": lambda o: replace(o, targets=("onnxruntime-cpu", "onnxruntime-cuda")),
    "max_length": lambda o: replace(o, max_length=9),
    "max_batch_tokens": lambda o: replace(o, max_batch_tokens=999),
    "max_batch": lambda o: replace(o, max_batch=3),
    "layout": lambda o: replace(o, layout="packed"),
    "precision": lambda o: replace(o, precision="bf16"),
    "portability": lambda o: replace(
        o, targets=("tensorrt-sm90",), portability=Portability(hardware="same-sm")
    ),
    "no portability": lambda o: replace(o, targets=("tensorrt-sm90",)),
    "policy": lambda o: replace(o, policy=_file(o, "policy.json", "{}")),
    "another policy": lambda o: replace(o, policy=_file(o, "policy.json", "{ }")),
    "calibration": lambda o: replace(o, calibration=_file(o, "texts.txt", "hello")),
    "a weight": lambda o: _another(o, "one", {}, flip=True),
    "the configuration": lambda o: _another(o, "two", {"hidden_act": "relu"}),
}


def _file(options: BuildOptions, name: str, text: str) -> Path:
    path = Path(options.repo).parent / name
    path.write_text(text)
    return path


def _another(
    options: BuildOptions, name: str, config: dict[str, object], *, flip: bool = False
) -> BuildOptions:
    weights = tiny.tensors()
    if flip:
        weights["embeddings.word_embeddings.weight"][0, 0] += 1
    folder = tiny.write(Path(options.repo).parent / name, tiny.files(config=config, weights=weights))
    return replace(options, repo=str(folder))


def test_whatever_changes_the_bundle_changes_the_key(options: BuildOptions) -> None:
    keys = {"nothing": key_of(options), "parity": key_of(options, certified=True)}
    keys |= {what: key_of(change(options)) for what, change in CHANGES.items()}
    assert len(set(keys.values())) == len(keys), keys


def test_place_and_name_do_not(options: BuildOptions, tmp_path: Path) -> None:
    elsewhere = tiny.write(tmp_path / "elsewhere" / "copy", tiny.files())
    options = replace(options, targets=("tensorrt-sm89",))
    moved = replace(
        options, repo=str(elsewhere), out=tmp_path / "b.bundle", timing_cache=tmp_path / "t", offline=True
    )
    assert key_of(moved) == key_of(options)


@pytest.mark.parametrize("package", ["onnxruntime", "onnx-ir", "tokenizers", "numpy"])
def test_versions_do(package: str, options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = key_of(options), version
    monkeypatch.setattr(key, "version", lambda name: "0.0" if name == package else real(name))
    assert key_of(options) != before


def test_the_tools_of_other_targets_do_not(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(options, targets=("cuda-sm90",))
    plain, triton, torch = key_of(options), key_of(own), key_of(options, certified=True)
    real = version
    monkeypatch.setattr(key, "version", lambda name: "0.0" if name in ("triton", "torch") else real(name))
    assert key_of(options) == plain
    assert key_of(own) != triton
    assert key_of(options, certified=True) != torch


def test_own_code_does(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(options)
    monkeypatch.setattr(key, "code_digest", lambda folder: "0" * 64)
    assert key_of(options) != before


def test_the_gpu_that_certifies_does(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key, "gpus", lambda: "none")
    without = key_of(options), key_of(options, certified=True)
    h100 = Gpu(index=0, name="NVIDIA H100", sm=90, memory=1, cuda=(13, 0))
    monkeypatch.setattr(key, "gpus", lambda: (h100,))
    assert key_of(options) == without[0]
    assert key_of(options, certified=True) != without[1]


def test_what_cannot_be_built_has_no_key(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "available", lambda: "no Triton")
    with pytest.raises(EngineError, match="no Triton"):
        key_of(replace(options, targets=("cuda-sm90",)))
