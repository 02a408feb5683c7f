"""The form of `bei.kernels.attention` for SM90 in CUDA C++ (hopper_attention.cu): warpgroup products whose weights stay in
registers, over keys and values that the tensor memory accelerator brings while earlier ones are computed with.

Why: Triton's form reads a text's keys and values again for every 64 queries, and every program waits for its first ones
(benchmarks/results/h100/cuda_attention.md).
"""

from dataclasses import dataclass

from bei.cuda_plan import Box, Size
from bei.kernels.hopper import text, whole_pieces
from bei.kernels.launch import Forms, KernelLaunch, Source, launch

COLUMNS = 64
"""Of a tile that one copy brings: 128 bytes a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """``queries`` of ``heads`` heads, which meet ``keys`` at a time; ``stages`` of these are on their way at once. ``blocks`` a
    multiprocessor. ``registers``: that is where queries stay, instead of in shared memory, which has ``buffers`` for them."""

    queries: int
    heads: int
    keys: int
    stages: int
    blocks: int = 1
    registers: bool = True
    buffers: int = 1

    @property
    def warpgroups(self) -> int:
        """That compute: 64 queries of a head each."""
        return self.queries // 64 * self.heads


def tile(*, heads: int, kv_heads: int, head_dim: int, window: int | None) -> Tile | None:
    """For heads of this kind; None where Triton's form serves. Measured on an H100 (benchmarks/results/h100/cuda_attention.md):
    two narrow heads side by side are fetched in longer pieces, unless a window leaves few keys to many queries."""
    group = heads // kv_heads
    alone, together = heads % 2 == 0 and group == 1, group % 2 == 0
    if head_dim == 32 and alone:
        return Tile(queries=64, heads=2, keys=64, stages=4, blocks=2)
    if head_dim == 64 and (alone or together) and window is None:
        return Tile(queries=128, heads=2, keys=64, stages=3, registers=False, buffers=2)
    if head_dim == 64:
        return Tile(queries=256, heads=1, keys=64, stages=4, registers=False, buffers=2)
    if head_dim == 128:
        return Tile(queries=128, heads=1, keys=64, stages=4)
    if head_dim == 256:
        return Tile(queries=128, heads=1, keys=64, stages=2, registers=False)
    return None


FEW = {32: 768, 64: 384, 128: 128}
"""By features a head: to so many blocks of 64 queries of a head, Triton's smaller programs are faster. Measured as above."""


def plan(
    forms: Forms,
    *,
    sm: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    bias_kind: str | None,
    chosen: Tile | None = None,
) -> KernelLaunch | None:
    """As `bei.kernels.attention.plan`, where a tile serves; ``chosen`` takes the place of `tile`'s choice. A work item's
    queries must divide the tile's."""
    t = chosen or tile(heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window)
    if t is None or sm != 90 or softcap is not None or bias_kind is not None or not _fits(forms):
        return None
    q, out = forms["q"], forms["out"]
    assert q and out
    return launch(
        forms,
        function=Source(
            name="attention",
            text=_products(t, head_dim, q.dtype) + text("hopper.cuh", "hopper_attention.cu"),
            shared=_shared(t, heads // kv_heads, head_dim),
        ),
        sizes=("work",),
        constants={
            "H": head_dim,
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "HEADS_A_TILE": t.heads,
            "QUERIES": t.queries,
            "KEYS": t.keys,
            "STAGES": t.stages,
            "BLOCKS": t.blocks,
            "Q_BUFFERS": t.buffers,
            "Q_IN_REGISTERS": t.registers,
            "OUT_STRIDE": out.stride,
            "SCALE": scale,
            "CAUSAL": causal,
            "WINDOW": -1 if window is None else window,
            "BF16": q.dtype == "bf16",
        },
        grid=(Size(symbol="processors", times=t.blocks),),
        warps=4 * (t.warpgroups + 1),
        boxes={
            "q": Box(rows=64, columns=COLUMNS, swizzle=128),
            "k": Box(rows=t.keys, columns=COLUMNS, swizzle=128),
            "v": Box(rows=t.keys, columns=COLUMNS, swizzle=128),
        },
    )


def _shared(t: Tile, group: int, head_dim: int) -> int:
    """Bytes: queries, keys and values, 16 rows of out a warp, the tiles' places, barriers, and room to begin at 1024."""
    together = head_dim * (1 if group % t.heads == 0 else t.heads)
    queries = t.buffers * t.queries * t.heads * head_dim * 2
    keys = t.stages * t.keys * together * 2
    return queries + 2 * keys + t.warpgroups * 4 * 16 * 128 + 32 * (t.buffers + t.stages) + 1024


def _fits(forms: Forms) -> bool:
    """16-bit operands whose rows begin at multiples of 16 bytes."""
    given = [form for name in ("q", "k", "v", "out") if (form := forms[name])]
    return {form.dtype for form in given} in ({"f16"}, {"bf16"}) and all(map(whole_pieces, given))


def _products(t: Tile, head_dim: int, dtype: str) -> str:
    """``scores`` = queries · keysᵀ and ``weighted`` = weights · values for 16 features or keys, or what is there plus that where
    ``more`` is not 0. Weights, and queries where they stay in registers, come as such, the rest by descriptors."""
    scores = _product("scores", t.keys, dtype, registers=t.registers, across=False)
    return scores + _product("weighted", head_dim, dtype, registers=True, across=True)


def _product(name: str, columns: int, dtype: str, *, registers: bool, across: bool) -> str:
    """``across``: b's rows are what is summed over."""
    n, high = columns // 2, 1 << 30 | 1024 >> 4
    left = ["a0", "a1", "a2", "a3"] if registers else ["a"]
    b, more = n + len(left), n + len(left) + 1
    sums = ", ".join(f"%{i}" for i in range(n))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(n))
    a = f"{{%{n}, %{n + 1}, %{n + 2}, %{n + 3}}}" if registers else "a"
    to_a = "" if registers else f".reg .b64 a;\\nmov.b64 a, {{%{n}, {high}}};\\n"
    turned = int(across) if registers else f"0, {int(across)}"
    return f"""
__device__ __forceinline__ void {name}(float (&d)[{n}], {", ".join(f"unsigned {x}" for x in left)}, unsigned b, int more) {{
    asm volatile(
        "{{\\n.reg .pred more;\\nsetp.ne.b32 more, %{more}, 0;\\n"
        "{to_a}.reg .b64 b;\\nmov.b64 b, {{%{b}, {high}}};\\n"
        "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype}.{dtype} {{{sums}}}, {a}, b, more, 1, 1, {turned};\\n}}\\n"
        : {outputs}
        : {", ".join(f'"r"({x})' for x in left)}, "r"(b), "r"(more));
}}
"""
