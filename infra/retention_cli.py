"""The command ``llmopt retention``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from infra.terminal import Json, errors_shown, on_stderr, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from serving.expiry import Expired

__all__ = ["retention"]


def retention(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would go, and change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export and drop what is older than the settings keep it, as the flow does each night."""
    with errors_shown(as_json):
        import os
        from dataclasses import asdict

        from infra.home import find_settings

        settings = find_settings()[0]
        # Prefect reads it while it is imported.
        os.environ.setdefault("PREFECT_API_URL", settings.prefect_address)
        from flows.retention import STEPS, retire

        now = datetime.now(UTC)
        found = [one for step in STEPS for one in retire(settings, step, now, dry_run)]
        console = on_stderr()
        console.print(_table(found, "would go" if dry_run else "went"))
        if as_json:
            print_json({"dry_run": dry_run, "expired": [asdict(one) for one in found]})


def _table(found: Sequence[Expired], title: str) -> Table:
    from rich.table import Table

    table = Table(title=f"what {title}" if found else "nothing is older than it is kept")
    for name in ("kind", "name", "rows or runs", "MB", "copy", "kept because"):
        table.add_column(name, overflow="fold")
    for one in found:
        count = "not counted" if one.count is None else str(one.count)
        size = "" if one.bytes is None else f"{one.bytes / 1e6:.1f}"
        table.add_row(one.kind, one.name, count, size, one.file or "", one.kept_because)
    return table
