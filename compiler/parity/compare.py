"""An engine's results beside the reference's, task by task: named measures, and how far each text is off."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bei.compiler.parity import measures
from bei.compiler.parity.reference import Span
from bei.compiler.parity.texts import Sample
from bei.errors import ParityError
from bei.manifest import Task
from bei.runtime.entities import Strategy

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

DISTANCE: dict[Task, str] = {
    "embed": "1 − cosine",
    "embed-tokens": "1 − cosine, worst token",
    "classify": "probability error",
    "rerank": "score error",
    "token-classify": "probability error",
}
"""What ``Comparison.distance`` is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """``values`` by measure, None where there was nothing to measure; ``distance`` [n] per text and ``error`` [n], its
    largest absolute difference, both NaN where our result is not finite."""

    values: dict[str, float | None]
    distance: F64
    error: F64


def compare(
    task: Task,
    ours: Sequence[F32],
    theirs: Sequence[F32],
    samples: Sequence[Sample],
    *,
    multi_label: bool = False,
) -> Comparison:
    """Results in the order of ``samples``, shaped as the task's head gives them (`bei.manifest.HeadSpec`).

    ``multi_label`` reads each logit as a probability of its own. Raises ParityError when shapes differ.
    """
    _require_same_shapes(ours, theirs)
    if task == "embed":
        return _embed(np.stack(ours), np.stack(theirs))
    if task == "embed-tokens":
        return _embed_tokens(ours, theirs)
    if task == "rerank":
        return _rerank(np.stack(ours), np.stack(theirs), samples)
    return _classify(ours, theirs, multi_label)


def compare_spans(
    ours: Mapping[Strategy, Sequence[Sequence[Span]]], theirs: Mapping[Strategy, Sequence[Sequence[Span]]]
) -> dict[str, float | None]:
    """Entity F1 for every aggregation strategy."""
    return {
        f"span_f1_{strategy}": measures.span_f1(found, theirs[strategy]) for strategy, found in ours.items()
    }


def difference(task: Task, a: F32, b: F32) -> float:
    """How far one text's result moved: relative to the vector's length (of the worst token, where each has one), or, for
    logits, absolute below 1."""
    if task in ("embed", "embed-tokens"):
        return float(measures.relative_error(np.atleast_2d(a), np.atleast_2d(b)).max())
    return measures.scaled_difference(a, b)


def _embed(ours: F32, theirs: F32) -> Comparison:
    good = measures.finite_rows(ours)
    distance, error = (np.full(len(ours), np.nan) for _ in range(2))
    values: dict[str, float | None] = {"non_finite": float((~good).sum())}
    if good.any():
        a, b = ours[good], theirs[good]
        distance[good] = measures.cosine_distance(a, b)
        error[good] = np.abs(a.astype(np.float64) - b).max(axis=1)
        overlap = measures.neighbour_overlap(a, b)
        values |= {
            **_cosines(1 - distance[good]),
            "relative_error": float(measures.relative_error(a, b).max()),
            "max_abs_error": float(error[good].max()),
            "neighbour_overlap": None if overlap is None else float(overlap.mean()),
            "rank_correlation": measures.similarity_rank_correlation(a, b),
        }
    return Comparison(values=values, distance=distance, error=error)


def _embed_tokens(ours: Sequence[F32], theirs: Sequence[F32]) -> Comparison:
    """Every token counts the same; a text's distance is that of its worst token."""
    good = np.array([bool(np.isfinite(x).all()) for x in ours])
    distance, error = (np.full(len(ours), np.nan) for _ in range(2))
    cosines: list[F64] = []
    relative = 0.0
    for i in np.flatnonzero(good).tolist():
        of_tokens = measures.cosine_distance(ours[i], theirs[i])
        cosines.append(1 - of_tokens)
        relative = max(relative, float(measures.relative_error(ours[i], theirs[i]).max()))
        distance[i] = of_tokens.max()
        error[i] = np.abs(ours[i].astype(np.float64) - theirs[i]).max()
    values: dict[str, float | None] = {"non_finite": float((~good).sum())}
    if cosines:
        cosine = np.concatenate(cosines)
        values |= {
            **_cosines(cosine),
            "relative_error": relative,
            "max_abs_error": float(error[good].max()),
        }
    return Comparison(values=values, distance=distance, error=error)


