"""CUDA C++ to machine code through NVRTC, which needs no GPU, no headers and no host compiler. Loaded with ctypes.

Names: nvrtc.h. The library comes with the package nvidia-cuda-nvrtc.
"""

import ctypes
import glob
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from typing import Any

from bei.cuda_plan import Function
from bei.errors import EngineError
from bei.gpu import packaged_library
from bei.kernels.launch import KernelLaunch, Source


def compile_source(how: KernelLaunch, sm: int) -> Function:
    """A cubin of a `Source` for one SM, with the instructions that only this SM has. Raises EngineError."""
    source = how.function
    assert isinstance(source, Source)
    library = _library()
    head = "".join(f"#define {name} {_literal(value)}\n" for name, value in how.constants.items())
    program = c_void_p()
    _check(library.nvrtcCreateProgram(
        byref(program), (head + source.text).encode(), f"{source.name}.cu".encode(), 0, None, None
    ))  # fmt: skip
    try:
        options = (c_char_p * 2)(f"--gpu-architecture=sm_{sm}a".encode(), b"--std=c++17")
        if library.nvrtcCompileProgram(program, len(options), options) != 0:
            raise EngineError(
                f"cuda-sm{sm}: {source.name} does not compile: {_read(library, program, 'ProgramLog').decode()}"
            )
        cubin = _read(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(byref(program))
    return Function(
        cubin=cubin,
        symbol=source.name,
        threads=32 * how.warps,
        shared=source.shared,
        scratch=0,
        cluster=source.cluster,
    )


def _literal(value: float | bool) -> str:
    return f"{value!r}f" if isinstance(value, float) else str(int(value))


def _read(library: Any, program: c_void_p, what: str) -> bytes:
    size = c_size_t()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, byref(size)))
    room = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, room))
    return room.raw


def _check(code: int) -> None:
    if code != 0:
        raise EngineError(f"NVRTC failed with status {code}. Report this as a bug.")


def find() -> str | None:
    """The path of libnvrtc, from its package or the system's; None where there is none."""
    system = glob.glob("/usr/local/cuda/lib64/libnvrtc.so.1[23]")
    return packaged_library("libnvrtc.so.*") or next(iter(system), None)


def version() -> str:
    """Such as 13.0. Raises EngineError."""
    major, minor = c_int(), c_int()
    _check(_library().nvrtcVersion(byref(major), byref(minor)))
    return f"{major.value}.{minor.value}"


@cache
def _library() -> Any:
    path = find()
    if path is None:
        raise EngineError('NVRTC was not found. Install it: pip install "bei[cuda]".')
    for builtins in glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so.*")):
        ctypes.CDLL(builtins, mode=ctypes.RTLD_GLOBAL)  # NVRTC asks for it by name, which no loader path has
    return ctypes.CDLL(path)
