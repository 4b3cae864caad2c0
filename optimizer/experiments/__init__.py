"""Experiments over arms and prompts, and the tests that may be looked at whenever one likes."""

from optimizer.experiments.moments import Moments

__all__ = ["Moments"]
