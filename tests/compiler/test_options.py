"""What is asked of a build: options that would change nothing are refused, before a checkpoint is looked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bei.compiler.cli import main
from bei.compiler.options import BuildOptions, targets_of
from bei.errors import EngineError, InputError

CPU, CUDA, RTX, FULL = "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt-rtx-sm89", "tensorrt-sm89"
CACHE = ("--timing-cache", {"timing_cache": Path("t")})
OF_GPUS = (
    ("--policy", {"policy": Path("p.json")}),
    ("--calibration", {"calibration": Path("own.txt")}),
    ("--precision bf16", {"precision": "bf16"}),
    ("--layout packed", {"layout": "packed"}),
)


def asked(*targets: str, **options: Any) -> tuple[str, ...]:
    """The names of the targets, where nothing is refused."""
    return tuple(t.name for t in targets_of(BuildOptions(repo="r", targets=targets, **options)))


@pytest.mark.parametrize(("flag", "given"), OF_GPUS, ids=lambda value: str(value))
def test_cpu_engines_have_one_layout_and_one_precision(flag: str, given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{flag}: is about GPU engines, and none is built .targets: {CPU}."):
        asked(CPU, **given)
    assert asked(CPU, CUDA, **given) == (CPU, CUDA)


@pytest.mark.parametrize("targets", [(CPU,), (CUDA,), (RTX,), ("cuda-sm89", CPU, RTX)])
def test_only_tensorrt_has_a_timing_cache(targets: tuple[str, ...]) -> None:
    flag, given = CACHE
    with pytest.raises(InputError, match=f"{flag}: is about TensorRT engines, and none is built .targets: "):
        asked(*targets, **given)
    assert asked(*targets, FULL, **given) == (*targets, FULL)
    assert asked(*targets) == targets


def test_what_is_not_given_is_not_refused() -> None:
    assert asked(CPU, layout="padded", precision="fp32") == (CPU,)


def test_an_unknown_target_is_told_first() -> None:
    options = BuildOptions(repo="r", targets=("tensorrt-sm12",), timing_cache=Path("t"))
    with pytest.raises(EngineError, match="tensorrt-sm12"):
        targets_of(options)
    with pytest.raises(InputError):
        targets_of(replace(options, targets=(CPU,)))


@pytest.mark.parametrize("stop", [(), ("--plan",)])
@pytest.mark.parametrize(
    "option", [("--policy", "policy.json"), ("--timing-cache", "t"), ("--layout", "packed")]
)
def test_the_command_line_says_so(
    option: tuple[str, str], stop: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--repo", str(tmp_path / "absent"), "--target", CPU, "--out", str(tmp_path / "x"), *stop]
    assert main([*args, *option]) == 2
    assert f"{option[0]}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
