"""The kernel in CUDA C++: what it compiles to, which operands it takes. Its values are checked on a GPU (tests/gpu)."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton  # type: ignore[import-untyped]

from bei.compiler.code_digest import code_digest
from bei.compiler.engines import nvrtc
from bei.compiler.engines.cuda import SHARED_KIB, compile_kernel
from bei.cuda_plan import DType
from bei.errors import EngineError
from bei.kernels import hopper, launch, linear, linear_norm
from bei.kernels.activate import Act
from bei.kernels.launch import Form, KernelLaunch, Source

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
TURNS, TOGETHER = hopper.Tile(columns=192, stages=4), hopper.Tile(columns=256, stages=4, together=True)


def forms(
    k: int, n: int, *, dtype: DType = "f16", gated: bool = False, bias: bool = True, residual: bool = False
) -> dict[str, Form | None]:
    def form(width: int) -> Form:
        return Form(dtype=dtype, width=width, stride=width)

    return {
        "x": form(k),
        "weight": form(k),
        "bias": form(2 * n if gated else n) if bias else None,
        "residual": form(n) if residual else None,
        "order": None,
        "groups": None,
        "out": form(n),
    }


def disassembled(how: KernelLaunch, folder: Path, threads: int = 384) -> list[str]:
    function = compile_kernel(how, 90)
    assert function.threads == threads and 0 < function.shared <= SHARED_KIB[90] << 10
    (folder / "cubin").write_bytes(function.cubin)
    command = [str(DISASSEMBLER), "-c", str(folder / "cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return str(done.stdout).splitlines()


@pytest.mark.parametrize(
    ("tile", "act", "gated", "residual", "dtype"),
    [
        (TURNS, "gelu", False, False, "f16"),
        (TURNS, "silu", True, False, "f16"),
        (TURNS, "identity", False, True, "f16"),
        (TURNS, "gelu_tanh", True, False, "bf16"),
        (TOGETHER, "identity", False, True, "f16"),
    ],
)
def test_tensor_cores_are_not_kept_waiting(
    tile: hopper.Tile, act: Act, gated: bool, residual: bool, dtype: DType, tmp_path: Path
) -> None:
    """Between the products and what follows them there is no fence for other blocks' memory and no spilled register."""
    operands = forms(768, 768, dtype=dtype, gated=gated, residual=residual)
    code = disassembled(hopper.plan(operands, act=act, gated=gated, rows="tokens", chosen=tile), tmp_path)
    products = [n for n, line in enumerate(code) if "HGMMA" in line]
    assert len(products) == hopper.FEATURES // 16 * (1 if tile.together else 2)
    assert all(
        f"64x{tile.columns}x16.F32" + (".BF16" if dtype == "bf16" else "") in code[n] for n in products
    )
    first_stored = next(n for n, line in enumerate(code) if n > products[-1] and "STSM" in line)
    loop = code[products[0] : products[-1]]
    assert not any(word in line for line in loop for word in ("MEMBAR", "LDL", "STL", "LDG"))
    release = next(n for n, line in enumerate(code) if n > products[-1] and "SYNCS.ARRIVE" in line)
    assert release < first_stored
    assert not any("MEMBAR" in line for line in code[products[0] : release])
    assert sum("LDL" in line for line in code[products[0] : first_stored]) <= 4
    assert any("UTMALDG" in line and "MULTICAST" in line for line in code)


