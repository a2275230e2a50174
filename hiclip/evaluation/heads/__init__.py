"""Small heads on the towers, trained on a set's own training part. A new one is a file here and a line below."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from hiclip.evaluation.heads.snli_ve import SnliVeSettings
from hiclip.evaluation.heads.vqa_v2 import VqaV2Settings

HeadSettings: TypeAlias = Annotated[VqaV2Settings | SnliVeSettings, Field(discriminator="name")]
"""Union of the settings of all heads, told apart by `name`; `load()` of each gives a `HeadTask`."""
