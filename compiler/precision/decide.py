"""The precision policy of a build: measured, planned, searched, or given by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.precision.audit import Audit, Batch, audit
from bei.compiler.precision.plan import beyond_budget, plan_scales
from bei.compiler.precision.policy import Mode, Policy, Wide, read_policy, units
from bei.compiler.weights import Weight

STREAM_COSINE = 0.99999
"""What FP16 storage must reach with the residual stream in FP16 too. Above what the gate asks for: speed may not be what
fails it."""


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

    auto: BF16 islands for what stays beyond its budget; with ``search``, which needs torch, also an FP16 residual stream
    where that holds, else more islands where FP16 storage is not enough; fp16: neither; bf16, fp32: every unit. Raises
    InputError for an unusable file and EngineError when the audit cannot run.
    """
    head = compared_head(head)
    found = audit(cfg, head, weights, batches)
    given = None if file is None else msgspec.structs.replace(read_policy(file, cfg), ranges=found.ranges)
    plan = partial(_planned, cfg, head, weights, batches, found)
    policy = plan(mode) if given is None else _folded(cfg, head, weights, batches, given)
    if file is not None or mode == "fp16":
        return policy
    if mode != "auto":
        return _throughout(policy, cfg, mode)
    policy = _held_back(policy, cfg)
    if not search:
        return policy
    # Imported here: only this needs torch, and compiling does not.
    from bei.compiler.precision.islands import Trial, add_islands

    trial = Trial(cfg=cfg, head=head, weights=weights, batches=batches, reference=found.outputs)
    if cfg.placement != "post":  # there the stream is what norms give, and in range by itself
        narrow = _held_back(plan(mode, fp16_stream=True), cfg)
        reached = trial.cosine(narrow)
        if reached >= STREAM_COSINE:
            reasons = narrow.reasons | {"fp16_stream": f"it reaches cosine {reached:.6f}"}
            return msgspec.structs.replace(narrow, reasons=reasons, storage_cosine=reached)
    return add_islands(trial, policy)


def _planned(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    batches: Sequence[Batch],
    found: Audit,
    mode: Mode,
    *,
    fp16_stream: bool = False,
) -> Policy:
    """Scales from the audit, and what they lead to."""
    scales = plan_scales(cfg, found.ranges, fp16_stream=fp16_stream)
    policy = msgspec.structs.replace(scales, mode=mode, fp16_stream=fp16_stream)
    return _folded(cfg, head, weights, batches, policy)


def _folded(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    batches: Sequence[Batch],
    policy: Policy,
) -> Policy:
    """With the ranges that its scales lead to, where it has any."""
    if not policy.scales and policy.stream == 1.0:
        return policy
    return msgspec.structs.replace(policy, folded=audit(cfg, head, weights, batches, policy).ranges)


def _held_back(policy: Policy, cfg: EncoderConfig) -> Policy:
    """BF16 for the units that folding leaves beyond their budget, though these texts may not overflow yet."""
    reasons = beyond_budget(cfg, policy.folded or policy.ranges)
    islands: dict[str, Wide] = dict.fromkeys(reasons, "bf16")
    return msgspec.structs.replace(policy, islands=islands, reasons=policy.reasons | reasons)


def _throughout(policy: Policy, cfg: EncoderConfig, wide: Wide) -> Policy:
    reasons = policy.reasons | dict.fromkeys(units(cfg), f"--precision {wide}")
    return msgspec.structs.replace(policy, islands=dict.fromkeys(units(cfg), wide), reasons=reasons)


def compared_head(head: Head) -> Head:
    """Heads run in fp32, and a cosine of logits says little: for every task but embed the pooled (or per-token) vector
    before the head's steps is what tells one precision from another."""
    return head if head.task == "embed" else replace(head, steps=())