@pytest.mark.parametrize("shape", linear_norm.SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_sums_and_norms_stay_in_registers(shape: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    sample = linear_norm.make_inputs(shape, device="meta", dtype=dtype)
    operands = launch.forms(sample.operands)
    assert linear_norm.fits(operands, sm=90)
    how = linear_norm.plan(operands, sm=90, **sample.attrs)
    code = disassembled(how, tmp_path)
    products = [n for n, line in enumerate(code) if "HGMMA" in line]
    loop = code[products[0] : products[-1]]
    assert not any(word in line for line in loop for word in ("MEMBAR", "LDL", "STL", "LDG"))
    stored = sum("STL" in line for line in code)
    assert stored <= 24, "of 192 sums a thread"
    across = [line for line in code if "UCGABAR" in line or "MAPA" in line]
    assert bool(across) and how.function.cluster == linear_norm.TILES[shape["N"]].cluster
    assert sum("MULTICAST" in line for line in code) >= 1


def test_norms_that_no_cluster_can_hold_stay_apart() -> None:
    def operands(**others: Form | None) -> dict[str, Form | None]:
        def form(width: int, dtype: DType = "f16") -> Form:
            return Form(dtype=dtype, width=width, stride=width)

        usual = {"x": form(768), "weight": form(768), "bias": form(768), "residual": form(768)}
        usual |= {"scale": form(768, "f32"), "shift": form(768, "f32"), "out": form(768)}
        return {**usual, "inner_scale": None, "total": None, **others}

    def wide(width: int, dtype: DType = "f16") -> Form:
        return Form(dtype=dtype, width=width, stride=width)

    assert linear_norm.fits(operands(), sm=90) and linear_norm.fits(operands(total=wide(768)), sm=90)
    assert not linear_norm.fits(operands(), sm=80)
    for others in (
        {"out": wide(1024)},
        {"out": wide(768, "f32")},
        {"residual": wide(768, "f32")},
        {"total": wide(768, "f32")},
        {"scale": wide(768)},
        {"shift": replace(wide(768, "f32"), aligned=False)},
    ):
        assert not linear_norm.fits(operands(**others), sm=90)


@pytest.mark.parametrize(
    ("width", "act", "gated", "columns"),
    [
        (3072, "gelu", False, 192),
        (1152, "silu", True, 192),
        (768, "identity", False, 192),
        (1024, "identity", False, 256),
        (1024, "gelu", False, 192),
        (4096, "identity", False, 192),
        (264, "identity", False, 192),
    ],
)
def test_tiles_fit_the_width(width: int, act: Act, gated: bool, columns: int) -> None:
    tile = hopper.tile(width=width, act=act, gated=gated)
    assert tile.columns == columns and tile.together == (columns == 256)


def test_what_it_cannot_compute_goes_to_triton() -> None:
    usual = forms(768, 768)
    half, plain = Form(dtype="f16", width=768, stride=768), {"act": "gelu", "gated": False, "rows": "tokens"}
    assert isinstance(linear.plan(usual, sm=90, transposed=False, **plain).function, Source)  # type: ignore[arg-type]
    others = [
        (usual, 80, False),
        (usual, 100, False),
        (usual, 90, True),
        (forms(768, 768, dtype="f32"), 90, False),
        (forms(768, 772), 90, False),
        (usual | {"groups": Form(dtype="i32", width=8, stride=8)}, 90, False),
        (usual | {"x": replace(half, aligned=False)}, 90, False),
        (usual | {"x": replace(half, stride=772)}, 90, False),
        (usual | {"weight": replace(half, dtype="bf16")}, 90, False),
    ]
    for operands, sm, transposed in others:
        how = linear.plan(operands, sm=sm, transposed=transposed, **plain)  # type: ignore[arg-type]
        assert not isinstance(how.function, Source)


def test_a_kernel_that_does_not_compile_says_why() -> None:
    how = hopper.plan(forms(768, 768), act="gelu", gated=False, rows="tokens")
    broken = replace(how, function=replace(how.function, text=how.function.text + "\n#error on purpose\n"))
    with pytest.raises(EngineError, match=r"cuda-sm90: linear does not compile:(?s:.)*on purpose"):
        compile_kernel(broken, 90)


def test_a_machine_without_nvrtc_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "find", lambda: None)
    nvrtc._library.cache_clear()
    with pytest.raises(EngineError, match=r"NVRTC was not found. Install it: pip install \"bei\[cuda\]\""):
        compile_kernel(hopper.plan(forms(768, 768), act="gelu", gated=False, rows="tokens"), 90)
    nvrtc._library.cache_clear()


def test_the_compiler_says_its_version_and_its_source_is_in_the_digest(tmp_path: Path) -> None:
    major, minor = map(int, nvrtc.version().split("."))
    assert major >= 13 and minor >= 0
    source = tmp_path / "hopper.cu"
    source.write_text("one")
    before = code_digest(tmp_path)
    code_digest.cache_clear()
    source.write_text("two")
    assert code_digest(tmp_path) != before
