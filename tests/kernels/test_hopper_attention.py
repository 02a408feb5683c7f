"""Hopper's form of attention on such a GPU, against the reference: every kind of heads, feature, length and type."""

from typing import Any

import pytest
import torch
from tests.kernels.compiled import launch_compiled
from tests.kernels.test_kernels import compare

from bei.kernels import attention, hopper_attention
from bei.kernels.launch import Sample, Source, forms

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs SM90"
)
HEADS = {
    "32": {"heads": 12, "head_dim": 32},
    "64": {"heads": 12, "head_dim": 64},
    "64-odd": {"heads": 3, "head_dim": 64},
    "64-groups-of-4": {"heads": 8, "kv_heads": 2, "head_dim": 64},
    "64-groups-of-7": {"heads": 14, "kv_heads": 2, "head_dim": 64},
    "128": {"heads": 2, "head_dim": 128},
    "128-groups-of-2": {"heads": 16, "kv_heads": 8, "head_dim": 128},
    "256-groups-of-3": {"heads": 3, "kv_heads": 1, "head_dim": 256},
}
FEATURES: dict[str, dict[str, Any]] = {
    "all": {},
    "causal": {"causal": True},
    "window-20": {"window": 20},
    "window-200": {"window": 200},
    "causal-window-20": {"causal": True, "window": 20},
}
LENGTHS = [
    (300,),
    (1, 63, 64, 65, 128, 129, 500),
    tuple(1 + 37 * n % 257 for n in range(150)),  # more tiles than a GPU has blocks
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("heads", HEADS)
def test_matches_the_reference(heads: str, feature: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for lengths in LENGTHS:
        shape = {**HEADS[heads], **FEATURES[feature], "lengths": lengths}
        attend(attention.make_inputs(shape, device="cuda", dtype=dtype, sm=90))


@pytest.mark.parametrize("heads", ["32", "64", "128", "256-groups-of-3"])
def test_peaks_and_values_that_are_no_numbers_stay_in_their_text(heads: str) -> None:
    torch.manual_seed(0)
    lengths = (70, 65, 200, 100, 129, 3)
    sample = attention.make_inputs(
        {**HEADS[heads], "lengths": lengths}, device="cuda", dtype=torch.float16, sm=90
    )
    q, k, v = (sample.operands[name] for name in ("q", "k", "v"))
    assert q is not None and k is not None and v is not None
    q *= 30
    overflown = slice(sum(lengths[:3]), sum(lengths[:4]))
    k[overflown] = torch.inf
    v[overflown] = torch.nan
    attend(sample, lost=overflown)


def attend(sample: Sample, lost: slice | None = None) -> None:
    """By Hopper's form; of the rows ``lost`` nothing is asked but that no other is."""
    how = hopper_attention.plan(forms(sample.operands), sm=90, **sample.attrs)
    assert how is not None and isinstance(how.function, Source)
    launch_compiled(how, sample)
    expected = attention.reference(**sample.operands, **sample.attrs)  # type: ignore[arg-type]
    if lost is not None:
        out = sample.operands["out"]
        assert out is not None and expected["out"][lost].isnan().all()
        out[lost] = expected["out"][lost] = 0
    compare(expected, sample, 4e-3)
