"""The precision policy of an FP16 engine: plain data, readable, kept in the manifest.

A *site* is a place where an engine stores a value: a linear (`layers.3.v`), an attention output, an MLP's hidden
value, a norm's input (`layers.3.attn_norm.in`) or output. A *unit* is half a layer, `layers.3.attention` or
`layers.3.mlp`: what an island is made of.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from bei.adapters.config import EncoderConfig
from bei.errors import InputError
from bei.manifest import Manifest

Wide = Literal["bf16", "fp32"]
Mode = Literal["auto", "fp16", "fp32", "bf16"]

FP16_MAX = 65504.0
_UNIT = re.compile(r"(layers\.\d+)\.(\w+)")
_MLP = frozenset({"gate", "up", "down", "hidden", "moe", "ffn_norm", "ffn_out_norm"})


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``scales``: site → power of two that its stored value carries (1 where absent); ``stream`` the residual
    stream's. ``islands``: unit → the wider type it is computed in. ``ranges``: largest magnitude per site over the
    calibration texts, unscaled, and ``folded`` as stored where that differs. ``reasons``: what each decision is for, by site or unit. ``storage_cosine``: what FP16
    storage under this policy reaches against fp32 on those texts, in torch; None where it was not tried.
    ``fp16_stream``: an engine that can choose (CUDA) stores the residual stream in FP16 as well."""

    mode: Mode = "fp16"
    stream: float = 1.0
    scales: dict[str, float] = {}
    islands: dict[str, Wide] = {}
    ranges: dict[str, float] = {}
    folded: dict[str, float] = {}
    reasons: dict[str, str] = {}
    storage_cosine: float | None = None
    fp16_stream: bool = False

    def scale(self, site: str) -> float:
        """What the site's stored value is multiplied by."""
        return self.scales.get(site, 1.0)

    @property
    def name(self) -> str:
        """What decides the gate: fp16, "fp16, 2 wider units", or the one type asked for throughout."""
        if self.mode in ("bf16", "fp32"):
            return self.mode
        return f"fp16, {len(self.islands)} wider units" if self.islands else "fp16"

    def decisions(self) -> Iterator[str]:
        """Every scale and every choice of type in words, with its reason."""
        scales = {"stream": self.stream} if self.stream != 1.0 else {}
        for site, factor in (scales | self.scales).items():
            yield f"{site} × 2^{round(math.log2(factor))}{self._because(site)}"
        for unit, wide in self.islands.items():
            yield f"{unit} in {wide}{self._because(unit)}"
        if self.fp16_stream:
            yield f"stream in fp16 where an engine can choose{self._because('fp16_stream')}"

    def _because(self, name: str) -> str:
        return f": {self.reasons[name]}" if name in self.reasons else ""


PLAIN = Policy()
"""No scale, no island."""


def policy_of(manifest: Manifest) -> Policy:
    """The policy that a bundle's FP16 engines were built with; `PLAIN` where it has none."""
    return msgspec.convert(manifest.precision, Policy) if manifest.precision else PLAIN


def unit_of(site: str) -> str | None:
    """`layers.3.attention` or `layers.3.mlp`; None outside the layers."""
    found = _UNIT.match(site)
    if found is None:
        return None
    return f"{found[1]}.{'mlp' if found[2] in _MLP else 'attention'}"


def units(cfg: EncoderConfig) -> list[str]:
    """Every unit of an encoder, in order."""
    return [f"layers.{i}.{half}" for i in range(len(cfg.layers)) for half in ("attention", "mlp")]


def scalable(cfg: EncoderConfig) -> frozenset[str]:
    """Sites that may carry a scale of their own; the others follow the stream or must stay as they are."""
    names = {"q", "k", "v"}
    if cfg.placement == "sandwich":
        names |= {"o", "down"}
    sites = {f"layers.{i}.{name}" for i in range(len(cfg.layers)) for name in names}
    if cfg.gated:
        sites |= {f"layers.{i}.up" for i, layer in enumerate(cfg.layers) if layer.moe is None}
    return frozenset(sites)


def check_policy(policy: Policy, cfg: EncoderConfig) -> None:
    """Refuse unknown names and scales that are not powers of two. Raises InputError."""
    known = scalable(cfg)
    for site, factor in policy.scales.items():
        if site not in known:
            raise InputError(
                f"precision policy: {site!r} cannot carry a scale. Known: {', '.join(sorted(known)[:8])}, …"
            )
        _check_power(site, factor)
    _check_power("stream", policy.stream)
    for unit in policy.islands:
        if unit not in units(cfg):
            raise InputError(f"precision policy: no unit {unit!r}. Known: {', '.join(units(cfg)[:4])}, …")


def read_policy(path: Path, cfg: EncoderConfig) -> Policy:
    """A hand-written policy (JSON). Raises InputError naming what is wrong."""
    try:
        policy = msgspec.json.decode(path.read_bytes(), type=Policy)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a precision policy ({error}).") from None
    check_policy(policy, cfg)
    return policy


def _check_power(site: str, factor: float) -> None:
    mantissa, _ = math.frexp(factor) if math.isfinite(factor) and factor > 0 else (0.0, 0)
    if mantissa != 0.5:
        raise InputError(
            f"precision policy: {site} has the scale {factor}, need a power of two such as 0.125."
        )
