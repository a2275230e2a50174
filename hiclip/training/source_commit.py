"""Which commit of this project is running, for the record beside every number."""

from __future__ import annotations

import subprocess
from pathlib import Path


def source_commit() -> str | None:
    """The checkout's commit, with `+changes` when tracked files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD").strip()
        return f"{commit}+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20
    ).stdout
