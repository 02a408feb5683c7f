"""A plan for NVIDIA's own tools: commands made of their published options, inputs that are what the shapes say, and a
script that a shell runs."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bei.compiler.build import compile_bundle
from bei.compiler.engines import tensorrt
from bei.compiler.engines.tensorrt_profiles import shape_ranges
from bei.compiler.engines.tensorrt_table import BACKENDS
from bei.compiler.export.cli import export
from bei.compiler.options import BuildOptions
from bei.compiler.zoo.fact_files import facts_of
from bei.compiler.zoo.fixture import write_fixture
from bei.errors import BundleError
from bei.manifest import MANIFEST_FILE, ParityRecord, Profile, decode_manifest
from bei.runtime.bundle import open_bundle
from bei.runtime.tokenizer import open_tokenizer
from tests.runtime.tiny import engine, seal, write_bundle

COMMON = {"--loadEngine", "--useProfile", "--shapes", "--loadInputs"}
PUBLISHED = {"trtexec": COMMON | {"--versionCompatible"}, "tensorrt_rtx": COMMON | {"--runtimeCacheFile"}}
"""What the tools' help and documentation name."""

PROFILES = tuple(Profile(max_batch=b, max_length=n, max_tokens=b * n) for b, n in ((8, 4), (2, 16)))
PADDED = ("input_ids", "attention_mask", "token_type_ids")
PACKED = ("input_ids", "token_type_ids", "pad_index", "unpad_index", "attention_mask")


def exported(tmp_path: Path, backend: str, **changes: Any) -> Path:
    """The folder exported from a bundle with a plan of no content."""
    target = f"{backend}-sm89"
    fields = {
        "backend": backend,
        "device": "cuda",
        "path": "engines/plan",
        "inputs": PADDED,
        "profiles": PROFILES,
        "compute_capabilities": ("8.9",),
        "tool_versions": {backend: "1.2.3"},
    }
    record = engine(target, **(fields | changes))
    folder = write_bundle(
        tmp_path / "tiny.bundle",
        engines=(engine(), record),
        parity=ParityRecord(file=None, verdicts={"onnxruntime-cpu": "passed", target: "passed"}),
    )
    (folder / "engines").mkdir()
    (folder / "engines" / "plan").write_bytes(b"a plan")
    seal(folder, decode_manifest((folder / MANIFEST_FILE).read_bytes(), "manifest"))
    export(open_bundle(folder), "trtexec", tmp_path / "out")
    return tmp_path / "out"


def commands(folder: Path) -> list[list[str]]:
    lines = (folder / "run.sh").read_text().splitlines()
    return [shlex.split(line)[:-1] for line in lines if "--loadEngine" in line]


def options(command: list[str]) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in command[1:])


def pairs(text: str) -> dict[str, str]:
    return dict(part.split(":") for part in text.split(","))


