"""A plan under construction: what is dropped, what shares memory, what refuses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.cases import CASES
from tests.adapters.tiny import HIDDEN_STATES, Loaded, load, save

from bei.compiler.engines.cuda import lower
from bei.compiler.lowering.cuda_large import LEAST
from bei.compiler.lowering.cuda_options import CudaOptions
from bei.compiler.lowering.cuda_program import Program
from bei.compiler.lowering.cuda_rows import FULL
from bei.compiler.lowering.cuda_steps import reads, writes
from bei.cuda_plan import (
    PLAN_VERSION,
    Launch,
    Operand,
    Plan,
    Product,
    Schedule,
    Symbol,
    Waves,
    decode_plan,
    encode_plan,
)
from bei.errors import BundleError


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = tmp_path_factory.mktemp("bert")
    save(CASES[0], folder)
    return load(folder)


def plan_of(bert: Loaded, **options: str) -> Plan:
    plan, _ = lower(bert.cfg, HIDDEN_STATES, bert.weights, CudaOptions(sm=90, **options))  # type: ignore[arg-type]
    return plan


def at_once(function: str) -> int:
    """Clusters of blocks that a GPU runs."""
    return 66


def ops(plan: Plan) -> list[str]:
    return [step.op if isinstance(step, Launch) else "product" for step in plan.schedules[0].steps]


def test_a_bert_layer_is_seven_steps(bert: Loaded) -> None:
    layer = ["product", "attention", "product", "add_norm", "linear", "product", "add_norm"]
    assert ops(plan_of(bert)) == ["embed", *layer * len(bert.cfg.layers)]


def test_large_batches_compute_every_product_in_our_own_kernel(bert: Loaded) -> None:
    large = plan_of(bert).schedule(LEAST, at_once)
    layer = ["linear", "attention", "linear", "add_norm", "linear", "linear", "add_norm"]
    steps = [step for step in large.steps if isinstance(step, Launch)]
    assert [step.op for step in steps] == ["embed", *layer * len(bert.cfg.layers)] and len(steps) == len(
        large.steps
    )
    for step in (step for step in steps if step.op == "linear"):
        assert set(step.boxes) == {"x", "weight", "out"}
        assert not step.few, "what serves small batches only is left out"
    assert plan_of(bert).schedule(LEAST - 1, at_once).least == 0


def test_a_stream_in_fp16_is_summed_by_the_product_that_adds_to_it(tmp_path: Path) -> None:
    save(next(case for case in CASES if case.name == "qwen3"), tmp_path)
    loaded = load(tmp_path)
    for stream, summed in (("f16", 2 * len(loaded.cfg.layers) - 1), ("f32", 0)):
        steps = plan_of(loaded, stream=stream).schedule(LEAST, at_once).steps
        launches = [step for step in steps if isinstance(step, Launch)]
        inside = [step for step in launches if step.op == "linear" and step.operands["residual"]]
        assert len(inside) == summed
        for step in inside:
            out, residual = step.operands["out"], step.operands["residual"]
            assert out and residual and out.name != residual.name and "residual" in step.boxes
            reader = next(s for s in launches if s.op == "add_norm" and s.operands["x"] == out)
            assert reader.operands["a"] is None and "total" not in reader.writes


@pytest.mark.parametrize(
    ("tokens", "clusters", "kind"),
    [
        (LEAST - 1, 30, "general"),
        (LEAST, 66, "large"),
        (6320, 66, "large"),  # 0.748 of 66 clusters of 128 rows
        (6336, 66, "rows"),
        (8448, 66, "rows"),
        (8464, 66, "large"),
        (12672, 66, "rows"),
        (16384, 66, "rows"),
        (16384, 60, "large"),
        (1 << 20, 61, "rows"),
        (1 << 20, 0, "large"),
    ],
)
def test_whole_rows_are_for_batches_that_fill_the_gpu_with_them(
    bert: Loaded, tokens: int, clusters: int, kind: str
) -> None:
    output = Operand(place="arena", name="y", rows="rows", dtype="f32", width=8, stride=8)
    waves = Waves(function="f", rows=128, full=FULL)
    general, large, rows = (
        Schedule(least=least, waves=wave, steps=(), buffers={}, output=output)
        for least, wave in ((0, None), (LEAST, None), (LEAST, waves))
    )
    plan = msgspec.structs.replace(plan_of(bert), schedules=(general, large, rows))
    asked: list[str] = []

    def at_once(function: str) -> int:
        asked.append(function)
        return clusters

    assert plan.schedule(tokens, at_once) is {"general": general, "large": large, "rows": rows}[kind]
    assert asked == (["f"] if tokens >= LEAST else [])


def test_products_begin_where_the_step_before_has_ended_or_end_where_the_next_begins(bert: Loaded) -> None:
    plan = plan_of(bert)
    general, large = (
        [isinstance(step, Launch) and step.attrs.get("backwards", False) for step in schedule.steps]
        for schedule in plan.schedules
    )
    layer = [True, False, True, False, True, True, False]  # attention and norms go one way only
    assert not any(general) and large == [False, *layer * len(bert.cfg.layers)]


def test_activations_are_kernels_of_their_own_where_fusing_was_not_measured(bert: Loaded) -> None:
    for options in (CudaOptions(sm=89), CudaOptions(sm=90, fuse_activation=False)):
        plan, _ = lower(bert.cfg, HIDDEN_STATES, bert.weights, options)
        assert ops(plan).count("activate") == len(bert.cfg.layers) and "linear" not in ops(plan)


def test_small_batches_have_forms_of_their_own(bert: Loaded) -> None:
    plan = plan_of(bert)
    fused = next(step for step in plan.schedules[0].steps if isinstance(step, Launch) and step.op == "linear")
    most = [few.most for few in fused.few]
    assert len(most) > 1 and most == sorted(most)
    chosen = [fused.form({"tokens": n}) for n in (1, most[0], most[0] + 1, most[-1], most[-1] + 1)]
    assert chosen == [fused.few[0], fused.few[0], fused.few[1], fused.few[-1], fused]
    _, kernels = lower(bert.cfg, HIDDEN_STATES, bert.weights, CudaOptions(sm=90))
    assert {fused.function, *(few.function for few in fused.few)} <= set(kernels)


def test_gelu_in_the_epilogue_is_a_choice_that_the_plan_states(bert: Loaded) -> None:
    plan = plan_of(bert, gelu="tanh")
    assert plan.gelu == "tanh" and "activate" not in ops(plan)
    assert [step.epilogue for step in plan.schedules[0].steps if isinstance(step, Product)].count(
        "gelu_tanh"
    ) == len(bert.cfg.layers)
    assert all(
        step.epilogue == "none" for step in plan_of(bert).schedules[0].steps if isinstance(step, Product)
    )


def test_q_k_v_are_one_product(bert: Loaded) -> None:
    first = next(step for step in plan_of(bert).schedules[0].steps if isinstance(step, Product))
    assert first.out.width == 3 * bert.cfg.dim
    assert first.weight.name.startswith("layers.0.q.weight+layers.0.k.weight+layers.0.v.weight")


def test_a_post_norm_stream_is_written_once_in_fp16(bert: Loaded) -> None:
    norms = [
        step
        for step in plan_of(bert).schedules[0].steps
        if isinstance(step, Launch) and step.op == "add_norm"
    ]
    assert {step.writes for step in norms[:-1]} == {("half",)}
    assert norms[-1].writes == ("full",)  # the head is fp32


def test_an_fp32_stream_is_written_beside_the_products_input(bert: Loaded) -> None:
    plan = plan_of(bert, stream="f32")
    norms = [step for step in plan.schedules[0].steps if isinstance(step, Launch) and step.op == "add_norm"]
    assert norms[0].writes == ("half", "full")


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_buffers_that_live_at_once_do_not_overlap(index: int, tmp_path: Path) -> None:
    save(CASES[index], tmp_path)
    check_places(plan_of(load(tmp_path)))


def check_places(plan: Plan) -> None:
    for schedule in plan.schedules:
        check_buffers(schedule, plan.arena)


def check_buffers(schedule: Schedule, arena: Mapping[Symbol, int]) -> None:
    lives: dict[str, list[int]] = {schedule.output.name: [len(schedule.steps)]}
    for at, step in enumerate(schedule.steps):
        for operand in (*reads(step), *writes(step)):
            if operand.place == "arena":
                lives.setdefault(operand.name, []).append(at)
    for a, first in schedule.buffers.items():
        assert first.offset + first.row_bytes <= arena[first.rows]
        for b, second in schedule.buffers.items():
            together = a < b and first.rows == second.rows
            if together and min(lives[a]) <= max(lives[b]) and min(lives[b]) <= max(lives[a]):
                apart = (first.offset + first.row_bytes, second.offset + second.row_bytes)
                assert apart[0] <= second.offset or apart[1] <= first.offset, (a, b)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=12))
def test_a_chain_of_any_widths_fits_and_is_small(chain: Sequence[tuple[int, int]]) -> None:
    """Each step reads one of the last four buffers; no more than the live ones need memory."""
    program = Program({})
    made: list[Operand] = [program.buffer("tokens", 8, "f16")]
    for width, back in chain:
        source = made[max(0, len(made) - 1 - back)]
        out = program.buffer("tokens", width, "f32")
        program.steps.append(Product(x=source, weight=source, bias=None, out=out))
        made.append(out)
    finished = program.finish(made[-1], 90)
    total = sum(buffer.row_bytes for buffer in finished.buffers.values())
    assert finished.arena["tokens"] <= total
    assert all(buffer.offset % 16 == 0 for buffer in finished.buffers.values())
    assert made[-1].name in finished.buffers


def test_what_nothing_reads_is_dropped() -> None:
    program = Program({})
    x = program.buffer("tokens", 8, "f16")
    wanted, unwanted = program.buffer("tokens", 8, "f16"), program.buffer("tokens", 8, "f16")
    program.steps += [Product(x=x, weight=x, bias=None, out=out) for out in (wanted, unwanted)]
    finished = program.finish(wanted, 90)
    assert [writes(step)[0].name for step in finished.steps] == [wanted.name]


def test_a_plan_survives_its_encoding(bert: Loaded) -> None:
    plan = plan_of(bert)
    assert decode_plan(encode_plan(plan), "plan") == plan


@pytest.mark.parametrize("data", [b"", b"\x00", b"{}", b"\xc1" * 40])
def test_a_damaged_plan_is_a_bundle_error(data: bytes) -> None:
    with pytest.raises(BundleError, match="not a launch plan"):
        decode_plan(data, "engines/cuda-sm90/plan")


def test_a_plan_of_another_version_is_refused(bert: Loaded) -> None:
    import msgspec

    newer = msgspec.structs.replace(plan_of(bert), version=99)
    with pytest.raises(BundleError, match=f"plan version 99, but this bei reads {PLAN_VERSION}"):
        decode_plan(encode_plan(newer), "plan")
