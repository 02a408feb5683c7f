"""A whole check, with engines that have one fault each: every fault must fail the gate, through its own measure."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from bei.compiler.parity import run
from bei.compiler.parity.compare import Comparison, compare
from bei.compiler.parity.gate import Threshold
from bei.compiler.parity.report import EngineReport, ParityReport, decode_report, encode_report, judge
from bei.compiler.parity.texts import Sample, builtin
from bei.errors import ParityError
from bei.manifest import Task
from tests.compiler.parity.fakes import FakeEngine, FakeReference

TASKS: tuple[Task, ...] = ("embed", "embed-tokens", "classify", "rerank", "token-classify")


def checked(task: Task = "embed", **faults: Any) -> EngineReport:
    samples = builtin(task, 64)
    expected = run.expect(FakeReference(task=task), samples, "built-in")
    return run.check_engine(FakeEngine(task=task, **faults), expected)


def whole(*engines: EngineReport) -> ParityReport:
    return ParityReport(bei_version="0", model="m", revision=None, task="embed", engines=engines)


def failed(report: EngineReport) -> set[str]:
    return {measure.name for measure in report.measures if measure.passed is False}


@pytest.mark.parametrize("task", TASKS)
def test_an_exact_engine_passes(task: Task) -> None:
    report = checked(task)
    assert report.verdict == "passed"
    assert failed(report) == set()
    assert all(m.passed for m in report.measures if m.threshold is not None)
    assert report.texts is not None
    assert report.texts.longest == 64


@pytest.mark.parametrize("task", TASKS)
def test_a_little_noise_passes_as_fp16_but_not_as_fp32(task: Task) -> None:
    assert checked(task, noise=1e-3).verdict == "failed"
    assert checked(task, noise=1e-3, precision="fp16, fp32 residual").verdict == "passed"
    assert checked(task, noise=0.5, precision="bf16").verdict == "failed"


FAULTS: list[tuple[Task, dict[str, Any], str]] = [
    ("embed", {"noise": 0.05}, "cosine_min"),
    ("embed", {"scale": 1.1}, "relative_error"),
    ("embed", {"padding_leak": 0.01}, "padding_difference"),
    ("embed", {"neighbour_leak": 0.01}, "batch_difference"),
    ("embed", {"offset": 1}, "token_ids_differ"),
    ("embed", {"nan_text": "."}, "non_finite"),
    ("embed-tokens", {"noise": 0.1}, "cosine_min"),
    ("embed-tokens", {"scale": 1.1}, "relative_error"),
    ("embed-tokens", {"padding_leak": 0.01}, "padding_difference"),
    ("embed-tokens", {"neighbour_leak": 0.01}, "batch_difference"),
    ("embed-tokens", {"nan_text": "."}, "non_finite"),
    ("classify", {"noise": 0.05}, "probability_error"),
    ("classify", {"scale": 1.1}, "logit_error"),
    ("classify", {"scale": -1.0}, "label_agreement"),
    ("rerank", {"noise": 0.05}, "score_error"),
    ("rerank", {"scale": -1.0}, "kendall_tau"),
    ("rerank", {"scale": -1.0}, "ndcg"),
    ("token-classify", {"noise": 0.3}, "span_f1_simple"),
    ("token-classify", {"forgets": 1}, "span_f1_max"),
    ("token-classify", {"padding_leak": 0.01}, "padding_difference"),
    ("token-classify", {"nan_text": "."}, "non_finite"),
]


@pytest.mark.parametrize(("task", "fault", "measure"), FAULTS, ids=[f"{f[0]}-{f[2]}" for f in FAULTS])
def test_every_fault_is_found_by_its_measure(task: Task, fault: dict[str, Any], measure: str) -> None:
    report = checked(task, **fault)
    assert report.verdict == "failed"
    assert measure in failed(report)


@pytest.mark.parametrize("fault", [{"padding_leak": 0.01}, {"neighbour_leak": 0.01}, {"offset": 1}])
def test_faults_outside_the_texts_own_results_are_found_by_nothing_else(fault: dict[str, Any]) -> None:
    assert failed(checked(**fault)) <= {"padding_difference", "batch_difference", "token_ids_differ"}


def test_a_scale_is_invisible_to_the_cosine() -> None:
    assert "cosine_min" not in failed(checked(scale=1.1))


def test_multi_label_reads_each_logit_alone() -> None:
    """All logits up by 2: a softmax would not move, four sigmoids do."""
    shifted = {"neighbour_leak": 0.0, "scale": 1.0}
    assert checked("classify", **shifted, problem_type="multi_label_classification").verdict == "passed"
    samples = builtin("classify", 64)
    expected = run.expect(FakeReference(task="classify"), samples, "x")
    moved = [x + 2 for x in expected.outputs]
    one = compare("classify", moved, expected.outputs, samples)
    many = compare("classify", moved, expected.outputs, samples, multi_label=True)
    assert one.values["probability_error"] == pytest.approx(0, abs=1e-6)
    assert (many.values["probability_error"] or 0) > 0.1


def test_an_engine_error_is_a_failed_verdict_with_its_reason() -> None:
    report = checked(broken=True)
    assert report.verdict == "failed"
    assert report.reason == "fake-cpu: out of memory"
    assert report.measures == ()


def test_results_of_another_shape_are_a_failed_verdict() -> None:
    expected = run.expect(FakeReference(), builtin("embed", 64), "built-in")
    report = run.check_engine(FakeEngine(task="classify"), expected)
    assert report.verdict == "failed"
    assert report.reason is not None
    assert "shape (4,), the reference (16,)" in report.reason


def test_own_thresholds_replace_the_defaults() -> None:
    expected = run.expect(FakeReference(), builtin("embed", 64), "built-in")
    strict = {"cosine_min": Threshold(at_least=0.9999999)}
    assert run.check_engine(FakeEngine(noise=1e-3), expected, strict).verdict == "failed"
    loose = {"cosine_min": Threshold(at_least=0.9)}
    report = run.check_engine(FakeEngine(noise=1e-3), expected, loose)
    assert report.verdict == "passed"
    assert [m.name for m in report.measures if m.threshold] == ["cosine_min"]
    with pytest.raises(ParityError, match="no measure named 'cosine_minimum'"):
        judge({}, {"cosine_minimum": Threshold(at_least=1)})


def test_nothing_measured_is_not_passed() -> None:
    assert judge({"cosine_min": None}, {"cosine_min": Threshold(at_least=0.9)})[1] == "failed"


def test_one_text_is_enough_for_what_can_be_said_of_one_text() -> None:
    expected = run.expect(FakeReference(), [Sample(kind="user", text="alone")], "mine.txt")
    report = run.check_engine(FakeEngine(), expected)
    assert report.verdict == "passed"
    assert report.value("neighbour_overlap") is None
    assert report.value("batch_difference") is None
    assert report.value("cosine_min") == 1


def test_all_results_nan_still_make_a_report() -> None:
    expected = run.expect(FakeReference(), [Sample(kind="user", text="alone")], "mine.txt")
    report = run.check_engine(FakeEngine(nan_text="alone"), expected)
    assert report.verdict == "failed"
    assert report.histogram is None
    assert report.worst[0].distance is None
    assert "NaN" not in encode_report(whole(report)).decode()


def test_worst_texts_are_those_that_are_off_with_their_token_counts() -> None:
    samples = builtin("embed", 64)
    expected = run.expect(FakeReference(), samples, "built-in")
    outputs = expected.outputs
    for i in (3, 50):
        outputs[i] = -outputs[i]
    report = run.check_engine(FakeEngine(nan_text=samples[8].text), expected)
    first, *others = report.worst[:3]
    assert (first.index, first.distance) == (8, None)
    assert {row.index for row in others} == {3, 50}
    for row in others:
        assert row.distance == pytest.approx(2)
        assert row.tokens == len(expected.token_ids[row.index])
        assert row.text == samples[row.index].text
    assert len(report.worst) == run.WORST


def test_histogram_counts_every_finite_text() -> None:
    distance = np.array([0.0, 1e-7, 2e-7, 9e-7, 1e-2, np.nan])
    found = run.histogram(distance)
    assert found is not None
    assert sum(found.counts) == 5
    by_edge = dict(zip(found.edges, found.counts, strict=False))
    assert (by_edge[-16.0], by_edge[-7.0], by_edge[-6.5], by_edge[-2.0]) == (1, 2, 1, 1)


def test_points_of_very_many_texts_keep_the_worst() -> None:
    distance = np.linspace(0, 1, 50_000)
    kept = run.points([7] * 50_000, distance)
    assert 900 < len(kept) <= 1.2 * run.POINTS
    assert kept[0].distance == 1
    assert [p.distance for p in kept] == sorted((p.distance for p in kept), reverse=True)


def test_long_texts_are_shown_by_their_beginning() -> None:
    comparison = Comparison(values={}, distance=np.zeros(1), error=np.zeros(1))
    (row,) = run.worst_texts([Sample(kind="user", text="x" * 5000)], [64], comparison)
    assert row.text == "x" * run.PREVIEW + "…"


@pytest.mark.parametrize("task", TASKS)
def test_reports_survive_json(task: Task) -> None:
    expected = run.expect(FakeReference(task=task), builtin(task, 64), "built-in")
    report = run.check([FakeEngine(task=task, noise=1e-4)], expected, model="m", revision="abc")
    data = encode_report(report)
    assert decode_report(data, "parity.json") == report
    assert json.loads(data)["engines"][0]["texts"]["sha256"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda plain: b"{", "not a parity report"),
        (lambda plain: msgspec.json.encode({**plain, "extra": 1}), "unknown field"),
        (lambda plain: msgspec.json.encode({**plain, "report_version": 2}), "report version 2"),
        (lambda plain: msgspec.json.encode({**plain, "task": "sing"}), "task"),
    ],
)
def test_damaged_reports(edit: Any, message: str) -> None:
    expected = run.expect(FakeReference(), builtin("embed", 64), "built-in")
    report = run.check([FakeEngine()], expected, model="m")
    with pytest.raises(ParityError, match=message):
        decode_report(edit(msgspec.to_builtins(report)), "parity.json")


def test_merging_keeps_other_engines_and_replaces_the_same() -> None:
    expected = run.expect(FakeReference(), builtin("embed", 64), "built-in")
    gpu = run.not_run("tensorrt-sm90", "fp16", "no such GPU here")
    first = whole(run.check_engine(FakeEngine(noise=0.1), expected), gpu)
    second = run.check([FakeEngine(), FakeEngine(target="other")], expected, model="m")
    merged = second.merged_into(first)
    assert [(e.target, e.verdict) for e in merged.engines] == [
        ("fake-cpu", "passed"),
        ("tensorrt-sm90", "not run"),
        ("other", "passed"),
    ]
    assert (first.verdict, second.verdict, merged.verdict) == ("failed", "passed", "passed")
    assert whole(gpu).verdict == "not run"
