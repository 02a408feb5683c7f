"""Portable TensorRT plans: what is asked of the builder, where they then run, what they cost, and who cannot have them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bei.compiler.bundle import writing
from bei.compiler.cli import main, parser
from bei.compiler.engines import tensorrt
from bei.compiler.engines.build import EngineRequest, build_engine
from bei.compiler.engines.portability import LEVELS, NOT_PORTABLE, Hardware, Portability
from bei.compiler.engines.tensorrt import TensorRtOptions
from bei.compiler.precision.policy import PLAIN
from bei.compiler.target import parse_target
from bei.compiler.weights import Weights
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture
from bei.errors import EngineError
from bei.manifest import Limits
from tests.compiler.engines.small import BERT, HEAD, graph, options, random_weights


class Config:
    """Takes what the builder's configuration takes."""

    hardware_compatibility_level: Any = None

    def __init__(self) -> None:
        self.flags: list[Any] = []

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)


LIBRARY = SimpleNamespace(
    HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere plus", SAME_COMPUTE_CAPABILITY="same cc"),
    BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="version compatible"),
)
"""tests/tensorrt holds these names to both libraries' real bindings."""


@pytest.mark.parametrize(
    ("wanted", "level", "flags"),
    [
        (NOT_PORTABLE, None, []),
        (Portability(hardware="ampere+"), "ampere plus", []),
        (Portability(hardware="same-sm", version_compatible=True), "same cc", ["version compatible"]),
        (Portability(version_compatible=True), None, ["version compatible"]),
    ],
)
def test_what_the_builder_is_told(wanted: Portability, level: str | None, flags: list[str]) -> None:
    config = Config()
    tensorrt._make_portable(LIBRARY, config, wanted)
    assert (config.hardware_compatibility_level, config.flags) == (level, flags)
    assert len(wanted.costs) == (level is not None) + len(flags)
    assert wanted.wanted is bool(wanted.costs)


@pytest.mark.parametrize(
    ("hardware", "capabilities"),
    [
        ("none", ("8.9",)),
        ("same-sm", ("8.9",)),
        ("ampere+", ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")),
    ],
)
def test_where_a_plan_runs(hardware: Hardware, capabilities: tuple[str, ...]) -> None:
    runs_on = Portability(hardware=hardware).runs_on(parse_target("tensorrt-sm89"))
    assert runs_on.compute_capabilities == capabilities


@pytest.mark.parametrize("target", ["tensorrt-rtx-sm89", "cuda-sm89", "onnxruntime-cpu"])
@pytest.mark.parametrize("wanted", [Portability(hardware="same-sm"), Portability(version_compatible=True)])
def test_other_backends_cannot_have_it(target: str, wanted: Portability) -> None:
    with pytest.raises(EngineError, match=rf"{target}: hardware and version compatibility are TensorRT's"):
        wanted.check(parse_target(target))
    NOT_PORTABLE.check(parse_target(target))


@pytest.mark.parametrize("sm", [75, 87, 110])
def test_ampere_and_later_needs_such_a_gpu_to_build_on(sm: int) -> None:
    target = parse_target(f"tensorrt-sm{sm}")
    with pytest.raises(
        EngineError, match=rf"ampere\+ needs a plan built on SM80 or later, .* \(got SM{sm}\)"
    ):
        Portability(hardware="ampere+").check(target)
    Portability(hardware="same-sm", version_compatible=True).check(target)


def test_a_build_refuses_before_it_starts(tmp_path: Path) -> None:
    emitted = graph(BERT, tmp_path, "padded")
    choice = options("tensorrt-rtx-sm89", portability=Portability(version_compatible=True))
    with pytest.raises(EngineError, match="are TensorRT's"):
        tensorrt.build(emitted.serialize(), emitted.weights, choice, tmp_path / "plan")
    assert not (tmp_path / "plan").exists()


def test_the_manifest_says_where_a_plan_runs_and_what_that_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TensorRtOptions] = []

    def built(graph: bytes, weights: Weights, choice: TensorRtOptions, out: Path) -> tensorrt.Built:
        asked.append(choice)
        out.write_bytes(b"a plan")
        return tensorrt.Built(plan_path=out, profiles=(), evidence={"kernels": 1}, tool_versions={})

    monkeypatch.setattr(tensorrt, "build", built)
    wanted = Portability(hardware="ampere+", version_compatible=True)
    request = EngineRequest(
        cfg=BERT,
        head=HEAD,
        weights=random_weights(BERT, tmp_path),
        limits=Limits(max_length=64, max_batch_tokens=64, max_batch=1),
        precision=PLAIN,
        layout="padded",
        portability=wanted,
    )
    with writing(tmp_path / "bundle") as writer:
        portable = build_engine(parse_target("tensorrt-sm80"), request, writer)
        plain = build_engine(parse_target("tensorrt-rtx-sm80"), request, writer)
    assert [choice.portability for choice in asked] == [wanted, NOT_PORTABLE]
    assert (portable.version_compatible, portable.evidence["portability_costs"]) == (True, wanted.costs)
    assert {"8.0", "9.0", "12.0"} <= set(portable.compute_capabilities)
    assert (plain.version_compatible, plain.compute_capabilities) == (False, ("8.0",))
    assert "portability_costs" not in plain.evidence


def test_help_states_the_costs() -> None:
    said = " ".join(parser().format_help().split())
    assert set(LEVELS) == {"none", "same-sm", "ampere+"}
    for words in (
        "48 KiB of shared memory",
        "cuBLAS and cuDNN",
        "lean runtime",
        "code that runs where the plan",
    ):
        assert words in said


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable") / "minilm"
    facts = facts_of("sentence-transformers/all-MiniLM-L6-v2")
    write_fixture(facts, folder, FixtureOptions(full_width=True, layers=2, sparse=True))
    return folder


def test_the_plan_states_the_costs_and_counts_every_card(
    minilm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    portable = ("--hardware-compatibility", "ampere+", "--version-compatible")
    arguments = [
        "--repo",
        str(minilm),
        "--plan",
        "--target",
        "tensorrt-sm80",
        "--target",
        "tensorrt-rtx-sm89",
    ]
    assert main([*arguments, *portable, "--json"]) == 0
    full, rtx = json.loads(capsys.readouterr().out)["engines"]
    assert full["target"] == "tensorrt-sm80"
    assert [cost.partition(":")[0] for cost in full["costs"]] == [
        "hardware compatibility ampere+",
        "version compatibility",
    ]
    assert {"L4", "A100-40GB", "H100"} <= full["max_batch_tokens_on"].keys()
    assert rtx["costs"] == []
    assert main([*arguments, *portable]) == 0
    assert "hardware compatibility ampere+: it can be slower" in capsys.readouterr().out


def test_without_a_tensorrt_target_it_is_refused(minilm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--repo", str(minilm), "--plan", "--target", "tensorrt-rtx-sm89", "--version-compatible"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "a TensorRT-RTX plan serves every SM its target lists" in captured.err
