"""cuBLASLt through ctypes: products of row-major matrices, fp32 accumulation, bias and activation inside.

cuBLASLt counts columns first, so a row-major x · Wᵀ is asked for as W · xᵀ. Names and numbers: cublasLt.h, CUDA 12/13.
"""

import ctypes
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from bei.cuda_plan import DType, Epilogue, Product
from bei.errors import EngineError
from bei.gpu import packaged_library
from bei.runtime.cuda.device import Addresses

COMPUTE_32F, R_32F = 68, 0
TYPES: dict[DType, int] = {"f32": R_32F, "f16": 2, "bf16": 14}
TRANSA, EPILOGUE, BIAS_POINTER = 3, 7, 8
MAX_WORKSPACE_BYTES = 1
WORKSPACE = 32 << 20
EPILOGUES: dict[tuple[Epilogue, bool], int] = {
    ("none", False): 1,
    ("none", True): 4,
    ("relu", False): 2,
    ("relu", True): 6,
    ("gelu_tanh", False): 32,
    ("gelu_tanh", True): 36,
}


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class _Problem:
    """A product's descriptors for one number of rows, with the algorithm chosen for it."""

    description: c_void_p
    weight: c_void_p
    x: c_void_p
    out: c_void_p
    algorithm: _Heuristic


class CublasLt:
    """One handle and one workspace on one stream.

    The algorithm is the library's first choice: timing sixteen candidates on an H200 changed no model's time.
    """

    def __init__(self, subject: str, stream: c_void_p, workspace: int) -> None:
        self.subject, self.stream, self.workspace = subject, stream, workspace
        self._library = _load(subject)
        self._problems: dict[tuple[Any, ...], _Problem] = {}
        self._one, self._zero = c_float(1.0), c_float(0.0)
        self._handle = self._make("cublasLtCreate")
        self._preference = self._make("cublasLtMatmulPreferenceCreate")
        limit = c_size_t(WORKSPACE)
        self._call(
            "cublasLtMatmulPreferenceSetAttribute",
            self._preference,
            c_int(MAX_WORKSPACE_BYTES),
            byref(limit),
            c_size_t(ctypes.sizeof(limit)),
        )

    @property
    def version(self) -> str:
        """Such as 13.1.0."""
        self._library.cublasLtGetVersion.restype = c_size_t
        number = int(self._library.cublasLtGetVersion())
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def multiply(self, step: Product, at: Addresses, rows: int) -> None:
        """Queue out = epilogue(x · Wᵀ + bias) over ``rows`` rows."""
        key = (
            step.x.dtype, step.x.width, step.x.stride, step.out.dtype, step.out.width, step.out.stride,
            step.transposed, step.epilogue, bool(at.bias), rows,
        )  # fmt: skip
        if key not in self._problems:
            self._problems[key] = self._solve(step, at.bias, rows)
        self._run(self._problems[key], at)

    def _run(self, problem: _Problem, at: Addresses) -> None:
        if at.bias:
            self._set(problem.description, BIAS_POINTER, c_uint64(at.bias))
        self._call(
            "cublasLtMatmul", self._handle, problem.description, byref(self._one),
            c_void_p(at.weight), problem.weight, c_void_p(at.x), problem.x, byref(self._zero),
            c_void_p(at.out), problem.out, c_void_p(at.out), problem.out,
            byref(problem.algorithm.algorithm), c_void_p(self.workspace), c_size_t(WORKSPACE), self.stream,
        )  # fmt: skip

    def _solve(self, step: Product, bias: int, rows: int) -> _Problem:
        kind, result = TYPES[step.x.dtype], TYPES[step.out.dtype]
        description = self._make("cublasLtMatmulDescCreate", c_int(COMPUTE_32F), c_int(R_32F))
        self._set(description, TRANSA, c_int32(0 if step.transposed else 1))
        self._set(description, EPILOGUE, c_uint32(EPILOGUES[step.epilogue, bool(bias)]))
        if bias:
            self._set(description, BIAS_POINTER, c_uint64(bias))
        width, n = step.x.width, step.out.width
        shape = (n, width) if step.transposed else (width, n)
        weight = self._layout(kind, *shape, step.weight.stride)
        x = self._layout(kind, width, rows, step.x.stride)
        out = self._layout(result, n, rows, step.out.stride)
        found, count = _Heuristic(), c_int()
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, description, weight, x, out, out,
            self._preference, c_int(1), byref(found), byref(count),
        )  # fmt: skip
        if count.value == 0 or found.state != 0:
            raise EngineError(
                f"{self.subject}: cuBLASLt has no algorithm for {rows} x {width} x {n} ({step.x.dtype}). "
                "Report this as a bug."
            )
        return _Problem(description, weight, x, out, found)

    def _layout(self, kind: int, rows: int, columns: int, leading: int) -> c_void_p:
        return self._make(
            "cublasLtMatrixLayoutCreate", c_int(kind), c_uint64(rows), c_uint64(columns), c_int64(leading)
        )

    def _set(self, description: c_void_p, attribute: int, value: Any) -> None:
        self._call(
            "cublasLtMatmulDescSetAttribute",
            description,
            c_int(attribute),
            byref(value),
            c_size_t(ctypes.sizeof(value)),
        )

    def _make(self, name: str, *arguments: Any) -> c_void_p:
        made = c_void_p()
        self._call(name, byref(made), *arguments)
        return made

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise EngineError(f"{self.subject}: {name} failed with cuBLAS status {code}.")

    def close(self) -> None:
        """Destroy the handle."""
        self._call("cublasLtDestroy", self._handle)


def find_library() -> str | None:
    """The path or name of libcublasLt: from the nvidia-cublas wheel where it is installed, else the system's."""
    if found := packaged_library("libcublasLt.so.*"):
        return found
    for name in ("libcublasLt.so.13", "libcublasLt.so.12"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    return None


def _load(subject: str) -> Any:
    path = find_library()
    if path is None:
        raise EngineError(f'{subject}: cuBLASLt was not found. Install it: pip install "bei[cuda]".')
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise EngineError(f"{subject}: {path} cannot be loaded ({error}).") from None
    library.cublasLtCreate.argtypes = [POINTER(c_void_p)]
    return library
