"""Off-policy evaluation: what another policy would have got on traffic that was logged.

Three steps: `LoggedDecisions` (what was drawn, how likely, what came of it), the target's
probabilities at the same rows (`targets`), and `evaluate`.
"""

from optimizer.offpolicy.estimators import ESTIMATORS, LABELS
from optimizer.offpolicy.evaluation import CHOSEN, MEASURES, Evaluation, Result, evaluate
from optimizer.offpolicy.logged import LoggedDecisions
from optimizer.offpolicy.support import ENOUGH_EFFECTIVE, Support
from optimizer.offpolicy.verdict import Verdict

__all__ = [
    "CHOSEN",
    "ENOUGH_EFFECTIVE",
    "ESTIMATORS",
    "LABELS",
    "MEASURES",
    "Evaluation",
    "LoggedDecisions",
    "Result",
    "Support",
    "Verdict",
    "evaluate",
]
