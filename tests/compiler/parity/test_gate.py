"""Default thresholds."""

import pytest

from bei.compiler.parity.gate import MEANINGS, Threshold, gate, precision_of
from bei.errors import ParityError
from bei.manifest import Task

TASKS: tuple[Task, ...] = ("embed", "embed-tokens", "classify", "rerank", "token-classify")


def test_cosine_bounds_of_embeddings() -> None:
    assert gate("embed", "fp32")["cosine_min"] == Threshold(at_least=0.99999)
    assert gate("embed", "fp16")["cosine_min"] == Threshold(at_least=0.9999)


@pytest.mark.parametrize("task", TASKS)
def test_coarser_formats_are_never_held_to_more(task: Task) -> None:
    fp32, fp16, bf16 = (gate(task, precision) for precision in ("fp32", "fp16", "bf16"))
    assert list(fp32) == list(fp16) == list(bf16)
    for name in fp32:
        a, b, c = fp32[name], fp16[name], bf16[name]
        assert (a.at_least or 0) >= (b.at_least or 0) >= (c.at_least or 0)
        assert (a.at_most or 0) <= (b.at_most or 0) <= (c.at_most or 0)


@pytest.mark.parametrize("task", TASKS)
def test_nan_and_tokens_are_always_judged(task: Task) -> None:
    for precision in ("fp32", "fp16", "bf16"):
        assert gate(task, precision)["non_finite"] == Threshold(at_most=0)
        assert gate(task, precision)["token_ids_differ"] == Threshold(at_most=0)


def test_every_measure_is_explained() -> None:
    assert {name for task in TASKS for name in gate(task, "fp32")} <= set(MEANINGS)


def test_precision_of_an_engine() -> None:
    assert precision_of("fp16, fp32 residual") == "fp16"
    assert precision_of("fp16 with bf16 islands") == "bf16"
    with pytest.raises(ParityError, match="no thresholds for precision 'int8'"):
        precision_of("int8")


def test_threshold() -> None:
    assert Threshold(at_least=1).holds(1)
    assert not Threshold(at_least=1).holds(float("nan"))
    assert not Threshold(at_most=1).holds(1.1)
