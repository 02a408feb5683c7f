"""bei-doctor on machines of many kinds: what they are is given, what it says about them is checked."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bei.compiler.doctor import machine as machine_module
from bei.compiler.doctor.answers import Answer, answer, bundle_answers, compiles, serves
from bei.compiler.doctor.cli import main
from bei.compiler.doctor.machine import Machine, look
from bei.compiler.engines import cuda, tensorrt
from bei.gpu import Gpu
from bei.manifest import ParityRecord, Profile, decode_manifest
from bei.runtime.executors import cuda as cuda_executor
from bei.runtime.executors import tensorrt as tensorrt_executor
from tests.runtime.tiny import engine, write_bundle

NO_DRIVER = "no CUDA driver was found (libcuda is missing); install the NVIDIA driver"
L4 = Gpu(index=0, name="NVIDIA L4", sm=89, memory=24 << 30, cuda=(13, 0))
H100 = Gpu(index=0, name="NVIDIA H100", sm=90, memory=80 << 30, cuda=(13, 0))
OLD_DRIVER = Gpu(index=0, name="NVIDIA L4", sm=89, memory=24 << 30, cuda=(12, 4))

Found = tuple[Gpu, ...] | str


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Found], Machine]:
    """The machine as it looks with these GPUs, to everything that asks for them."""

    def make(found: Found) -> Machine:
        for module in (tensorrt, cuda_executor, tensorrt_executor):
            monkeypatch.setattr(module, "gpus", lambda: found)
        monkeypatch.setattr(cuda_executor, "find_library", lambda: "libcublasLt.so.13")
        return look(lambda: found)

    return make


def by_name(answers: Any) -> dict[str, Answer]:
    return {item.what: item for item in answers}


@pytest.mark.parametrize(
    "found", [NO_DRIVER, "the CUDA driver reports no usable GPU (x)", (L4,), (H100,), (OLD_DRIVER,)]
)
def test_each_no_has_a_reason_and_a_remedy(found: Found, on: Callable[[Found], Machine]) -> None:
    machine = on(found)
    answers = [*compiles(machine), *serves(machine)]
    assert any(item.yes for item in answers)
    for item in answers:
        assert item.said
        assert item.yes == (item.remedy is None), item


def test_without_a_gpu(on: Callable[[Found], Machine]) -> None:
    machine = on(NO_DRIVER)
    built, run = by_name(compiles(machine)), by_name(serves(machine))
    assert built["onnxruntime-cpu"].said == "built when no --target is given"
    assert run["onnxruntime-cpu"].yes
    assert (run["cuda"].said, run["cuda"].remedy) == tuple(NO_DRIVER.split("; "))


def test_a_card_that_tensorrt_rtx_is_not_made_for(on: Callable[[Found], Machine]) -> None:
    run = by_name(serves(on((H100, L4))))
    assert run["cuda-sm90"] == Answer(what="cuda-sm90", yes=True, said="on NVIDIA H100")
    assert run["cuda-sm89"].yes
    refused = run["tensorrt-rtx-sm90"]
    assert (refused.yes, refused.remedy) == (False, "use cuda-sm90 or tensorrt-sm90")


def test_a_card_that_tensorrt_rtx_runs_on(on: Callable[[Found], Machine]) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert by_name(serves(on((L4,))))["tensorrt-rtx-sm89"].yes


def test_a_driver_older_than_the_library(on: Callable[[Found], Machine]) -> None:
    pytest.importorskip("tensorrt_rtx")
    machine = on((OLD_DRIVER,))
    assert machine.cuda == "12.4"
    refused = by_name(serves(machine))["tensorrt-rtx-sm89"]
    assert "runs CUDA up to 12.4" in refused.said
    assert refused.remedy == "update the driver, or install tensorrt-rtx-cu12"


def test_what_is_not_installed(on: Callable[[Found], Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    machine = on((L4,))
    monkeypatch.setattr(cuda_executor, "find_library", lambda: None)
    machine = msgspec.structs.replace(machine, packages={**machine.packages, "torch": None})
    built, run = by_name(compiles(machine)), by_name(serves(machine))
    assert built["cuda-sm89"].remedy == 'pip install "bei[cuda]"'
    assert built["tensorrt-sm89"].remedy == "install NVIDIA's tensorrt package"
    assert built["parity check"] == Answer(
        what="parity check", yes=False, said="torch not installed", remedy='pip install "bei[parity]"'
    )
    assert run["cuda-sm89"].remedy == 'pip install "bei[cuda]"'


def test_a_reason_without_a_remedy_gets_one() -> None:
    assert answer("x", "it is broken", "fine", "mend it").remedy == "mend it"
    assert answer("x", "lacks y; install y", "", "").remedy == "install y"
    assert answer("x", "a; b; install c", "", "") == Answer(
        what="x", yes=False, said="a; b", remedy="install c"
    )
    assert answer("x", None, "fine", "mend it") == Answer(what="x", yes=True, said="fine")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A plan for an L4, then the CPU's engine, then one that failed parity."""
    import tensorrt_rtx

    plan = engine(
        "tensorrt-rtx-sm89",
        backend="tensorrt-rtx",
        device="cuda",
        compute_capabilities=("8.9",),
        tool_versions={"tensorrt-rtx": tensorrt_rtx.__version__},
        evidence={"plan_bytes": 1 << 30},
        profiles=(Profile(max_batch=8, max_length=512, max_tokens=4096, activation_bytes=3 << 30),),
    )
    records = (plan, engine(), engine("failed"))
    verdicts = {"tensorrt-rtx-sm89": "passed", "onnxruntime-cpu": "passed", "failed": "failed"}
    return write_bundle(
        tmp_path / "b",
        engines=records,
        fallback=("tensorrt-rtx-sm89", "onnxruntime-cpu"),
        parity=msgspec.convert({"file": None, "verdicts": verdicts}, ParityRecord),
    )


