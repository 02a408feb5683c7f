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
    if file is not None:
        given = read_policy(file, cfg)
        return msgspec.structs.replace(given, ranges=audit(cfg, head, weights, batches))
    planned = plan_scales(cfg, audit(cfg, head, weights, batches))
    if mode == "auto":
        return _searched(cfg, head, weights, batches, planned) if search else _auto(planned)
    if mode == "fp16":
        return planned
    wide: Wide = "bf16" if mode == "bf16" else "fp32"
    reasons = planned.reasons | dict.fromkeys(units(cfg), f"--precision {mode}")
    return msgspec.structs.replace(
        planned, mode=mode, islands=dict.fromkeys(units(cfg), wide), reasons=reasons
    )


def _auto(policy: Policy) -> Policy:
    return msgspec.structs.replace(policy, mode="auto")


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
    policy = _auto(add_islands(case, planned))
    return msgspec.structs.replace(policy, storage_cosine=case.cosine(policy))
