"""From measured ranges to scales: which sites pass their budget, and the power of two that brings them back."""

import math
from collections.abc import Iterator, Mapping

from bei.adapters.config import EncoderConfig
from bei.compiler.precision.policy import FP16_MAX, Policy, scalable, unit_of

HEADROOM = 8.0
"""Calibration texts are not all texts: a site must stay this factor below the FP16 maximum."""
BUDGET = FP16_MAX / HEADROOM


def plan_scales(cfg: EncoderConfig, ranges: Mapping[str, float], *, fp16_stream: bool = False) -> Policy:
    """A policy whose scales bring every foldable site within the budget; others are left to islands.

    ``fp16_stream``: the residual stream itself is stored in FP16 and must fit as well.
    """
    scales: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for site, seen in _groups(cfg):
        factor = _fit(seen, ranges, reasons, site)
        if factor != 1.0:
            scales[site] = factor
    stream = _fit(tuple(_stream_sites(cfg, ranges, fp16_stream)), ranges, reasons, "stream")
    return Policy(stream=stream, scales=scales, ranges=dict(ranges), reasons=reasons)


def beyond_budget(cfg: EncoderConfig, ranges: Mapping[str, float]) -> dict[str, str]:
    """Units in which a stored value passes the budget, with the site and its value as the reason.

    ``ranges`` are those of an engine whose residual stream is fp32, so the norms that read the stream do not count.
    """
    worst: dict[str, tuple[float, str]] = {}
    for site, seen in ranges.items():
        unit = unit_of(site)
        stored = not (site.endswith(".in") and _reads_stream(cfg, site))
        if unit is not None and stored and not seen <= max(BUDGET, worst.get(unit, (0.0, ""))[0]):
            worst[unit] = (seen, site)
    return {
        unit: f"{site} reaches {seen:.3g}, budget {BUDGET:.0f}, and cannot be scaled"
        for unit, (seen, site) in sorted(worst.items())
    }


def _groups(cfg: EncoderConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each site that may carry a scale, with all the stored values that then carry it."""
    followers = {
        "q": ("q", "attention.q", "q_norm.in"),
        "k": ("k", "attention.k", "k_norm.in"),
        "v": ("v", "attention.v", "attention"),
        "up": ("up", "hidden"),
    }
    for site in sorted(scalable(cfg)):
        layer, name = site.rsplit(".", 1)
        yield site, tuple(f"{layer}.{follower}" for follower in followers.get(name, (name,)))


def _stream_sites(cfg: EncoderConfig, ranges: Mapping[str, float], fp16_stream: bool) -> Iterator[str]:
    """Stored values that carry the stream's scale: what is added to it and, in FP16, the stream."""
    own = scalable(cfg)
    for site in ranges:
        name = site.rsplit(".", 1)[-1]
        if name in ("o", "down", "moe") and site not in own:
            yield site
        streamed = name == "in" and not site.startswith("head") and _reads_stream(cfg, site)
        if fp16_stream and streamed:
            yield site


def _reads_stream(cfg: EncoderConfig, site: str) -> bool:
    """Whether a norm's input is the residual stream (not a sandwich's branch, q, k or the raw embedding)."""
    norm = site.removesuffix(".in").rsplit(".", 1)[-1]
    return norm in ("attn_norm", "ffn_norm", "final_norm", "attn_inner_norm")


def _fit(sites: tuple[str, ...], ranges: Mapping[str, float], reasons: dict[str, str], name: str) -> float:
    """The largest power of two, at most 1, that brings the largest of ``sites`` within the budget."""
    site = max(sites, key=lambda s: ranges.get(s, 0.0), default="")
    largest = ranges.get(site, 0.0)
    if not largest > BUDGET:
        return 1.0
    factor = 2.0 ** -math.ceil(math.log2(largest / BUDGET))
    reasons[name] = f"{site} reaches {largest:.3g}, budget {BUDGET:.0f}"
    return factor
