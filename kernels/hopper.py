"""The forms of `bei.kernels.linear` for SM90 in CUDA C++ (hopper.cu): warpgroup products over tiles that the tensor memory
accelerator brings, the activation of one tile beside the product of the next.

Why: what bounds Triton's form is that its tensor cores wait for the activation (benchmarks/results/h100/cuda_kernels.md).
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from bei.cuda_plan import ITEMSIZE, Box, DType, Size, Symbol
from bei.kernels.activate import Act
from bei.kernels.launch import Form, Forms, KernelLaunch, Source, launch

ACTS: tuple[Act, ...] = ("identity", "gelu", "gelu_tanh", "silu", "relu", "tanh", "sigmoid")
"""By the number that hopper.cu knows them by."""
ROWS, FEATURES = 128, 64
CLUSTER = 2
"""Blocks that share the weights they fetch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """``columns`` of W a tile has (of both halves of a gate): at most 192, or 256 where two warpgroups share a tile
    (``together``); ``stages`` of them are on their way at once."""

    columns: int
    stages: int
    together: bool = False


def tile(*, width: int, act: Act, gated: bool) -> Tile:
    """For out's width. Measured on an H100 (benchmarks/results/h100/cuda_kernels.md): tiles of 192 columns, whose activation
    nothing waits for, unless they leave many columns unused and there is no activation."""
    used = width / (192 * -(-width // 192))
    if gated or act != "identity" or used > 0.93 or width % 256:
        return Tile(columns=192, stages=4)
    return Tile(columns=256, stages=4, together=True)


def fits(forms: Forms, *, sm: int, transposed: bool) -> bool:
    """Whether these forms can serve: 16-bit operands whose rows begin at multiples of 16 bytes, one weight for all."""
    x, weight, out = forms["x"], forms["weight"], forms["out"]
    if sm != 90 or transposed or forms["groups"] or not (x and weight and out):
        return False
    given = [form for form in forms.values() if form]
    return (
        x.dtype in ("f16", "bf16")
        and {form.dtype for form in given} == {x.dtype}
        and all(map(whole_pieces, given))
        and out.width % 8 == 0
    )


def whole_pieces(form: Form) -> bool:
    """Whether every row begins at a multiple of 16 bytes, as the tensor memory accelerator asks."""
    return form.aligned and form.stride * ITEMSIZE[form.dtype] % 16 == 0


def plan(
    forms: Forms, *, act: Act, gated: bool, rows: Symbol, chosen: Tile | None = None, backwards: bool = False
) -> KernelLaunch:
    """As `bei.kernels.linear.plan`; ``chosen`` takes the place of `tile`'s choice."""
    x, out = forms["x"], forms["out"]
    assert x and out
    t = chosen or tile(width=out.width, act=act, gated=gated)
    own = t.columns // 2 if gated else t.columns
    chunk = 64 if own % 64 == 0 else 32
    lines = ROWS // 2 if t.together else ROWS
    shared = t.stages * (ROWS + t.columns) * FEATURES * 2 + 4 * lines * chunk * 2 + 16 * t.stages + 32 + 1024
    part = Box(rows=lines, columns=chunk, swizzle=128 if chunk == 64 else 64)
    used = {name: form for name, form in forms.items() if name not in ("order", "groups")}
    halves = t.columns // 2
    return launch(
        used,
        function=Source(
            name="linear", text=source("hopper.cu", t.columns, x.dtype), shared=shared, cluster=CLUSTER
        ),
        sizes=(rows,),
        constants={
            "K": x.width,
            "N": out.width,
            "TN": t.columns,
            "OUT": own,
            "CHUNK": chunk,
            "STAGES": t.stages,
            "TOGETHER": t.together,
            "CLUSTER": CLUSTER,
            "SLOTS": -(-x.width // FEATURES),
            "ACT": ACTS.index(act),
            "GATED": gated,
            "BACKWARDS": backwards,
            "BIAS": forms["bias"] is not None,
            "RESIDUAL": forms["residual"] is not None,
            "BF16": x.dtype == "bf16",
        },
        grid=(Size(symbol="one", times=CLUSTER), Size(symbol="clusters")),
        warps=12,
        boxes={
            "x": Box(rows=ROWS, columns=FEATURES, swizzle=128),
            "weight": Box(rows=halves, columns=FEATURES, swizzle=128, height=out.width * (2 if gated else 1)),
            "out": part,
            **({"residual": part} if forms["residual"] else {}),
        },
    )


def source(name: str, columns: int, dtype: DType) -> str:
    """The text of a kernel here for tiles of so many columns, with what it shares with others before it."""
    return _products(columns, dtype) + text("hopper.cuh", "hopper_product.cuh", name)


@cache
def text(*names: str) -> str:
    """Files of this folder, one after another."""
    return "".join(files(__package__).joinpath(name).read_text() for name in names)


def _products(columns: int, dtype: DType) -> str:
    """``mma``: d (64 rows, ``columns``) = a · b, or + a · b where ``more`` is not 0; a and b by their descriptors."""
    n, high = columns // 2, 1 << 30 | 1024 >> 4
    sums = ", ".join(f"%{i}" for i in range(n))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(n))
    return f"""
__device__ __forceinline__ void mma(float (&d)[{n}], unsigned a, unsigned b, int more) {{
    asm volatile(
        "{{\\n.reg .pred more;\\n.reg .b64 a, b;\\nsetp.ne.b32 more, %{n + 2}, 0;\\n"
        "mov.b64 a, {{%{n}, {high}}};\\nmov.b64 b, {{%{n + 1}, {high}}};\\n"
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype}.{dtype} {{{sums}}}, a, b, more, 1, 1, 0, 0;\\n}}\\n"
        : {outputs}
        : "r"(a), "r"(b), "r"(more));
}}
"""
