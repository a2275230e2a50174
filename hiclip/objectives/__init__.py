"""The list of objectives. A new one is a file here and a line below; `name` in a job chooses it."""

from __future__ import annotations

from typing import TypeAlias

from hiclip.objectives.clip import ClipSettings
from hiclip.objectives.declip import DeclipSettings
from hiclip.objectives.pyramid_declip import PyramidDeclipSettings
from hiclip.objectives.pyramidclip import PyramidclipSettings

ObjectiveSettings: TypeAlias = ClipSettings | DeclipSettings | PyramidclipSettings | PyramidDeclipSettings
"""Union of the settings of all objectives, told apart by `name`."""

OBJECTIVES: dict[str, type[ObjectiveSettings]] = {
    "clip": ClipSettings,
    "declip": DeclipSettings,
    "pyramidclip": PyramidclipSettings,
    "pyramid_declip": PyramidDeclipSettings,
}
"""Name in a job -> settings, whose `views` say what to show, and whose `build(model)` makes the objective."""
