"""The list of objectives. A new one is a file here and a line below; `name` in a job chooses it."""

from __future__ import annotations

from typing import TypeAlias

from hiclip.objectives.clip import ClipSettings

ObjectiveSettings: TypeAlias = ClipSettings
"""Union of the settings of all objectives, told apart by `name`."""

OBJECTIVES: dict[str, type[ObjectiveSettings]] = {"clip": ClipSettings}
"""Name in a job -> settings, whose `build(model)` makes the objective."""
