"""Target names: what parses, what it means, and what is said about the rest."""

import pytest

from bei.compiler.target import SMS, Target, parse_target
from bei.errors import EngineError


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("onnxruntime-cpu", Target(backend="onnxruntime", device="cpu")),
        ("onnxruntime-cuda", Target(backend="onnxruntime", device="cuda")),
        ("cuda-sm90", Target(backend="cuda", device="cuda", sms=(90,))),
        ("tensorrt-sm90", Target(backend="tensorrt", device="cuda", sms=(90,))),
        ("tensorrt-rtx-sm89", Target(backend="tensorrt-rtx", device="cuda", sms=(89,))),
        (
            "tensorrt-rtx-sm80+sm86+sm89+sm120",
            Target(backend="tensorrt-rtx", device="cuda", sms=(80, 86, 89, 120)),
        ),
    ],
)
def test_name_and_target_are_each_other(name: str, target: Target) -> None:
    assert parse_target(name) == target
    assert target.name == name


def test_sms_are_sorted_and_named_once() -> None:
    assert parse_target("tensorrt-rtx-sm120+sm80+sm120").name == "tensorrt-rtx-sm80+sm120"


def test_compute_capabilities_as_cuda_writes_them() -> None:
    assert parse_target("tensorrt-rtx-sm75+sm89+sm120").compute_capabilities == ("7.5", "8.9", "12.0")
    assert parse_target("onnxruntime-cpu").compute_capabilities == ()


def test_every_known_sm_parses() -> None:
    for backend, sms in SMS.items():
        assert all(parse_target(f"{backend}-sm{sm}").sms == (sm,) for sm in sms)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensorrt-rtx-sm90", "tensorrt-rtx has no 'sm90'"),
        ("tensorrt-rtx-sm90", "Use cuda-sm90 or tensorrt-sm90."),
        ("tensorrt-rtx", "no SM given"),
        ("tensorrt-rtx-", "unknown"),
        ("tensorrt-rtx-sm", "has no 'sm'"),
        ("tensorrt-rtx-sm80+", "has no ''"),
        ("tensorrt-rtx-sm80,sm89", "has no 'sm80,sm89'"),
        ("tensorrt-rtx-sm80-sm89", "has no 'sm80-sm89'"),
        ("tensorrt-sm80+sm90", "serves one SM"),
        ("tensorrt-sm081", "has no 'sm081'"),
        ("onnxruntime", "Did you mean 'onnxruntime-cpu'?"),
        ("onnxruntime-gpu", "unknown"),
        ("TENSORRT-SM90", "unknown"),
        ("", "Known forms: onnxruntime-cpu,"),
    ],
)
def test_refusals_say_what_there_is(name: str, says: str) -> None:
    with pytest.raises(EngineError) as refusal:
        parse_target(name)
    assert says in str(refusal.value)
    assert repr(name) in str(refusal.value)
