"""A plan beside a script that loads it with NVIDIA's own command-line tool: ``trtexec`` of TensorRT, ``tensorrt_rtx`` of
TensorRT-RTX.

One command for each profile, at its largest batch. Inputs are files: the random numbers that the tool makes up are no
token ids, and packed index arrays have to agree with each other.
"""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.compiler.export.folder import choose
from bei.errors import BundleError
from bei.manifest import EngineRecord, Manifest, Profile
from bei.runtime.bundle import Bundle
from bei.runtime.executor import Row
from bei.runtime.packing import pack, pad
from bei.runtime.tokenizer import Tokenizer, open_tokenizer

PLAN, CACHE = "model.plan", "runtime.cache"
TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
WORD = "word "

SCRIPT = """\
#!/bin/sh
# {name}, {target}: each profile's largest batch. Arguments of this script go to every command.
set -e
cd "$(dirname "$0")"
{commands}
"""

README = """\
# {name} for {tool}

`{plan}` is the plan of {target}, built by {version}. {reader}

`./run.sh` runs each profile at its largest batch, on the inputs beside it; arguments go to the tool, such as
`./run.sh --warmUp=500 --dumpOutput`.

{profiles}

Inputs are int32 files in C order; the output is `{output}`, float32. For another shape within a profile change
`--shapes` and give files of that shape.
"""


def write(bundle: Bundle, folder: Path, *, target: str | None, allow_unverified: bool) -> EngineRecord:
    """Fill ``folder``; ``target`` None takes the first TensorRT engine there is. Raises BundleError."""
    manifest = bundle.manifest
    record = choose(manifest, [target] if target else _plans(manifest), allow_unverified=allow_unverified)
    if record.backend not in TOOLS:
        raise BundleError(
            f"{manifest.name}: {record.target} is a {record.backend} engine, no TensorRT plan. "
            "Choose a tensorrt or tensorrt-rtx target, or another --format."
        )
    shutil.copyfile(bundle.path / record.path, folder / PLAN)
    tokenizer = open_tokenizer(bundle)
    commands = []
    for index, profile in enumerate(record.profiles):
        arrays = largest_batch(manifest, record, profile, tokenizer)
        files = {name: f"inputs/{index}-{name}.bin" for name in arrays}
        (folder / "inputs").mkdir(exist_ok=True)
        for name, array in arrays.items():
            (folder / files[name]).write_bytes(array.tobytes())
        shapes = {name: array.shape for name, array in arrays.items()}
        commands.append(f'{shlex.join(command(record, index, shapes, files))} "$@"')
    _write_script(folder / "run.sh", manifest, record, commands)
    (folder / "README.md").write_text(_readme(manifest, record), encoding="utf-8")
    return record


def command(
    record: EngineRecord, profile: int, shapes: Mapping[str, Sequence[int]], files: Mapping[str, str]
) -> list[str]:
    """The tool and its arguments for one batch: ``shapes`` and ``files`` by input."""
    said = [TOOLS[record.backend], f"--loadEngine={PLAN}", f"--useProfile={profile}"]
    said.append("--shapes=" + ",".join(f"{name}:{_by(shape)}" for name, shape in shapes.items()))
    said.append("--loadInputs=" + ",".join(f"{name}:{file}" for name, file in files.items()))
    if record.version_compatible:
        said.append("--versionCompatible")  # allows the code in the plan to run
    if record.backend == "tensorrt-rtx":
        said.append(f"--runtimeCacheFile={CACHE}")
    return said


def largest_batch(
    manifest: Manifest, record: EngineRecord, profile: Profile, tokenizer: Tokenizer
) -> dict[str, npt.NDArray[Any]]:
    """The plan's inputs, int32, for as many of the longest rows as the profile takes."""
    rows = [_longest_row(tokenizer, profile.max_length)] * profile.max_batch
    packed = record.layout == "packed"
    arrays = pack(rows) if packed else pad(rows, manifest.tokenizer.pad_id, np.int32)
    return {name: arrays[name] for name in record.inputs}


def _longest_row(tokenizer: Tokenizer, length: int) -> Row:
    """Of exactly ``length`` tokens, special ones included: every word is at least one."""
    (row,) = tokenizer.encode([WORD * length], max_length=length)
    return row


def _plans(manifest: Manifest) -> list[str]:
    """TensorRT engines; where there are none the names that there could be, for the message."""
    return [r.target for r in manifest.engines if r.backend in TOOLS] or [
        "tensorrt-smNN",
        "tensorrt-rtx-smNN",
    ]


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _write_script(path: Path, manifest: Manifest, record: EngineRecord, commands: Sequence[str]) -> None:
    text = SCRIPT.format(name=manifest.name, target=record.target, commands="\n".join(commands))
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def _readme(manifest: Manifest, record: EngineRecord) -> str:
    version = record.tool_versions.get(record.backend, "an unknown version")
    later = (
        "That version or a later one reads it" if record.version_compatible else "Only that version reads it"
    )
    profiles = "\n".join(
        f"- profile {index}: up to {p.max_batch} texts of up to {p.max_length} tokens"
        for index, p in enumerate(record.profiles)
    )
    return README.format(
        name=manifest.name,
        tool=TOOLS[record.backend],
        plan=PLAN,
        target=record.target,
        version=f"{record.backend} {version}",
        reader=f"{later}, on compute capability {', '.join(record.compute_capabilities)}.",
        profiles=profiles,
        output=manifest.head.output,
    )