def test_the_engines_of_a_bundle(mixed: Path, on: Callable[[Found], Machine]) -> None:
    manifest = decode_manifest((mixed / "manifest.json").read_bytes(), "manifest")
    plan, cpu, failed = bundle_answers(manifest, on((L4,)))
    assert (plan.yes, plan.said) == (True, "bei-serve runs it")
    assert (cpu.yes, cpu.said) == (True, "tensorrt-rtx-sm89 comes first")
    assert (failed.said, failed.remedy) == ("its parity verdict is 'failed'", "run bei-parity here")
    plan, cpu, _ = bundle_answers(manifest, on((H100,)))
    assert (plan.yes, cpu.said) == (False, "bei-serve runs it")
    assert plan.remedy == "compile it for this machine: bei-compile --target cuda-sm90"
    plan, *_ = bundle_answers(manifest, on(NO_DRIVER))
    assert plan.remedy == "install the NVIDIA driver"


def test_an_engine_that_does_not_fit_the_gpu(mixed: Path, on: Callable[[Found], Machine]) -> None:
    manifest = decode_manifest((mixed / "manifest.json").read_bytes(), "manifest")
    machine = on((L4,))
    (card,) = machine.gpus
    for free, fits in ((5 << 30, True), (2 << 30, False), (None, True)):
        cards = (msgspec.structs.replace(card, free=free),)
        plan, *_ = bundle_answers(manifest, msgspec.structs.replace(machine, gpus=cards))
        assert plan.yes == fits
        assert fits or "needs 4.00 GiB, and 2.00 GiB are free" in plan.said


def test_json_and_exit_codes(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], on: Callable[[Found], Machine]
) -> None:
    on(NO_DRIVER)
    assert main([str(mixed), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["well"] is True
    assert [item["yes"] for item in found["bundle"]] == [False, True, False]
    assert found["machine"]["packages"]["onnxruntime"]
    gpu_only = write_bundle(tmp_path / "gpu", engines=(engine("t", device="cuda"),), fallback=("t",))
    assert main([str(gpu_only)]) == 1
    assert "→" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_memory_is_what_a_container_may_use(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n")
    total, free = machine_module._memory(tmp_path / "meminfo")
    assert total is not None
    assert free is not None
    assert total <= 2 << 20
    assert free <= 1 << 20
    assert machine_module._memory(tmp_path / "nothing") == (None, None)


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from bei.compiler.doctor.cli import main; main(['--json']); "
        "print([n for n in ('torch', 'transformers', 'triton') if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["well"] is True
