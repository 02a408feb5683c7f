"""Random weights that are *live*: a reader that gets anything wrong gives another answer.

Attention is far from uniform, norms lie around their centre without being there, biases matter, and the halves of a
gated MLP differ. What makes deep random encoders give one answer for every text is held back: biases and the branches
added to the residual stream shrink with depth, and the rows that end a branch sum to zero, so that the mean of an
activation adds nothing to every token alike.

Each tensor has a stream of its own (Philox, keyed by seed and name): its values depend neither on its neighbours nor
on the order in which tensors are written.
"""

import fnmatch
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.compiler.checkpoint.stored import DTYPES
from bei.compiler.zoo.shapes import TensorSpec

CHUNK = 1 << 22
"""Numbers drawn at a time, rounded up to whole rows."""

SHALLOW = 4
"""Layers up to which nothing is held back."""

_TABLES = ("*emb*", "*relative_attention_bias*")
_QK_NORMS = ("*.q_norm.*", "*.k_norm.*", "*.layer_norm_q.*", "*.layer_norm_k.*")
_SHARP = ("*.self.query.weight", "*.self.key.weight")
"""Behind an MLP without a gate tokens resemble one another: attention needs larger scores to tell them apart. Behind one with a
gate such scores would make a deep encoder chaotic: every layer of jina-v2's shape tripled what FP16 rounds off."""
_OUTPUTS = (
    "*output.dense.weight",
    "*.attn.o.weight",
    "*o_proj.weight",
    "*.attn.Wo.weight",
    "*.attn.out_proj.weight",
    "*.mlp.Wo.weight",
    "*.mlp.wo.weight",
    "*.fc2.weight",
    "*.experts.mlp.w2",
    "*.down_proj.weight",
    "*.down_layer.weight",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Distribution:
    """Normal; ``balanced`` rows have their mean taken away."""

    mean: float
    deviation: float
    balanced: bool = False


def live_values(
    spec: TensorSpec, *, seed: str, norm_centre: float, layers: int, gated: bool
) -> Iterator[npt.NDArray[Any]]:
    """The values of one tensor in chunks of whole rows, in its stored dtype; ``gated``: its model's MLPs have gates."""
    if spec.dtype == "I64":
        yield np.arange(math.prod(spec.shape), dtype=np.int64)
        return
    chosen = _distribution(spec, norm_centre, layers, gated)
    random = np.random.Generator(np.random.Philox(key=_key(seed, spec.name)))
    rows, columns = math.prod(spec.shape[:-1]), spec.shape[-1]
    step = -(-CHUNK // columns)
    for start in range(0, rows, step):
        drawn = random.standard_normal((min(step, rows - start), columns), dtype=np.float32)
        if chosen.balanced:
            drawn -= drawn.mean(axis=1, keepdims=True)
        drawn *= np.float32(chosen.deviation)
        drawn += np.float32(chosen.mean)
        yield drawn.astype(DTYPES[spec.dtype])


def _distribution(spec: TensorSpec, norm_centre: float, layers: int, gated: bool) -> _Distribution:
    depth = min(1.0, SHALLOW / layers)
    if spec.name.endswith("bias"):
        return _Distribution(mean=0.0, deviation=0.3 * depth)
    if len(spec.shape) == 1:
        sharper = 0.5 if _is(spec.name, _QK_NORMS) else 0.0
        return _Distribution(mean=norm_centre + sharper, deviation=0.2)
    if _is(spec.name, _TABLES):
        return _Distribution(mean=0.0, deviation=1.0)
    unit = 1 / math.sqrt(spec.shape[-1])
    if _is(spec.name, _OUTPUTS):
        return _Distribution(mean=0.0, deviation=1.5 * depth * unit, balanced=True)
    sharp = not gated and _is(spec.name, _SHARP)
    return _Distribution(mean=0.0, deviation=(2.5 if sharp else 1.5) * unit)


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _key(seed: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
