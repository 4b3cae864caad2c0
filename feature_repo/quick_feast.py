"""Import this before Feast: it loads Feast without the run-time type checks on its own classes.

Putting those checks in (typeguard's ``@typechecked`` on entities, fields and views) is two thirds
of Feast's import: 9.1 s of a core with them, 3.0 s without, and two processes of the platform
import it while everything else starts on the same two cores. mypy checks what we hand to Feast.
"""

from __future__ import annotations

from typing import Any

import typeguard


def _unchecked(target: Any = None, **options: Any) -> Any:
    return target if target is not None else lambda late: late


_checked = typeguard.typechecked
typeguard.typechecked = _unchecked
try:
    import feast
    import feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source
    import feast.on_demand_feature_view  # noqa: F401
finally:
    typeguard.typechecked = _checked
