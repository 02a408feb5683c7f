"""Which failures of CUDA end an engine, and which only a batch."""

from bei.errors import EngineError, EngineLost

DEAD: dict[int, str] = {
    4: "DEINITIALIZED",
    46: "DEVICE_UNAVAILABLE",
    201: "INVALID_CONTEXT",
    214: "ECC_UNCORRECTABLE",
    220: "NVLINK_UNCORRECTABLE",
    226: "CONTAINED",
    700: "ILLEGAL_ADDRESS",
    702: "LAUNCH_TIMEOUT",
    709: "CONTEXT_IS_DESTROYED",
    710: "ASSERT",
    714: "HARDWARE_STACK_ERROR",
    715: "ILLEGAL_INSTRUCTION",
    716: "MISALIGNED_ADDRESS",
    717: "INVALID_ADDRESS_SPACE",
    718: "INVALID_PC",
    719: "LAUNCH_FAILED",
}
"""Codes (CUresult and cudaError_t agree in them) after which the context answers every call with the same error, so that
only a new process can use the device again. Names without CUDA_ERROR_."""


def failure(code: int, message: str) -> EngineError:
    """The error for a call that ended with ``code``: `EngineLost` where the device's context is dead."""
    return EngineLost(message) if code in DEAD else EngineError(message)