def inputs(folder: Path, command: list[str]) -> dict[str, Any]:
    """The files in the shapes that the command gives them."""
    said = options(command)
    shapes, files = pairs(said["--shapes"]), pairs(said["--loadInputs"])
    assert shapes.keys() == files.keys()
    return {
        name: np.fromfile(folder / files[name], np.int32).reshape([int(n) for n in shape.split("x")])
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("backend", "tool"), [("tensorrt", "trtexec"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_each_profile_at_its_largest_batch_by_published_options(
    tmp_path: Path, backend: str, tool: str
) -> None:
    folder = exported(tmp_path, backend)
    found = commands(folder)
    assert [command[0] for command in found] == [tool, tool]
    assert [options(command)["--useProfile"] for command in found] == ["0", "1"]
    for command, profile in zip(found, PROFILES, strict=True):
        assert options(command).keys() <= PUBLISHED[tool]
        fed = inputs(folder, command)
        assert tuple(fed) == PADDED
        assert {array.shape for array in fed.values()} == {(profile.max_batch, profile.max_length)}
        assert fed["attention_mask"].all()
        tokens = open_tokenizer(open_bundle(tmp_path / "tiny.bundle"))
        (row,) = tokens.encode(["word " * 99], max_length=profile.max_length)
        assert (fed["input_ids"] == row.ids).all()
    assert (folder / "model.plan").read_bytes() == b"a plan"
    readme = (folder / "README.md").read_text()
    assert f"{backend} 1.2.3" in readme
    assert "profile 1: up to 2 texts of up to 16 tokens" in readme


def test_packed_inputs_agree_with_each_other(tmp_path: Path) -> None:
    folder = exported(tmp_path, "tensorrt-rtx", inputs=PACKED, layout="packed")
    for command, profile in zip(commands(folder), PROFILES, strict=True):
        fed = inputs(folder, command)
        assert fed["input_ids"].shape == (profile.max_tokens,)
        there = fed["input_ids"][fed["pad_index"]]
        assert there.shape == (profile.max_batch, profile.max_length)
        assert (there.reshape(-1)[fed["unpad_index"]] == fed["input_ids"]).all()


def test_a_version_compatible_plan_says_so_to_the_tool(tmp_path: Path) -> None:
    folder = exported(tmp_path, "tensorrt", version_compatible=True)
    assert all("--versionCompatible" in options(command) for command in commands(folder))
    assert "That version or a later one reads it" in (folder / "README.md").read_text()


def test_the_script_runs_the_tool_from_anywhere_and_passes_arguments_on(tmp_path: Path) -> None:
    folder = exported(tmp_path, "tensorrt")
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\ncat "$(echo "$1" | cut -d= -f2)"\nprintf "|%s" "$@"\necho\n')
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [folder / "run.sh", "--warmUp=0", "two words"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [
        f"a plan|{'|'.join([*command[1:], '--warmUp=0', 'two words'])}" for command in commands(folder)
    ]
    assert done.stdout.splitlines() == expected


def test_the_script_stops_at_the_first_failure(tmp_path: Path) -> None:
    folder = exported(tmp_path, "tensorrt")
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho ran\nexit 3\n")
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    done = subprocess.run([folder / "run.sh"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "ran\n")


def test_engines_that_are_no_plan_are_refused(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "b"))
    with pytest.raises(BundleError, match="no engine for 'tensorrt-smNN' or 'tensorrt-rtx-smNN'"):
        export(bundle, "trtexec", tmp_path / "x")
    with pytest.raises(BundleError, match="onnxruntime-cpu is a onnxruntime engine, no TensorRT plan"):
        export(bundle, "trtexec", tmp_path / "x", target="onnxruntime-cpu")
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(tensorrt.available("tensorrt-rtx") is not None, reason="needs TensorRT-RTX")
def test_a_real_plan_is_given_shapes_that_it_was_built_for(tmp_path: Path) -> None:
    write_fixture(facts_of("sentence-transformers/all-MiniLM-L6-v2"), tmp_path / "c")
    compile_bundle(
        BuildOptions(
            repo=str(tmp_path / "c"),
            out=tmp_path / "b",
            targets=("tensorrt-rtx-sm89",),
            layout="packed",
            precision="fp16",
            max_length=64,
            max_batch=32,
            max_batch_tokens=256,
        )
    )
    export(open_bundle(tmp_path / "b"), "trtexec", tmp_path / "out", allow_unverified=True)
    ranges = shape_ranges(32, 64, 256, BACKENDS["tensorrt-rtx"].profile_step)
    found = commands(tmp_path / "out")
    assert len(found) == len(ranges)
    axes = {"input_ids": ("tokens",), "attention_mask": ("batch", "sequence")}
    for command, limits in zip(found, ranges, strict=True):
        fed = inputs(tmp_path / "out", command)
        for name, of in axes.items():
            assert fed[name].shape == limits.shapes(name, of)[2]
