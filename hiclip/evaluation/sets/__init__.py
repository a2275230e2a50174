"""The list of evaluation sets. A new one is a file here and a line below; `name` in a job chooses it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from hiclip.evaluation.sets.dataset import DatasetSettings
from hiclip.evaluation.sets.imagenet import (
    ImagenetASettings,
    ImagenetRSettings,
    ImagenetSettings,
    ImagenetSketchSettings,
    ImagenetV2Settings,
)
from hiclip.evaluation.sets.karpathy import Coco5kSettings, Flickr30kSettings
from hiclip.evaluation.sets.objectnet import ObjectnetSettings
from hiclip.evaluation.sets.openmoji import OpenmojiSettings
from hiclip.evaluation.sets.webdataset import WebdatasetSettings

SetSettings: TypeAlias = Annotated[
    OpenmojiSettings
    | ImagenetSettings
    | ImagenetV2Settings
    | ImagenetSketchSettings
    | ImagenetASettings
    | ImagenetRSettings
    | ObjectnetSettings
    | Coco5kSettings
    | Flickr30kSettings
    | WebdatasetSettings
    | DatasetSettings,
    Field(discriminator="name"),
]
"""Union of the settings of all sets, told apart by `name`; `load()` of each gives an `EvaluationSet`."""
