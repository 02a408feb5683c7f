"""Kernels to machine code, in a process of their own: Triton's interpreter, once chosen, cannot be left."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = textwrap.dedent("""
    import sys
    from bei.compiler.engines.cuda import SHARED_KIB, compile_kernel
    from bei.kernels import add_norm, attention
    from bei.kernels.launch import Form

    sm = int(sys.argv[1])
    wide = Form(dtype="f16", width=512, stride=512)
    forms = {"q": wide, "k": wide, "v": wide, "work": Form(dtype="i32", width=4, stride=4), "bias": None, "out": wide}
    how = attention.plan(
        forms, sm=sm, heads=2, kv_heads=2, head_dim=256, scale=1.0, causal=False, window=None, softcap=50.0,
        bias_kind=None,
    )
    others = [name for name in how.function.arg_names if name not in how.pointers and name not in how.constants]
    assert others == ["items"] and how.sizes == ("work",), others
    function = compile_kernel(how, sm)
    assert function.cubin[:4] == b"\\x7fELF" and function.symbol == "_attention"
    assert function.threads == 32 * how.warps and function.scratch == 2
    assert 0 < function.shared <= SHARED_KIB.get(sm, 99) << 10
    assert "torch" not in sys.modules, "compiling a plan needs Triton alone"
""")


GROUPED = textwrap.dedent("""
    from bei.compiler.engines.cuda import compile_kernel
    from bei.kernels import linear
    from bei.kernels.launch import Form

    def form(dtype, width):
        return Form(dtype=dtype, width=width, stride=width)

    for transposed, k, n in ((False, 768, 3072), (True, 3072, 768)):
        forms = {
            "x": form("f16", k), "weight": form("f16", n if transposed else k), "bias": None,
            "residual": None, "order": None if transposed else form("i32", 4), "groups": form("i32", 16), "out": form("f16", n),
        }
        how = linear.plan(forms, sm=90, act="identity", gated=False, transposed=transposed, rows="slots")
        tile = linear.tile(90, fp32=False, gated=False, width=n)
        shared = compile_kernel(how, 90).shared
        assert shared == tile.stages * 2 * (tile.rows + tile.columns) * tile.features, (transposed, shared)
""")


@pytest.mark.parametrize("sm", [80, 90, 120])
def test_the_widest_attention_compiles_within_the_shared_memory_of(sm: int) -> None:
    run(SCRIPT, str(sm))


def test_products_by_expert_copy_both_operands_ahead() -> None:
    """All stages of both in shared memory: a weight whose loads cannot take 16 bytes would be loaded as it is needed."""
    run(GROUPED)


def run(script: str, *arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
