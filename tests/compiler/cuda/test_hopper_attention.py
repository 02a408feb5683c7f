"""Hopper's form of attention: what it compiles to, for which heads it is chosen. Its values are checked on a GPU (tests/kernels)."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.compiler.cuda.test_hopper import disassembled

from bei.cuda_plan import DType
from bei.kernels import attention, hopper_attention
from bei.kernels.launch import Form, Source

Shape = dict[str, Any]
NARROW: Shape = {"heads": 12, "kv_heads": 12, "head_dim": 32}
USUAL: Shape = {"heads": 12, "kv_heads": 12, "head_dim": 64}
GROUPED: Shape = {"heads": 16, "kv_heads": 8, "head_dim": 128}
WIDE: Shape = {"heads": 3, "kv_heads": 1, "head_dim": 256}


def attrs(shape: Shape, **other: Any) -> Shape:
    plain = {"causal": False, "window": None, "softcap": None, "bias_kind": None}
    return {**shape, "scale": shape["head_dim"] ** -0.5, **plain, **other}


def forms(shape: Shape, dtype: DType = "f16", bias: int | None = None) -> dict[str, Form | None]:
    own, shared = shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"]

    def part(width: int) -> Form:
        return Form(dtype=dtype, width=width, stride=own + 2 * shared)

    return {
        "q": part(own),
        "k": part(shared),
        "v": part(shared),
        "work": Form(dtype="i32", width=4, stride=4),
        "bias": Form(dtype="f32", width=bias, stride=bias) if bias else None,
        "out": Form(dtype=dtype, width=own, stride=own),
    }


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize(
    ("shape", "other"),
    [
        (NARROW, {}),
        (USUAL, {}),
        (USUAL, {"window": 64}),
        ({**USUAL, "kv_heads": 3}, {}),
        (GROUPED, {"causal": True}),
        (WIDE, {"window": 256}),
    ],
)
def test_softmax_runs_beside_the_products(shape: Shape, other: Shape, dtype: DType, tmp_path: Path) -> None:
    """No register is spilled, and in the loop over keys the scores are waited for while the values' product goes on."""
    how = hopper_attention.plan(forms(shape, dtype), sm=90, **attrs(shape, **other))
    t = hopper_attention.tile(window=other.get("window"), **shape)
    assert how is not None and t is not None
    code = disassembled(how, tmp_path, threads=128 * (t.warpgroups + 1))
    assert not any(word in line for line in code for word in ("LDL", "STL"))
    kind = "16.F32" + (".BF16" if dtype == "bf16" else "")
    products = [(n, line) for n, line in enumerate(code) if "HGMMA" in line]
    values = [n for n, line in products if "tnspB" in line]
    assert len(values) == 2 * t.keys // 16 and len(products) - len(values) == 2 * shape["head_dim"] // 16
    assert all(f"64x{shape['head_dim'] if n in values else t.keys}x{kind}" in line for n, line in products)
    waits = [int(found[1], 16) for line in code if (found := re.search(r"DEPBAR.LE gsb0, 0x(\d)", line))]
    assert waits == [0, 1, 0, 0]
    loop = code[products[shape["head_dim"] // 16][0] : values[t.keys // 16 - 1]]
    assert not any(word in line for line in loop for word in ("MEMBAR", "LDG", "STG", "BAR.SYNC"))
    assert any("UTMALDG" in line for line in code)


def test_what_it_serves() -> None:
    served = [
        NARROW,
        USUAL,
        GROUPED,
        WIDE,
        {**USUAL, "heads": 7, "kv_heads": 1},
        {**USUAL, "heads": 3, "kv_heads": 3},
    ]
    for shape in served:
        how = attention.plan(forms(shape), sm=90, **attrs(shape))
        assert isinstance(how.function, Source) and set(how.boxes) == {"q", "k", "v"}
        block, queries = attention.query_block(90, shape["head_dim"]), how.constants["QUERIES"]
        assert queries % block == 0 and shape["heads"] % how.constants["HEADS_A_TILE"] == 0


@pytest.mark.parametrize(
    ("operands", "other", "sm"),
    [
        (forms(USUAL), {}, 80),
        (forms(USUAL), {}, 100),
        (forms(USUAL, "f32"), {}, 90),
        (forms(USUAL), {"softcap": 50.0}, 90),
        (forms(USUAL, bias=12), {"bias_kind": "alibi"}, 90),
        (forms(USUAL, bias=41), {"bias_kind": "distance"}, 90),
        (forms({**USUAL, "head_dim": 48}), {"head_dim": 48}, 90),
        (forms({**NARROW, "heads": 3, "kv_heads": 3}), {"head_dim": 32, "heads": 3, "kv_heads": 3}, 90),
        (forms({**NARROW, "kv_heads": 6}), {"head_dim": 32, "kv_heads": 6}, 90),
        (forms(USUAL) | {"v": Form(dtype="bf16", width=768, stride=2304)}, {}, 90),
        (forms(USUAL) | {"q": Form(dtype="f16", width=768, stride=772)}, {}, 90),
        (forms(USUAL) | {"out": Form(dtype="f16", width=768, stride=768, aligned=False)}, {}, 90),
    ],
)
def test_what_goes_to_triton(operands: dict[str, Form | None], other: Shape, sm: int) -> None:
    whole = {**attrs(USUAL), **other}
    assert not isinstance(attention.plan(operands, sm=sm, **whole).function, Source)
    assert not attention.few(operands, sm=sm, **whole)


def test_small_batches_go_to_triton() -> None:
    few = attention.few(forms(USUAL), sm=90, **attrs(USUAL))
    assert list(few) == [32] and not isinstance(few[32].function, Source)
    assert few[32].sizes == attention.plan(forms(USUAL), sm=90, **attrs(USUAL)).sizes == ("work",)
    assert list(attention.few(forms(NARROW), sm=90, **attrs(NARROW))) == [64]
    assert list(attention.few(forms(GROUPED), sm=90, **attrs(GROUPED))) == [8]
    assert not attention.few(forms(WIDE), sm=90, **attrs(WIDE))


def test_the_scale_reaches_the_compiler_whole(tmp_path: Path) -> None:
    how = hopper_attention.plan(forms(USUAL), sm=90, **attrs(USUAL, scale=0.3))
    assert how is not None
    source = replace(how.function, text=how.function.text + "\nstatic_assert(SCALE == 0.3f);\n")
    disassembled(replace(how, function=source), tmp_path, threads=640)
