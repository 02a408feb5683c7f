"""Random weights that are *live*: a reader that gets anything wrong gives another answer.

Attention is far from uniform, norms lie around their centre without being there, biases matter, and the halves of a
gated MLP differ. The branches that are added to the residual stream shrink with depth, so that rounding errors do not
grow without bound in a deep stand-in. Each tensor has a stream of its own (Philox, keyed by seed and name): its values
depend neither on its neighbours nor on the order in which tensors are written.
"""

import fnmatch
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.compiler.checkpoint.stored import DTYPES
from bei.compiler.zoo.shapes import TensorSpec

CHUNK = 1 << 22
"""Numbers drawn at a time."""

_TABLES = ("*emb*", "*relative_attention_bias*")
_QK_NORMS = ("*.q_norm.*", "*.k_norm.*", "*.layer_norm_q.*", "*.layer_norm_k.*")
_SHARP = ("*.self.query.weight", "*.self.key.weight")
"""Behind an MLP without a gate tokens resemble one another, so that attention needs larger scores to tell them apart."""
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


def live_values(
    spec: TensorSpec, *, seed: str, norm_centre: float, layers: int
) -> Iterator[npt.NDArray[Any]]:
    """The values of one tensor in chunks of a flat array, in its stored dtype."""
    count = math.prod(spec.shape)
    if spec.dtype == "I64":
        yield np.arange(count, dtype=np.int64)
        return
    centre, spread = _distribution(spec, norm_centre, layers)
    random = np.random.Generator(np.random.Philox(key=_key(seed, spec.name)))
    for start in range(0, count, CHUNK):
        drawn = random.standard_normal(min(CHUNK, count - start), dtype=np.float32)
        drawn *= np.float32(spread)
        drawn += np.float32(centre)
        yield drawn.astype(DTYPES[spec.dtype])


def _distribution(spec: TensorSpec, norm_centre: float, layers: int) -> tuple[float, float]:
    """Mean and standard deviation."""
    if spec.name.endswith("bias"):
        return 0.0, 0.3
    if len(spec.shape) == 1:
        sharper = 0.5 if _is(spec.name, _QK_NORMS) else 0.0
        return norm_centre + sharper, 0.2
    if _is(spec.name, _TABLES):
        return 0.0, 1.0
    gain = 1.5
    if _is(spec.name, _SHARP):
        gain = 2.5
    elif _is(spec.name, _OUTPUTS):
        gain *= min(1.0, math.sqrt(4 / layers))
    return 0.0, gain / math.sqrt(spec.shape[-1])


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _key(seed: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
