"""The list of evaluation sets. A new one is a file here and a line below; `name` in a job chooses it."""

from __future__ import annotations

from typing import TypeAlias

from hiclip.evaluation.sets.openmoji import OpenmojiSettings

SetSettings: TypeAlias = OpenmojiSettings
"""Union of the settings of all sets, told apart by `name`; `load()` of each gives an `EvaluationSet`."""

SETS: dict[str, type[SetSettings]] = {"openmoji": OpenmojiSettings}
"""Name in a job -> settings."""
