"""Which code made a version: the package's version, and the git commit where it is known."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

__all__ = ["PACKAGE", "code_commit", "code_version"]

PACKAGE = "llm-auto-optimizer"


def code_version() -> str:
    """Version of the installed package."""
    return distribution(PACKAGE).version


@cache
def code_commit() -> str | None:
    """The commit that the package was installed from, or that is checked out; None if not known.

    An installer that fetched the package from git has noted the commit (PEP 610). Only of an
    editable installation the folder is asked: any other may lie in a repository that is not ours.
    """
    from mlflow.utils.git_utils import get_git_commit

    origin = json.loads(distribution(PACKAGE).read_text("direct_url.json") or "{}")
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        return str(commit)
    if origin.get("dir_info", {}).get("editable"):
        found = get_git_commit(str(Path(__file__).parent))
        return None if found is None else str(found)
    return None