def _cosines(cosine: F64) -> dict[str, float | None]:
    return {
        "cosine_min": float(cosine.min()),
        "cosine_p1": float(np.percentile(cosine, 1)),
        "cosine_median": float(np.median(cosine)),
        "cosine_mean": float(cosine.mean()),
    }


def _rerank(ours: F32, theirs: F32, samples: Sequence[Sample]) -> Comparison:
    if theirs.shape[1] != 1:
        raise ParityError(f"rerank: the reference gives {theirs.shape[1]} scores a pair (need 1).")
    good = measures.finite_rows(ours)
    distance, error = (np.full(len(ours), np.nan) for _ in range(2))
    values: dict[str, float | None] = {"non_finite": float((~good).sum())}
    if good.any():
        a, b = ours[good, 0], theirs[good, 0]
        distance[good] = np.abs(measures.sigmoid(a) - measures.sigmoid(b))
        error[good] = np.abs(a.astype(np.float64) - b)
        groups = [sample.group for sample, kept in zip(samples, good, strict=True) if kept]
        values |= {
            "score_error": float(distance[good].max()),
            "score_error_mean": float(distance[good].mean()),
            "logit_error": _logit_error(ours, theirs, good),
            "max_abs_error": float(error[good].max()),
            **_order(a, b, groups),
        }
    return Comparison(values=values, distance=distance, error=error)


def _order(ours: F32, theirs: F32, groups: Sequence[int | None]) -> dict[str, float | None]:
    """Rank measures over the queries that have at least two documents."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        if group is not None:
            members[group].append(i)
    queries = [(ours[m], theirs[m]) for m in members.values() if len(m) > 1]
    taus = [tau for a, b in queries if (tau := measures.kendall_tau(a, b)) is not None]
    gains = [measures.ndcg(a, b) for a, b in queries]
    return {
        "kendall_tau": float(np.mean(taus)) if taus else None,
        "kendall_tau_min": min(taus, default=None),
        "ndcg": float(np.mean(gains)) if gains else None,
    }


def _classify(ours: Sequence[F32], theirs: Sequence[F32], multi_label: bool) -> Comparison:
    """Logits [C] a text or [n, C] its tokens; every row of C counts the same."""
    good = np.array([bool(np.isfinite(x).all()) for x in ours])
    distance, error = (np.full(len(ours), np.nan) for _ in range(2))
    agreed: list[npt.NDArray[np.bool_]] = []
    off: list[F64] = []
    for i, kept in enumerate(good):
        if not kept:
            continue
        a, b = np.atleast_2d(ours[i]), np.atleast_2d(theirs[i])
        alone = multi_label or a.shape[1] == 1  # a softmax over one label is 1, whatever the logit
        p, q = (measures.sigmoid(x) if alone else measures.softmax(x) for x in (a, b))
        same = ((a > 0) == (b > 0)).all(axis=1) if alone else a.argmax(axis=1) == b.argmax(axis=1)
        agreed.append(same)
        off.append(np.abs(p - q).max(axis=1))
        distance[i], error[i] = off[-1].max(), np.abs(a.astype(np.float64) - b).max()
    values: dict[str, float | None] = {"non_finite": float((~good).sum())}
    if off:
        values |= {
            "label_agreement": float(np.concatenate(agreed).mean()),
            "probability_error": float(np.concatenate(off).max()),
            "probability_error_mean": float(np.concatenate(off).mean()),
            "logit_error": _logit_error(ours, theirs, good),
            "max_abs_error": float(error[good].max()),
        }
    return Comparison(values=values, distance=distance, error=error)


def _logit_error(
    ours: Sequence[F32] | F32, theirs: Sequence[F32] | F32, good: npt.NDArray[np.bool_]
) -> float:
    return max(measures.scaled_difference(ours[i], theirs[i]) for i, kept in enumerate(good) if kept)


def _require_same_shapes(ours: Sequence[F32], theirs: Sequence[F32]) -> None:
    if len(ours) != len(theirs) or not theirs:
        raise ParityError(f"parity: {len(ours)} results of the engine, {len(theirs)} of the reference.")
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape:
            raise ParityError(
                f"parity: text {i + 1}: the engine gives shape {a.shape}, the reference {b.shape}. Are bundle and "
                "checkpoint of the same model, head and length limit?"
            )
