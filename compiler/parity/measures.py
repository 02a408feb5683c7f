"""How far two sets of results lie apart. Pure NumPy, computed in fp64.

n texts, d dimensions, C classes. ``ours`` is the engine's result, ``theirs`` the reference's. Functions that average or
take extremes expect finite numbers: select the rows with `finite_rows` first.
"""

from collections.abc import Hashable, Iterable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


def finite_rows(x: Array) -> Bool:
    """[n]: rows of [n, ...] without NaN or Inf."""
    return np.asarray(np.isfinite(x).reshape(len(x), -1).all(axis=1))


def cosine_distance(ours: Array, theirs: Array) -> F64:
    """[n]: 1 − cosine of rows [n, d], from the difference of the unit vectors, which keeps digits where 1 − x loses them.

    Two zero vectors are equal (0); a zero vector beside another is orthogonal (1).
    """
    a, b = _unit(ours), _unit(theirs)
    distance: F64 = 0.5 * np.square(a - b).sum(axis=-1)
    one_is_zero = a.any(axis=-1) != b.any(axis=-1)
    return np.where(one_is_zero, 1.0, distance)


def relative_error(ours: Array, theirs: Array) -> F64:
    """[n]: ‖ours − theirs‖₂ / ‖theirs‖₂ of rows [n, d]; sees a wrong scale, to which a cosine is blind."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    norm = np.linalg.norm(b, axis=-1)
    error: F64 = np.linalg.norm(a - b, axis=-1) / np.where(norm > 0, norm, 1.0)
    return error


def scaled_difference(a: Array, b: Array) -> float:
    """max |a − b| / max(1, max |b|): absolute for small numbers, relative for large ones."""
    if not b.size:
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(np.abs(x - y).max() / max(1.0, np.abs(y).max()))


def neighbour_overlap(ours: Array, theirs: Array, k: int = 10, tie: float = 1e-6) -> F64 | None:
    """[n]: of each text's k nearest others by cosine (rows [n, d]), the share that the reference agrees with.

    A neighbour counts when its reference similarity reaches the reference's k-th best within ``tie``: the order of
    equal texts means nothing. None for fewer than two texts; k shrinks to n − 1.
    """
    n = len(theirs)
    if n < 2:
        return None
    k = min(k, n - 1)
    mine, reference = _similarities(ours), _similarities(theirs)
    chosen = np.argpartition(-mine, k - 1, axis=1)[:, :k]
    kth_best = -np.partition(-reference, k - 1, axis=1)[:, k - 1 : k]
    agreed: F64 = (np.take_along_axis(reference, chosen, axis=1) >= kth_best - tie).mean(axis=1)
    return agreed


def similarity_rank_correlation(ours: Array, theirs: Array) -> float | None:
    """Spearman's coefficient over the cosines of all pairs of texts (rows [n, d]); None for fewer than three texts."""
    if len(theirs) < 3:
        return None
    upper = np.triu_indices(len(theirs), 1)
    return spearman(_similarities(ours)[upper], _similarities(theirs)[upper])


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of two series [n], ties sharing their average rank; a constant series agrees only with another."""
    return _pearson(average_ranks(a), average_ranks(b))


def average_ranks(x: Array) -> F64:
    """[n]: rank of each value from 0, equal values sharing the mean of their ranks."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: F64 = (last - 1 + last - counts) / 2
    return mean[inverse]


def kendall_tau(ours: Array, theirs: Array, tie: float = 1e-6) -> float | None:
    """Of the pairs of [n] scores that the reference tells apart by more than ``tie``: (same order − opposite) / all.

    Kendall's τ where the reference has no ties; a tie of ours in a decided pair counts as neither. O(n²) memory.
    None when the reference decides no pair.
    """
    upper = np.triu_indices(len(theirs), 1)
    reference = (theirs[:, None].astype(np.float64) - theirs[None, :])[upper]
    mine = (ours[:, None].astype(np.float64) - ours[None, :])[upper]
    decided = np.abs(reference) > tie
    if not decided.any():
        return None
    return float((np.sign(mine) * np.sign(reference))[decided].mean())


def ndcg(scores: Array, reference: Array) -> float:
    """Discounted gain of ranking [n] documents by ``scores``, over the gain of the reference's own order.

    A document's gain is its rank from the bottom in the reference (linear, ties averaged), its discount
    1 / log2(position + 1). Equal scores keep the order given.
    """
    gains = average_ranks(reference)
    discounts = 1 / np.log2(np.arange(len(gains)) + 2)
    best = float((np.sort(gains)[::-1] * discounts).sum())
    got = float((gains[np.argsort(-scores, kind="stable")] * discounts).sum())
    return got / best if best > 0 else 1.0


def span_f1(ours: Iterable[Iterable[Hashable]], theirs: Iterable[Iterable[Hashable]]) -> float:
    """Micro F1 of exactly matching spans, text by text; 1 when neither side found any."""
    hits = found = wanted = 0
    for mine, reference in zip(ours, theirs, strict=True):
        a, b = set(mine), set(reference)
        hits, found, wanted = hits + len(a & b), found + len(a), wanted + len(b)
    return 2 * hits / (found + wanted) if found + wanted else 1.0


def softmax(logits: Array) -> F64:
    """Over the last axis."""
    x = logits.astype(np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    total: F64 = e / e.sum(axis=-1, keepdims=True)
    return total


def sigmoid(logits: Array) -> F64:
    """Element-wise, without overflow."""
    p: F64 = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return p


def _unit(x: Array) -> F64:
    y = x.astype(np.float64)
    norm = np.linalg.norm(y, axis=-1, keepdims=True)
    unit: F64 = y / np.where(norm > 0, norm, 1.0)
    return unit


def _similarities(x: Array) -> F64:
    """[n, n] cosines, with −Inf on the diagonal: no text is its own neighbour."""
    unit = _unit(x)
    similarity: F64 = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity


def _pearson(a: F64, b: F64) -> float:
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    if scale == 0:
        return 1.0 if not x.any() and not y.any() else 0.0
    return float(x @ y) / scale
