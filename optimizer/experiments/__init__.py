"""Experiments over arms and prompts, and the tests that may be looked at whenever one likes.

The tests that may be read once only are in `optimizer.experiments.fixed_horizon`, which is not
imported here.
"""

from optimizer.experiments.adaptive import adaptive_difference, adaptive_mean
from optimizer.experiments.moments import Moments
from optimizer.experiments.multiple import compare_all, e_benjamini_hochberg, holm
from optimizer.experiments.sample_ratio import RatioCheck, sample_ratio
from optimizer.experiments.self_check import Readiness, SelfCheck, readiness, self_check
from optimizer.experiments.sequential import Comparison, Exceedance, compare, exceeds, lift

__all__ = [
    "Comparison",
    "Exceedance",
    "Moments",
    "RatioCheck",
    "Readiness",
    "SelfCheck",
    "adaptive_difference",
    "adaptive_mean",
    "compare",
    "compare_all",
    "e_benjamini_hochberg",
    "exceeds",
    "holm",
    "lift",
    "readiness",
    "sample_ratio",
    "self_check",
]
