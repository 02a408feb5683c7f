"""The planner's activation memory against what the builder reports, model by model of the zoo.

python -m benchmarks.tensorrt_memory [--only GLOB]

Stand-ins at full width with as few layers as show every kind of layer (activations are those of one layer, whatever their
number), under several budgets, padded. Deterministic: no number depends on the machine.
"""

import argparse
import fnmatch
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import save

from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.load import LoadedModel, load_model
from bei.compiler.engines import tensorrt
from bei.compiler.engines.tensorrt import TensorRtOptions
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import TENSORRT
from bei.compiler.planning.memory import TOLERANCE, Subject, plan_memory
from bei.compiler.target import parse_target
from bei.compiler.zoo.fact_files import facts_of, load_facts
from bei.compiler.zoo.fixture import FixtureOptions, write_fixture
from bei.errors import EngineError
from bei.manifest import Limits

TARGET = parse_target("tensorrt-rtx-sm89")
WHAT = "Activation memory as planned and as TensorRT-RTX's builder reports it, tensorrt-rtx-sm89, MB of the largest profile"
SIZES = ((1, 512), (32, 128), (32, 512), (4, 4096))
"""Texts a call and tokens a text, where the model serves that many."""


def compared(repo: str, model: LoadedModel, limits: Limits, folder: Path) -> dict[str, Any]:
    """One build; largest activation planned and reported."""
    subject = Subject(cfg=model.cfg, head=model.head, weights=model.weights, limits=limits)
    plan = plan_memory(TARGET, subject)
    assert plan is not None
    options = TensorRtOptions(
        target=TARGET,
        layout="padded",
        max_batch=limits.max_batch,
        max_length=limits.max_length,
        max_batch_tokens=limits.max_batch_tokens,
        allow_unfused=True,
    )
    graph = emit(model.cfg, model.head, model.weights, TENSORRT)
    row: dict[str, Any] = {"model": repo, "texts × tokens": f"{limits.max_batch} × {limits.max_length}"}
    row["planned MB"] = round(plan.activation / 1e6, 1)
    try:
        built = tensorrt.build(graph.serialize(), graph.weights, options, folder / "plan")
    except EngineError as error:
        return row | {"note": str(error)[:200]}
    reported = max(profile.activation_bytes or 0 for profile in built.profiles)
    ratio = plan.activation / reported
    return row | {
        "reported MB": round(reported / 1e6, 1),
        "planned ÷ reported": round(ratio, 3),
        "within 15 %": "yes" if abs(ratio - 1) <= TOLERANCE else "no",
    }


def rows(repo: str) -> Iterator[dict[str, Any]]:
    """A row for each size that the model serves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "checkpoint")
        facts = facts_of(repo)
        write_fixture(facts, folder, FixtureOptions(full_width=True, small_vocabulary=True, sparse=True))
        checkpoint = open_checkpoint(str(folder))
        model = load_model(checkpoint, adapter_for(checkpoint.config), values=False)
        longest = facts.tokenizer.model_max_length
        for texts, tokens in SIZES:
            if tokens <= longest and (model.cfg.positions == 0 or tokens <= model.cfg.positions):
                limits = Limits(max_length=tokens, max_batch_tokens=texts * tokens, max_batch=texts)
                yield compared(repo, model, limits, Path(name))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hold the planner to the builder.")
    parser.add_argument("--only", default="*", metavar="GLOB", help="repositories that match")
    args = parser.parse_args(argv)
    chosen = [repo for repo in load_facts() if fnmatch.fnmatchcase(repo, args.only)]
    save("tensorrt_memory", WHAT, [row for repo in chosen for row in rows(repo)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
