"""The precision policy of a build: measured, planned, searched, or given by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.precision.audit import Batch, audit
from bei.compiler.precision.plan import plan_scales
from bei.compiler.precision.policy import Mode, Policy, Wide, read_policy, units
from bei.compiler.weights import Weight


def decide(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    batches: Sequence[Batch],
    *,
    mode: Mode = "auto",
    file: Path | None = None,
    search: bool = True,
) -> Policy:
    """A hand-written ``file`` as it is (with the ranges it leads to); else scales from an audit, and

    auto: islands where FP16 storage is not enough (with ``search``, which needs torch); fp16: none; bf16, fp32: every
    unit. Raises InputError for an unusable file and EngineError when the audit cannot run.
    """
    ranges = audit(cfg, head, weights, batches)
    if file is not None:
        policy = msgspec.structs.replace(read_policy(file, cfg), ranges=ranges)
    else:
        policy = msgspec.structs.replace(plan_scales(cfg, ranges), mode=mode)
        if mode in ("bf16", "fp32"):
            policy = _throughout(policy, cfg, "bf16" if mode == "bf16" else "fp32")
        elif mode == "auto" and search:
            policy = _searched(cfg, head, weights, batches, policy)
    if policy.scales or policy.stream != 1.0:
        policy = msgspec.structs.replace(policy, folded=audit(cfg, head, weights, batches, policy))
    return policy


def _throughout(policy: Policy, cfg: EncoderConfig, wide: Wide) -> Policy:
    reasons = policy.reasons | dict.fromkeys(units(cfg), f"--precision {wide}")
    return msgspec.structs.replace(policy, islands=dict.fromkeys(units(cfg), wide), reasons=reasons)


def _searched(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    batches: Sequence[Batch],
    planned: Policy,
) -> Policy:
    """Imported here: only this needs torch, and compiling does not."""
    from bei.compiler.precision.islands import add_islands, trial

    case = trial(cfg, head, weights, batches)
    policy = add_islands(case, planned)
    return msgspec.structs.replace(policy, storage_cosine=case.cosine(policy))
