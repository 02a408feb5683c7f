"""Islands by bisection: the few units that FP16 cannot hold even after folding become BF16 or FP32."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.lowering.torch_ops import Tensors, engine_storage, run_torch
from bei.compiler.precision.audit import Batch
from bei.compiler.precision.policy import Policy, Wide, units
from bei.compiler.weights import Weight

COSINE = 0.9999
"""What FP16 storage must reach against fp32, for every text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Runs the encoder with FP16 storage under a policy and compares with fp32: ``reference`` is what `audit` gave for
    ``batches``."""

    cfg: EncoderConfig
    head: Head
    weights: Mapping[str, Weight]
    batches: Sequence[Batch]
    reference: Sequence[npt.NDArray[np.float32]]
    tensors: Tensors = field(default_factory=Tensors)

    def cosine(self, policy: Policy) -> float:
        """The smallest cosine over all rows (tokens, for per-token heads); NaN counts as −1."""
        return min(self.cosines(policy), default=1.0)

    def passes(self, policy: Policy, threshold: float) -> bool:
        """Whether every batch reaches ``threshold``; the first that does not ends it."""
        return all(cosine >= threshold for cosine in self.cosines(policy))

    def cosines(self, policy: Policy) -> Iterator[float]:
        """The smallest cosine of each batch, computed as it is asked for."""
        storage = engine_storage(self.cfg, torch.float16, policy)
        for batch, expected in zip(self.batches, self.reference, strict=True):
            ids, mask, types = (torch.from_numpy(array) for array in batch)
            out = run_torch(
                self.cfg,
                self.head,
                self.weights,
                ids,
                mask,
                types=types,
                storage=storage,
                policy=policy,
                tensors=self.tensors,
            )
            yield _cosine(out, torch.from_numpy(expected), mask)

    def worst_first(self, cosines: Sequence[float]) -> Self:
        """The same trial, whose first batch is the one that did worst: a bad policy then fails soon."""
        order = sorted(range(len(cosines)), key=cosines.__getitem__)
        return replace(
            self, batches=[self.batches[i] for i in order], reference=[self.reference[i] for i in order]
        )


def add_islands(trial: Trial, policy: Policy, *, threshold: float = COSINE) -> Policy:
    """``policy`` with the fewest islands that reach ``threshold``: none if it already does, BF16 if that is enough,
    FP32 otherwise. If not even FP32 throughout does, every unit is FP32 (the caller's gate will say so). It says what
    cosine it reaches."""
    cosines = list(trial.cosines(policy))
    plain, trial = min(cosines, default=1.0), trial.worst_first(cosines)
    if plain >= threshold:
        return msgspec.structs.replace(policy, storage_cosine=plain)
    kinds: tuple[Wide, ...] = ("bf16", "fp32")
    for kind in kinds:
        chosen = smallest(units(trial.cfg), partial(_passes, trial, policy, kind, threshold))
        if chosen is not None:
            found = _with(
                policy, chosen, kind, f"without it FP16 reaches cosine {plain:.6f}, need {threshold}"
            )
            break
    else:
        found = _with(policy, units(trial.cfg), "fp32", f"no mixture reaches cosine {threshold}")
    return msgspec.structs.replace(found, storage_cosine=trial.cosine(found))


def smallest(items: Sequence[str], passes: Callable[[Sequence[str]], bool]) -> list[str] | None:
    """A subset that passes and from which no single item can be dropped; None when not even all of them pass.

    Delta debugging (Zeller, Hildebrandt 2002): drop large pieces first, then smaller ones.
    """
    kept = list(items)
    if not passes(kept):
        return None
    size = max(1, len(kept) // 2)
    while True:
        dropped = False
        start = 0
        while start < len(kept):
            candidate = kept[:start] + kept[start + size :]
            if passes(candidate):
                kept, dropped = candidate, True
            else:
                start += size
        if size == 1 and not dropped:
            return kept
        size = max(1, size // 2)


def _passes(trial: Trial, policy: Policy, kind: Wide, threshold: float, subset: Sequence[str]) -> bool:
    return trial.passes(_with(policy, subset, kind, ""), threshold)


def _with(policy: Policy, subset: Sequence[str], kind: Wide, reason: str) -> Policy:
    islands = policy.islands | dict.fromkeys(subset, kind)
    reasons = policy.reasons | (dict.fromkeys(subset, reason) if reason else {})
    return msgspec.structs.replace(policy, islands=islands, reasons=reasons)


def _cosine(out: Tensor, expected: Tensor, mask: Tensor) -> float:
    if out.ndim == 3:
        out, expected = out[mask.bool()], expected[mask.bool()]
    if not bool(torch.isfinite(out).all()):
        return -1.0
    return float(torch.nn.functional.cosine_similarity(out.double(), expected.double(), dim=-1).min())
