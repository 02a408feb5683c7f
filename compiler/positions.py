"""Formulas for positions, in one place for every interpreter: rotary frequencies, ALiBi slopes, relative buckets."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.adapters.config import DynamicNtk, LinearScaling, Llama3Scaling, RelativeBuckets, Rope

F32 = npt.NDArray[np.float32]


def inv_freq(rope: Rope) -> F32:
    """[dim/2] fp32: theta^(−2i/dim), scaled. `DynamicNtk` gives the unscaled ones, valid up to its trained length."""
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    freq = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    match rope.scaling:
        case LinearScaling(factor=factor):
            return (freq / np.float32(factor)).astype(np.float32)
        case Llama3Scaling():
            return _llama3(freq, rope.scaling)
        case _:
            return freq


def of_pairs(rope: Rope, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[dim]: what the first and the second feature of each pair get, in the order of features."""
    together = np.stack((first, second), -1 if rope.interleaved else 0)
    return together.reshape(-1)


def _llama3(freq: F32, scaling: Llama3Scaling) -> F32:
    """Llama 3.1 (transformers' `_compute_llama3_parameters`): long waves / factor, short ones kept, a ramp between."""
    wavelength = 2 * math.pi / freq
    low = scaling.original_positions / scaling.low_freq_factor
    high = scaling.original_positions / scaling.high_freq_factor
    ramp = (scaling.original_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - ramp) * freq / scaling.factor + ramp * freq
    scaled = np.where(wavelength > low, freq / scaling.factor, np.where(wavelength < high, freq, between))
    return scaled.astype(np.float32)


@dataclass(frozen=True, slots=True)
class NtkGrowth:
    """inv_freq_i(n) = exp(−(2i/d)·ln theta'(n)) with theta'(n) = theta·max(1, slope·n + offset)^power."""

    slope: float
    offset: float
    power: float


def ntk_growth(rope: Rope) -> NtkGrowth:
    """How `DynamicNtk` grows theta with a text's length n (max(1, ·) is the rule "only beyond the trained length")."""
    assert isinstance(rope.scaling, DynamicNtk)
    factor, trained = rope.scaling.factor, rope.scaling.trained_positions
    return NtkGrowth(factor / trained, 1 - factor, rope.dim / (rope.dim - 2))


def alibi_slopes(heads: int) -> F32:
    """[N] fp32. Powers of two: 2^(−8(k+1)/N); otherwise those of the power below, then every second of the one above
    (Press et al., ALiBi, reference implementation)."""

    def power_of_two(n: int) -> list[float]:
        return [2 ** (-8 * (k + 1) / n) for k in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    slopes = power_of_two(below)
    if below < heads:
        slopes += power_of_two(2 * below)[0::2][: heads - below]
    return np.array(slopes, dtype=np.float32)


def bucket_of_distance(buckets: RelativeBuckets, max_length: int) -> npt.NDArray[np.int64]:
    """[2·max_length − 1] bucket of key_index − query_index = r, stored at r + max_length − 1.

    T5 / MPNet, bidirectional: half the buckets for keys to the right; within a half, distances below a quarter of the
    buckets are exact, larger ones logarithmic up to max_distance. float32 logarithm, as the reference.
    """
    r = np.arange(-(max_length - 1), max_length)
    half = buckets.buckets // 2
    exact = half // 2
    n = np.abs(r)
    log_ratio = np.log(np.maximum(n, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(buckets.max_distance / exact)
    )
    large = exact + (log_ratio * np.float32(half - exact)).astype(np.int64)
    within = np.where(n < exact, n, np.minimum(large, half - 1))
    return np.where(r > 0, half, 0) + within
