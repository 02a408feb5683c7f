"""The precision policy of a build: measured, planned, searched, or given by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.precision.audit import Audit, Batch, audit
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
    head = compared_head(head)
    found = audit(cfg, head, weights, batches)
    if file is not None:
        policy = msgspec.structs.replace(read_policy(file, cfg), ranges=found.ranges)
    else:
        policy = msgspec.structs.replace(plan_scales(cfg, found.ranges), mode=mode)
        if mode in ("bf16", "fp32"):
            policy = _throughout(policy, cfg, "bf16" if mode == "bf16" else "fp32")
        elif mode == "auto" and search:
            policy = _searched(cfg, head, weights, batches, found, policy)
    if policy.scales or policy.stream != 1.0:
        policy = msgspec.structs.replace(policy, folded=audit(cfg, head, weights, batches, policy).ranges)
    return policy


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
