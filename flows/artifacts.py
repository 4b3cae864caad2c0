"""What the flows' artifacts have in common: their keys, and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["artifact_key", "markdown_table"]


def artifact_key(flow: str, decision_point: str, what: str = "") -> str:
    """The key of what a flow tells about a decision point, or of ``what`` of that.

    Prefect allows lower case, digits and dashes.

    Examples
    --------
    >>> artifact_key("report", "Chat_v2.")
    'report-chat-v2'
    >>> artifact_key("report", "chat", "figures")
    'report-chat-figures'
    """
    name = re.sub("[^a-z0-9]+", "-", decision_point.lower()).strip("-")
    return "-".join(filter(None, (flow, name, what)))


def markdown_table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    r"""Lines of a table; none without rows.

    Parameters
    ----------
    rows
        All with the columns of the first.

    Examples
    --------
    >>> markdown_table([{"arm": "a|b", "share": 0.5}])
    ['| arm | share |', '| --- | --- |', '| a\\|b | 0.5 |']
    """
    if not rows:
        return []
    names = list(rows[0])
    body = [[str(row[name]).replace("|", "\\|") for name in names] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *body]]
