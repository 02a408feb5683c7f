"""A launch plan in words, as `bei-inspect --steps` prints it."""

import json
from pathlib import Path

import msgspec
import pytest
from tests.adapters.cases import CASES
from tests.adapters.tiny import Loaded, load, save
from tests.compiler.cuda.test_engine import EMBED, RECORD

from bei.compiler.engines.cuda import evidence, lower
from bei.compiler.lowering.cuda_large import LEAST
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.cuda_plan import Plan, Size, Waves, encode_plan
from bei.errors import BundleError
from bei.runtime import inspect_cli
from bei.runtime.bundle import Bundle
from bei.runtime.cuda.listing import _size, lines, listed
from bei.runtime.evidence import sentences


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = tmp_path_factory.mktemp("bert")
    save(CASES[0], folder)
    return load(folder)


@pytest.fixture(scope="module")
def plan(bert: Loaded) -> Plan:
    return lower(bert.cfg, EMBED, bert.weights, CudaOptions(sm=90))[0]


def test_every_step_says_what_it_reads_and_writes_and_where(plan: Plan, bert: Loaded) -> None:
    facts = json.loads(json.dumps(listed(plan)))
    assert [schedule["least_tokens"] for schedule in facts["schedules"]] == [0, LEAST]
    for schedule, made in zip(facts["schedules"], plan.schedules, strict=True):
        assert len(schedule["steps"]) == len(made.steps)
        product = schedule["steps"][1]
        dim = bert.cfg.dim
        name = "layers.0.q.weight+layers.0.k.weight+layers.0.v.weight:f16"
        assert product["reads"]["weight"] == f"{name}: {3 * dim} × {dim}"
        (out,) = product["writes"].values()
        buffer = out.partition(":")[0]
        assert out == f"{buffer}: tokens × {3 * dim} f16 at {made.buffers[buffer].offset}"
        query, key = (schedule["steps"][2]["reads"][name] for name in ("q", "k"))
        assert query == f"{buffer}: tokens × 0…{dim} of {3 * dim} f16 at {made.buffers[buffer].offset}"
        assert f" {dim}…{2 * dim} of " in key
    general, large = facts["schedules"]
    assert general["steps"][1]["kernel"] == "cuBLASLt" and large["steps"][1]["kernel"].startswith("linear-")
    assert large["steps"][1]["grid"] == ["2", "clusters"]


def test_rows_for_people_name_the_batches_they_are_for(plan: Plan) -> None:
    (small, rows), (large, _) = lines(plan)
    assert small == f"{len(rows)} steps, fewer than {LEAST} tokens" and large.endswith(
        f"{LEAST} tokens and more"
    )
    assert [row[0] for row in rows] == [str(n) for n in range(len(rows))]
    assert rows[0][1].startswith("embed\n") and rows[0][2].startswith("ids: tokens × 1 i32")
    fused = next(row for row in rows if row[1].startswith("linear"))
    assert "act gelu" in fused[1] and "gated" not in fused[1] and "to 48 rows: linear-" in fused[4]


def test_steps_for_whole_rows_say_when_they_are_used(plan: Plan) -> None:
    general, large = plan.schedules
    waves = Waves(function="f", rows=128, full=0.88)
    fused = msgspec.structs.replace(large, waves=waves)
    whole = msgspec.structs.replace(plan, schedules=(general, large, fused))
    titles = [title.partition(", ")[2] for title, _ in lines(whole)]
    assert titles == [
        f"fewer than {LEAST} tokens",
        f"{LEAST} tokens and more",
        f"{LEAST} tokens and more that fill the GPU to 88% with 128 rows a cluster",
    ]
    said = list(sentences(evidence(whole)))
    assert said[2].startswith(f"from {LEAST} tokens that fill the GPU with whole rows: ")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (Size(symbol="one", times=12), "12"),
        (Size(symbol="work"), "work"),
        (Size(symbol="tokens", per=64), "⌈tokens / 64⌉"),
        (Size(symbol="tokens", times=2, plus=127, per=128), "⌈(tokens · 2 + 127) / 128⌉"),
    ],
)
def test_sizes_read_as_formulas(size: Size, said: str) -> None:
    assert _size(size) == said


def test_a_manifest_says_what_is_launched_without_the_plan(plan: Plan) -> None:
    first, second, third = sentences(evidence(plan))
    layers = sum(step.op == "attention" for step in plan.schedules[0].steps if hasattr(step, "op"))
    assert first.startswith("from 0 tokens: ") and f"{3 * layers} product by cuBLASLt" in first
    assert second.startswith(f"from {LEAST} tokens: ") and "cuBLASLt" not in second
    assert third.startswith("stream f16, gelu erf; arena ")


def test_plans_are_read_from_a_bundle(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(encode_plan(plan))

    class Holding:
        engines = (RECORD,)

    bundle = Bundle(path=tmp_path, manifest=Holding())  # type: ignore[arg-type]
    assert inspect_cli.launch_plans(bundle) == {"cuda-sm90": plan}
    (tmp_path / "plan").write_bytes(encode_plan(msgspec.structs.replace(plan, version=1)))
    with pytest.raises(BundleError, match="plan version 1"):
        inspect_cli.launch_plans(bundle)
