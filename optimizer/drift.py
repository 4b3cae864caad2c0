"""Have distributions changed? KS, chi-square and PSI of a window against a reference.

Tests say whether a difference is more than chance, PSI whether it is large enough to matter: with
thousands of rows any difference is more than chance. A column has drifted if both agree. P-values
are adjusted for the number of columns by Benjamini and Yekutieli, which holds whatever the
dependence between columns; where nothing has changed, the probability of any alarm is at most
``alpha``. That needs rows that could have come in any order: many requests of one user in a row
make p-values too small, and then only the floor of PSI holds.

Requests don't depend on the policy, so a change of theirs is one of the world. Which arm is drawn
does: a policy that learns moves its decisions, and with them what all arms together yield.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp

from optimizer.records import Vector

__all__ = ["LEAST_ROWS", "ColumnDrift", "compare", "stability_index"]

LEAST_ROWS = 100
"""Known values of a column in each window before it is tested."""

_FEW_VALUES = 10
"""A number with at most so many different values is counted as a category: KS takes ties for
continuous numbers and then loses its power."""

_BINS = 10
_EXPECTED = 5.0
"""Least expected count of a cell of chi-square; rarer categories are taken together."""


class ColumnDrift(msgspec.Struct, frozen=True):
    """One column of a window against the reference.

    Attributes
    ----------
    what
        ``features``, ``decisions`` or ``predictions``.
    test
        ``ks`` or ``chi2``.
    statistic
        Largest distance of the distribution functions in [0, 1], or chi-square.
    p_value, adjusted
        Of this test alone, and adjusted for all columns.
    psi
        Population stability index, 0 or more: 0.1 is called a small change, 0.25 a large one.
    drifted
        Whether test and index both say so.
    """

    what: str
    name: str
    test: str
    statistic: float
    p_value: float
    adjusted: float
    psi: float
    drifted: bool


def compare(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    what: Mapping[str, str],
    alpha: float,
    smallest_psi: float,
) -> list[ColumnDrift]:
    """Compare the columns of two windows.

    Parameters
    ----------
    reference, current
        With the columns of ``what``; NaN is left out.
    what
        The kind of each column.
    alpha
        In (0, 1): probability of any alarm where nothing has changed.
    smallest_psi
        0 or more: changes below don't count.

    Returns
    -------
    Columns that can be tested, the least probable first. Those with fewer than `LEAST_ROWS` known
    values in a window, or one value only, are left out.

    References
    ----------
    Benjamini, Yekutieli: The control of the false discovery rate in multiple testing under
    dependency, Annals of Statistics 29 (2001).

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> before = pd.DataFrame({"length": random.normal(0, 1, 1000)})
    >>> after = pd.DataFrame({"length": random.normal(1, 1, 1000)})
    >>> [found] = compare(before, after, {"length": "features"}, 0.01, 0.1)
    >>> found.test, found.drifted, found.psi > 0.25
    ('ks', True, True)
    """
    tested = []
    for name, kind in what.items():
        before, after = reference[name].dropna(), current[name].dropna()
        if min(len(before), len(after)) < LEAST_ROWS:
            continue
        if _is_category(before, after):
            found = _chi_square(before, after)
        else:
            found = _kolmogorov_smirnov(before.to_numpy(float), after.to_numpy(float))
        if found is not None:
            tested.append((kind, name, *found))
    if not tested:
        return []
    adjusted = false_discovery_control([one[4] for one in tested], method="by")
    columns = [
        ColumnDrift(
            kind, name, test, statistic, p_value, float(level), psi,
            bool(level <= alpha and psi >= smallest_psi),
        )
        for (kind, name, test, statistic, p_value, psi), level in zip(tested, adjusted, strict=True)
    ]  # fmt: skip
    return sorted(columns, key=lambda one: (not one.drifted, one.p_value, -one.psi))


def stability_index(before: Vector, after: Vector) -> float:
    r"""Population stability index of two tables of counts.

    .. math:: \sum_b (q_b - p_b) \log \frac{q_b}{p_b}

    with half a row added to each cell, so that an empty one is not infinitely far away.

    Examples
    --------
    >>> stability_index(np.array([50.0, 50.0]), np.array([50.0, 50.0]))
    0.0
    >>> round(stability_index(np.array([500.0, 500.0]), np.array([700.0, 300.0])), 2)
    0.17
    """
    p, q = before + 0.5, after + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


_Tested = tuple[str, float, float, float]
"""Test, statistic, p-value, index."""


def _is_category(before: pd.Series, after: pd.Series) -> bool:
    if not pd.api.types.is_numeric_dtype(before):
        return True
    return bool(pd.concat([before, after]).nunique() <= _FEW_VALUES)


def _kolmogorov_smirnov(before: Vector, after: Vector) -> _Tested:
    found = ks_2samp(before, after, method="asymp")
    edges = np.unique(np.quantile(before, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        for values in (before, after)
    ]
    psi = stability_index(counts[0].astype(float), counts[1].astype(float))
    return "ks", float(found.statistic), float(found.pvalue), psi


def _chi_square(before: pd.Series, after: pd.Series) -> _Tested | None:
    counts = pd.DataFrame({"before": before.value_counts(), "after": after.value_counts()})
    table = counts.fillna(0.0).to_numpy(float)
    rare = table.sum(axis=1) * min(len(before), len(after)) < _EXPECTED * table.sum()
    if rare.any():
        table = np.vstack([table[~rare], table[rare].sum(axis=0)])
    if len(table) < 2:
        return None
    found = chi2_contingency(table, correction=False)
    psi = stability_index(table[:, 0], table[:, 1])
    return "chi2", float(found.statistic), float(found.pvalue), psi
