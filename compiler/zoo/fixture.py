"""A stand-in for a checkpoint: a folder with the Hub's layout, random live weights and a small tokenizer of its kind.

config.json, tensor names and dtypes, baggage, shards, sentence-transformers modules and tokenizer files are those of
the facts; sizes are reduced unless the full width is asked for. The folder appears complete or not at all.
"""

import fnmatch
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bei.compiler.zoo.fact_files import CheckpointFacts, tokenizer_facts
from bei.compiler.zoo.sentence_files import dense_tensors, write_sentence_files
from bei.compiler.zoo.shapes import TensorSpec, tensors_of
from bei.compiler.zoo.small_config import scaled_length, stand_in_config
from bei.compiler.zoo.tokenizer_files import write_tokenizer
from bei.compiler.zoo.values import live_values
from bei.compiler.zoo.vocabulary import Vocabulary, vocabulary
from bei.compiler.zoo.weights_file import Values, file_size, split_shards, write_weights
from bei.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SMALL_FILES = 32 << 20
GATES = "*.mlp.*gate*"
"""Bytes that configuration and tokenizer take at most."""

CARD = """\
# Stand-in for {repo}

Random weights with the layout of {repo}, written by `bei-zoo fixture`. This is not the model: its answers mean nothing.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FixtureOptions:
    """``layers`` None: as few as show every kind of layer. ``sparse``: weights read as zeros and take no space.

    ``small_vocabulary``: a reduced one even at full width, whose tables would be most of the file.
    """

    full_width: bool = False
    small_vocabulary: bool = False
    layers: int | None = None
    seed: int = 0
    sparse: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FixturePlan:
    """What will be written. ``shards``: file name → its tensors; ``dense``: one tuple a Dense module."""

    facts: CheckpointFacts
    options: FixtureOptions
    config: dict[str, Any]
    vocabulary: Vocabulary
    tensors: tuple[TensorSpec, ...]
    shards: dict[str, tuple[TensorSpec, ...]]
    dense: tuple[tuple[TensorSpec, ...], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights files."""
        own = sum(_file_size(self.facts, shard) for shard in self.shards.values())
        return own + sum(file_size(module) for module in self.dense)

    def length(self, tokens: int) -> int:
        """A limit in tokens, shrunk as the configuration's are."""
        return scaled_length(self.facts.config, tokens, full_width=self.options.full_width)


def real_size(facts: CheckpointFacts) -> int:
    """Bytes of the real checkpoint's own weights, Dense modules not counted."""
    tensors = tensors_of(facts, facts.config)
    return sum(_file_size(facts, shard) for shard in _shards(tensors, facts.files.shards).values())


def plan_fixture(facts: CheckpointFacts, options: FixtureOptions | None = None) -> FixturePlan:
    """Decide everything and write nothing; raises CheckpointError for layers that the checkpoint does not have."""
    options = options or FixtureOptions()
    tokenizer = tokenizer_facts()[facts.tokenizer.name]
    full_vocabulary = options.full_width and not options.small_vocabulary
    tokens = vocabulary(tokenizer, full=full_vocabulary)
    config = stand_in_config(
        facts,
        layers=options.layers if options.layers is not None else facts.layers,
        full_width=options.full_width,
        full_vocabulary=full_vocabulary,
        tokenizer=tokenizer,
        ids=tokens.ids,
    )
    tensors = tensors_of(facts, config)
    return FixturePlan(
        facts=facts,
        options=options,
        config=config,
        vocabulary=tokens,
        tensors=tensors,
        shards=_shards(tensors, facts.files.shards),
        dense=dense_tensors(facts, config),
    )


def write_fixture(facts: CheckpointFacts, out: Path, options: FixtureOptions | None = None) -> FixturePlan:
    """Write the folder ``out``, which must not exist or be empty; raises CheckpointError."""
    plan = plan_fixture(facts, options)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: exists already. Remove it, or give another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(plan, out.parent)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            folder = Path(temporary) / "fixture"
            folder.mkdir()
            _write(plan, folder)
            folder.replace(out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror}). Give another --out.") from None
    return plan


def _file_size(facts: CheckpointFacts, tensors: tuple[TensorSpec, ...]) -> int:
    return file_size(tensors, metadata=facts.files.metadata, padded=facts.files.padded_header)


def _shards(tensors: tuple[TensorSpec, ...], count: int) -> dict[str, tuple[TensorSpec, ...]]:
    if count == 1:
        return {SINGLE: tensors}
    parts = split_shards(tensors, count)
    return {f"model-{i:05}-of-{count:05}.safetensors": part for i, part in enumerate(parts, 1)}


def _check_space(plan: FixturePlan, where: Path) -> None:
    needed = SMALL_FILES + (0 if plan.options.sparse else plan.nbytes)
    free = shutil.disk_usage(where).free
    if needed > free:
        raise CheckpointError(
            f"{plan.facts.repo}: needs {needed / 1e9:.2f} GB, but {where} has {free / 1e9:.2f} GB free. "
            "Use fewer --layers or --sparse, or another --out."
        )


def _write(plan: FixturePlan, folder: Path) -> None:
    facts = plan.facts
    (folder / "README.md").write_text(CARD.format(repo=facts.repo), encoding="utf-8")
    _write_json(folder / "config.json", plan.config)
    _write_weights(plan, folder)
    limit = plan.length(facts.tokenizer.model_max_length)
    write_tokenizer(folder, tokenizer_facts()[facts.tokenizer.name], facts.tokenizer, plan.vocabulary, limit)
    if facts.sentence is not None:
        write_sentence_files(folder, facts.sentence, plan.config, plan.length)


def _write_weights(plan: FixturePlan, folder: Path) -> None:
    files = plan.facts.files
    for name, tensors in plan.shards.items():
        values = _values(plan)
        write_weights(folder / name, tensors, values, metadata=files.metadata, padded=files.padded_header)
    if len(plan.shards) > 1:
        owners = {spec.name: name for name, tensors in plan.shards.items() for spec in tensors}
        total = sum(spec.nbytes for spec in plan.tensors)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": owners})
    for number, tensors in enumerate(plan.dense, 2):
        (folder / f"{number}_Dense").mkdir()
        write_weights(folder / f"{number}_Dense" / SINGLE, tensors, _values(plan, f"{number}_Dense."))


def _values(plan: FixturePlan, prefix: str = "") -> Values | None:
    """``prefix`` sets the streams of tensors with the same name in different files apart."""
    if plan.options.sparse:
        return None
    return partial(
        live_values,
        seed=f"{plan.options.seed}:{prefix}",
        norm_centre=plan.facts.norm_centre,
        layers=1 + max(spec.layer or 0 for spec in plan.tensors),
        gated=any(fnmatch.fnmatchcase(spec.name, GATES) for spec in plan.tensors),
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
