"""How many replicas waiting tokens ask for: the policy under Ray's own bounds and delays, and what a replica reports."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bei.runtime.ray_autoscaling import BUSY, QUEUED_TOKENS, Load, QueuedTokens

config = pytest.importorskip("ray.serve.config", reason="needs ray (extra: ray)")
pytestmark = pytest.mark.filterwarnings("ignore")


def context(queued: Sequence[float], busy: Sequence[float], replicas: int | None = None) -> Any:
    """A deployment whose replicas reported these means."""
    count = len(queued) if replicas is None else replicas
    metrics = {QUEUED_TOKENS: dict(enumerate(queued)), BUSY: dict(enumerate(busy))} if queued else {}
    return config.AutoscalingContext(
        deployment_id=None, deployment_name="bei", app_name="bei", current_num_replicas=count, target_num_replicas=count,
        running_replicas=[], total_num_requests=1.0, total_queued_requests=0.0, aggregated_metrics=metrics,
        raw_metrics={}, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=8, policy_state={},
        last_scale_up_time=None, last_scale_down_time=None, current_time=0.0,
        config=config.AutoscalingConfig(min_replicas=1, max_replicas=8, upscale_delay_s=0, downscale_delay_s=0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("queued", "busy", "wanted"),
    [
        ([3000], [1.0], 3),  # as many as share what waits
        ([500, 4100], [1.0, 1.0], 4.6),
        ([0, 0, 0, 0], [1.0, 1.0, 1.0, 1.0], 4),  # busy without a queue: all stay, none comes
        ([0, 0, 0, 0], [0.4, 0.4, 0.4, 0.4], 3.2),  # what is left would be half busy
        ([0, 0], [0.0, 0.0], 0),  # Ray keeps min_replicas
        ([900], [0.1], 0.9),
    ],
)
def test_replicas_wanted(queued: Sequence[float], busy: Sequence[float], wanted: float) -> None:
    policy = QueuedTokens(target_tokens=1000, max_busy=0.5)
    replicas, state = policy(context(queued, busy))
    assert replicas == pytest.approx(wanted)
    assert state == {}


def test_nothing_changes_before_the_first_report() -> None:
    assert QueuedTokens()(context([], [], replicas=3)) == (3, {})


def test_ray_rounds_up_and_takes_the_policy_by_value() -> None:
    from ray.serve.autoscaling_policy import _apply_autoscaling_config

    named = config.AutoscalingPolicy(
        policy_function="bei.runtime.ray_autoscaling:QueuedTokens",
        policy_kwargs={"target_tokens": 1000, "max_busy": 0.5},
    )
    policy = _apply_autoscaling_config(named.get_policy()(**named.policy_kwargs))
    assert policy(context([2001], [1.0]))[0] == 3
    assert policy(context([0, 0, 0], [0.2, 0.2, 0.2]))[0] == 2


@pytest.mark.parametrize("arguments", [{"target_tokens": 0}, {"max_busy": 0}, {"max_busy": 1.5}])
def test_numbers_that_mean_nothing_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Correct policy_kwargs"):
        QueuedTokens(**arguments)


def test_what_a_replica_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("bei.runtime.ray_autoscaling.time.monotonic", lambda: now)
    one, two = (
        SimpleNamespace(queued_tokens=0, lanes=lanes, counts=SimpleNamespace(seconds=0.0)) for lanes in (1, 2)
    )
    load = Load([SimpleNamespace(scheduler=one), SimpleNamespace(scheduler=two)])  # type: ignore[list-item]
    now, one.counts.seconds, two.counts.seconds = 110.0, 4.0, 12.0
    one.queued_tokens, two.queued_tokens = 30, 12
    assert load.report() == {QUEUED_TOKENS: 42.0, BUSY: pytest.approx(0.6)}
    now = 120.0
    assert load.report() == {QUEUED_TOKENS: 42.0, BUSY: pytest.approx(0.0)}
