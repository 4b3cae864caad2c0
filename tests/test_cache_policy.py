"""What a semantic cache keeps: learned from what comes back, on streams whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from optimizer.cache_policy import LIFETIMES_S, CachePolicy, CachePrices, CacheRequest
from optimizer.errors import IncompatibleState, InvalidInput

PRICES = CachePrices(saving_usd=0.002, stale_usd=0.004, memory_usd_per_hour=0.0005)
DAY_S = 86400.0


def stream(rows: int, seed: int, tolerance_s: float = DAY_S) -> list[CacheRequest]:
    """Half of the requests are one of four that come back; the others come once."""
    random = np.random.default_rng(seed)
    common = np.eye(16)[:4]
    at = np.cumsum(random.exponential(60.0, rows))
    requests = []
    for row in range(rows):
        often = row % 2 == 0
        vector = common[random.integers(4)] if often else random.normal(size=16)
        task = "faq" if often else "essay"
        requests.append(CacheRequest(vector, float(at[row]), 40, tolerance_s, task))
    return requests


def trained(requests: list[CacheRequest], **given: object) -> CachePolicy:
    policy = CachePolicy(16, PRICES, **given)
    for request in requests:
        policy.observe(request)
    return policy


def test_what_comes_back_is_kept_and_what_does_not_is_not() -> None:
    policy, later = trained(stream(1500, 1)), stream(1900, 1)[1500:]
    found = [(request.task, policy.observe(request)) for request in later]
    faq = [decision for task, decision in found if task == "faq"]
    essay = [decision for task, decision in found if task == "essay"]
    assert np.mean([one.store for one in faq]) > 0.95
    assert np.mean([one.store for one in essay]) < 0.05
    assert all(one.worth_usd > 0 for one in faq if one.store)
    assert all(one.ttl_s == one.worth_usd == 0 for one in essay if not one.store)


def test_predicted_chances_are_those_that_come_true() -> None:
    """A common request comes back once in 8 minutes, at times of a Poisson process."""
    requests = stream(4000, 2)
    policy = trained(requests)
    common = [one.features for one in policy._waiting[-1] if "task=faq" in one.features][-300:]
    for ttl_s in (60.0, 480.0, 7200.0):
        chance = np.mean([policy.chance(features, ttl_s) for features in common])
        assert abs(chance - -np.expm1(-ttl_s / 480.0)) < 0.15, ttl_s
    chances = [policy.chance(common[0], ttl_s) for ttl_s in LIFETIMES_S]
    assert chances == sorted(chances)
    assert policy.observe(requests[-2]).ttl_s in LIFETIMES_S


def test_less_tolerance_keeps_for_less_time() -> None:
    kept = {}
    for tolerance_s in (600.0, DAY_S, 30 * DAY_S):
        policy = trained(stream(2000, 3, tolerance_s))
        policy.prices = replace(PRICES, memory_usd_per_hour=1e-6)
        last = stream(2001, 3, tolerance_s)[-1]
        kept[tolerance_s] = policy.observe(last).ttl_s
    assert 0 < kept[600.0] < 1200 and kept[600.0] < kept[DAY_S] <= kept[30 * DAY_S]


def test_dear_memory_keeps_nothing_and_prices_need_no_new_learning() -> None:
    policy, last = trained(stream(1000, 4)), stream(1001, 4)[-1]
    dear = CachePolicy.from_bytes(policy.to_bytes())
    dear.prices = replace(PRICES, memory_usd_per_hour=10.0)
    assert policy.observe(last).store and not dear.observe(last).store


@hypothesis_settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_a_policy_that_was_stored_goes_on_as_the_other(seed: int, remembered: int) -> None:
    requests = stream(120, seed)
    policy = trained(requests[:80], remembered=remembered)
    copy = CachePolicy.from_bytes(policy.to_bytes())
    for request in requests[80:]:
        assert copy.observe(request) == policy.observe(request)
    assert copy.to_bytes() == policy.to_bytes()


def test_requests_that_are_forgotten_do_not_break_it() -> None:
    policy = trained(stream(300, 5), remembered=3)
    late = replace(stream(300, 5)[0], at=stream(300, 5)[-1].at + 10 * DAY_S)
    assert policy.observe(late).asked_again >= 0.0


@pytest.mark.parametrize(
    "content", [b"", b"something else", b"\x80", b"\x81\xa7version\x02"], ids=repr
)
def test_foreign_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(IncompatibleState):
        CachePolicy.from_bytes(content)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidInput, match="tolerance_s"):
        CacheRequest(np.ones(2), 0.0, 1, 0.0)
    with pytest.raises(InvalidInput, match="vector"):
        CacheRequest(np.zeros(2), 0.0, 1, 1.0)
    with pytest.raises(InvalidInput, match="vector of 16"):
        CachePolicy(16, PRICES).observe(CacheRequest(np.ones(2), 0.0, 1, 1.0))
    with pytest.raises(InvalidInput, match="stale_usd"):
        replace(PRICES, stale_usd=-1.0)
    with pytest.raises(InvalidInput, match="alike"):
        CachePolicy(16, PRICES, alike=1.0)
