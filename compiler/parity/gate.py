"""What an engine must reach: measures, their meaning, and the default thresholds per task and precision."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from bei.errors import ParityError
from bei.manifest import Task

Precision = Literal["fp32", "fp16", "bf16"]


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """A bound on one side."""

    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether ``value`` is within the bound; NaN never is."""
        above = self.at_least is None or value >= self.at_least
        below = self.at_most is None or value <= self.at_most
        return above and below


MEANINGS: Mapping[str, str] = {
    "cosine_min": "cosine, worst text (or token)",
    "cosine_p1": "cosine, 1st percentile",
    "cosine_median": "cosine, median",
    "cosine_mean": "cosine, mean",
    "relative_error": "vector off by, relative, worst text (or token)",
    "max_abs_error": "largest error of a single number",
    "neighbour_overlap": "top-10 neighbours kept, mean",
    "rank_correlation": "rank correlation of all similarities",
    "label_agreement": "labels kept",
    "probability_error": "probability off by, worst",
    "probability_error_mean": "probability off by, mean",
    "logit_error": "logit off by, worst",
    "score_error": "score from 0 to 1 off by, worst",
    "score_error_mean": "score from 0 to 1 off by, mean",
    "kendall_tau": "order kept (Kendall), mean of queries",
    "kendall_tau_min": "order kept (Kendall), worst query",
    "ndcg": "NDCG against the reference's order",
    "span_f1_none": "entity F1, tokens as they are",
    "span_f1_simple": "entity F1, strategy simple",
    "span_f1_first": "entity F1, strategy first",
    "span_f1_average": "entity F1, strategy average",
    "span_f1_max": "entity F1, strategy max",
    "non_finite": "results with NaN or Inf",
    "token_ids_differ": "texts with other token ids",
    "batch_difference": "change from alone to in a batch, worst",
    "padding_difference": "change from alone to padded, worst",
}
"""What each measure says, in a few words. "off by" is a difference from the reference; logits count relative above 1,
and so do changes of logits, while changes of vectors are relative to their length."""

_Row = tuple[Literal["at_least", "at_most"], float, float, float]
"""Bound for fp32, fp16, bf16."""

_LEAST: Literal["at_least"] = "at_least"
_MOST: Literal["at_most"] = "at_most"

# fp32 differs from the reference in the order of sums alone. FP16 keeps 11 bits and BF16 8: rounding errors of 2^-12 and
# 2^-9 a layer grow with about the square root of the depth. Neighbours and ranks change only where the reference itself
# hardly decides, so their bounds leave room for near ties and nothing else. A single token's vector is not averaged
# over its text as a pooled one is, hence its wider bounds.
_ALWAYS: Mapping[str, _Row] = {
    "non_finite": (_MOST, 0, 0, 0),
    "token_ids_differ": (_MOST, 0, 0, 0),
    "batch_difference": (_MOST, 1e-4, 5e-3, 3e-2),
    "padding_difference": (_MOST, 1e-4, 5e-3, 3e-2),
}
_LOGITS: Mapping[str, _Row] = {
    "logit_error": (_MOST, 1e-3, 2e-2, 1e-1),
}
_GATES: Mapping[Task, Mapping[str, _Row]] = {
    "embed": {
        "cosine_min": (_LEAST, 0.99999, 0.9999, 0.999),
        "relative_error": (_MOST, 1e-3, 1.5e-2, 5e-2),
        "neighbour_overlap": (_LEAST, 0.99, 0.97, 0.9),
        "rank_correlation": (_LEAST, 0.9999, 0.999, 0.99),
        **_ALWAYS,
    },
    "embed-tokens": {
        "cosine_min": (_LEAST, 0.99999, 0.999, 0.99),
        "relative_error": (_MOST, 1e-3, 5e-2, 1.5e-1),
        **_ALWAYS,
    },
    "classify": {
        "label_agreement": (_LEAST, 0.999, 0.99, 0.97),
        "probability_error": (_MOST, 1e-4, 1e-2, 5e-2),
        **_LOGITS,
        **_ALWAYS,
    },
    "rerank": {
        "score_error": (_MOST, 1e-4, 1e-2, 5e-2),
        "kendall_tau": (_LEAST, 0.999, 0.98, 0.95),
        "ndcg": (_LEAST, 0.9999, 0.999, 0.99),
        **_LOGITS,
        **_ALWAYS,
    },
    "token-classify": {
        "label_agreement": (_LEAST, 0.999, 0.99, 0.97),
        "probability_error": (_MOST, 1e-4, 2e-2, 1e-1),
        **{
            f"span_f1_{strategy}": (_LEAST, 0.999, 0.99, 0.97)
            for strategy in ("none", "simple", "first", "average", "max")
        },
        **_LOGITS,
        **_ALWAYS,
    },
}


def gate(task: Task, precision: str) -> dict[str, Threshold]:
    """The default thresholds by measure. Raises ParityError for a precision without defaults."""
    column = ("fp32", "fp16", "bf16").index(precision_of(precision)) + 1
    return {name: _threshold(row, column) for name, row in _GATES[task].items()}


def _threshold(row: _Row, column: int) -> Threshold:
    bound = float(row[column])
    return Threshold(at_least=bound) if row[0] == _LEAST else Threshold(at_most=bound)


def precision_of(engine: str) -> Precision:
    """The coarsest format named in an engine's precision, such as fp16 in "fp16, fp32 residual"."""
    coarsest_first: tuple[Precision, ...] = ("bf16", "fp16", "fp32")
    for name in coarsest_first:
        if name in engine:
            return name
    raise ParityError(f"parity: no thresholds for precision {engine!r} (need one of fp32, fp16, bf16).")
