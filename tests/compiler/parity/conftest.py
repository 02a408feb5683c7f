"""Bundles and reports that several test modules look at."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from bei.compiler.build import compile_bundle
from bei.compiler.options import BuildOptions
from bei.compiler.parity import run
from bei.compiler.parity.layers import compare_layers
from bei.compiler.parity.report import ParityReport, RangeRow, Rung
from bei.compiler.parity.texts import Sample, builtin
from tests.compiler.parity.fakes import FakeEngine, FakeReference
from tests.compiler.parity.tiny import embedder

NASTY = Sample(
    kind="nasty", text="<script>alert(1)</script> \u202e\x01\x7f & \"quotes\" 'more' $body ${body}"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence-transformers checkpoint."""
    return embedder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle for ONNX Runtime, not certified. Shared: copy it before changing it."""
    out = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    compile_bundle(BuildOptions(repo=str(checkpoint), out=out, targets=("onnxruntime-cpu",)))
    return out


@pytest.fixture(scope="session")
def rich_report() -> ParityReport:
    """Everything a report can hold: a passed, a failed and an idle engine, drift, rungs and ranges."""
    samples = (NASTY, *builtin("embed", 64))
    expected = run.expect(FakeReference(), samples, "built-in")
    passed = run.check_engine(FakeEngine(target="onnxruntime-cpu"), expected)
    failed = run.check_engine(
        FakeEngine(target="tensorrt-sm90", precision="fp16", noise=0.05, nan_text=NASTY.text), expected
    )
    rng = np.random.default_rng(0)
    names = ["embed", *(f"layers.{i}" for i in range(5)), "output"]
    theirs = {name: rng.standard_normal((4, 8)) for name in names}
    ours = {name: x * (1.5 if name in names[4:] else 1.0001) for name, x in theirs.items()}
    failed = msgspec.structs.replace(
        failed,
        drift=compare_layers(ours, theirs, 1e-2),
        rungs=(Rung(name="fp16 storage in torch", verdict="passed", measures=passed.measures[:2]),),
    )
    idle = run.not_run("tensorrt-rtx-sm89", "fp16", "built, not executed: no GPU <here>")
    ranges = [RangeRow(site="embed.norm", before=30.0, after=30.0)]
    ranges += [RangeRow(site=f"layers.{i}.v", before=10.0**i, after=min(10.0**i, 4e4)) for i in range(6)]
    return ParityReport(
        bei_version="0.1.0",
        model="a <model>",
        revision="c0ffee",
        task="embed",
        engines=(passed, failed, idle),
        ranges=tuple(ranges),
        decisions=tuple(f"layers.{i}.v × 2^-1: <reason> {i}" for i in range(50)),
    )
