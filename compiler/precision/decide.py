"""The precision policy of a build: measured, planned, searched, or given by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.precision.audit import Audit, Batch, audit
from bei.compiler.precision.plan import beyond_budget, plan_scales
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

    auto: BF16 islands for what stays beyond its budget, and more where FP16 storage is not enough (with ``search``,
    which needs torch); fp16: none; bf16, fp32: every unit. Raises InputError for an unusable file and EngineError when the audit cannot run.
    """
    head = compared_head(head)
    found = audit(cfg, head, weights, batches)
    if file is not None:
        policy = msgspec.structs.replace(read_policy(file, cfg), ranges=found.ranges)
    else:
        policy = msgspec.structs.replace(plan_scales(cfg, found.ranges), mode=mode)
    if policy.scales or policy.stream != 1.0:
        policy = msgspec.structs.replace(policy, folded=audit(cfg, head, weights, batches, policy).ranges)
    if file is not None or mode == "fp16":
        return policy
    if mode != "auto":
        return _throughout(policy, cfg, mode)
    policy = _held_back(policy, cfg)
    return _searched(cfg, head, weights, batches, found, policy) if search else policy


def _held_back(policy: Policy, cfg: EncoderConfig) -> Policy:
    """BF16 for the units that folding leaves beyond their budget, though these texts may not overflow yet."""
    reasons = beyond_budget(cfg, policy.folded or policy.ranges)
    islands: dict[str, Wide] = dict.fromkeys(reasons, "bf16")
    return msgspec.structs.replace(policy, islands=islands, reasons=policy.reasons | reasons)


def _throughout(policy: Policy, cfg: EncoderConfig, wide: Wide) -> Policy:
    reasons = policy.reasons | dict.fromkeys(units(cfg), f"--precision {wide}")
    return msgspec.structs.replace(policy, islands=dict.fromkeys(units(cfg), wide), reasons=reasons)


def _searched(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    batches: Sequence[Batch],
    found: Audit,
    planned: Policy,
) -> Policy:
    """Imported here: only this needs torch, and compiling does not."""
    from bei.compiler.precision.islands import Trial, add_islands

    return add_islands(
        Trial(cfg=cfg, head=head, weights=weights, batches=batches, reference=found.outputs), planned
    )


def compared_head(head: Head) -> Head:
    """Heads run in fp32, and a cosine of logits says little: for every task but embed the pooled (or per-token) vector
    before the head's steps is what tells one precision from another."""
    return head if head.task == "embed" else replace(head, steps=())
