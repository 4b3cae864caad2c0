"""How many replicas are wanted, by the decisions that all of them make."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from optimizer.settings import Autoscaling
from serving.autoscaling import DecisionRate, autoscaling_config, replicas_for_rate


def context(rates: dict[str, float] | None, now: int = 1) -> Any:
    metrics = None if rates is None else {"decisions_per_s": rates}
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=now)


def test_the_rate_is_that_since_it_was_last_asked() -> None:
    now, made = [100.0], [500]
    rate = DecisionRate(lambda: made[0], lambda: now[0])
    now[0], made[0] = 102.0, 700
    assert rate.report() == {"decisions_per_s": pytest.approx(100.0)}
    now[0] = 103.0
    assert rate.report() == {"decisions_per_s": 0.0}


@pytest.mark.parametrize(
    ("rates", "wanted"),
    [({"a": 10.0}, 1), ({"a": 99.0, "b": 2.0}, 2), ({"a": 350.0, "b": 0.0}, 4), ({"a": 0.0}, 1)],
)
def test_as_many_as_the_rate_of_all_needs(rates: dict[str, float], wanted: int) -> None:
    assert replicas_for_rate(100.0)(context(rates)) == (wanted, {})


def test_without_figures_nothing_changes() -> None:
    assert replicas_for_rate(100.0)(context(None, now=3)) == (3, {})


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_ray_takes_the_settings_and_finds_the_policy() -> None:
    config = autoscaling_config(Autoscaling(max_replicas=3, decisions_per_s=50.0))
    assert (config.min_replicas, config.max_replicas) == (1, 3)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert policy(context({"a": 120.0})) == (3, {})


def test_bounds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_replicas=3 must not be above max_replicas=2"):
        Autoscaling(min_replicas=3, max_replicas=2)
