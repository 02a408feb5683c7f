"""Range audit: how large each site's values get over calibration texts, in fp32."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.weights import Weight

Batch = tuple[Tensor, Tensor, Tensor]
"""ids, mask, types int64 [B, L]."""


def audit(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    batches: Iterable[Batch],
    policy: Policy = PLAIN,
) -> dict[str, float]:
    """Site → largest magnitude over real tokens (padding does not count). With a policy: as an engine would store it."""
    ranges: dict[str, float] = {}
    for ids, mask, types in batches:
        real = mask.bool()

        def see(site: str, x: Tensor, real: Tensor = real) -> None:
            if x.shape[:2] == real.shape:  # the head's pooled values have no tokens, and are fp32 anyway
                ranges[site] = max(ranges.get(site, 0.0), float(x[real].abs().max()))

        run_torch(cfg, head, weights, ids, mask, types=types, policy=policy, probe=see)
    return ranges
