"""The list of evaluation sets. A new one is a file here and a line below; `name` in a job chooses it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from hiclip.evaluation.sets.caltech101 import Caltech101Settings
from hiclip.evaluation.sets.cifar import Cifar10Settings, Cifar100Settings
from hiclip.evaluation.sets.dataset import DatasetSettings
from hiclip.evaluation.sets.dtd import DtdSettings
from hiclip.evaluation.sets.fgvc_aircraft import FgvcAircraftSettings
from hiclip.evaluation.sets.flowers102 import Flowers102Settings
from hiclip.evaluation.sets.food101 import Food101Settings
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
from hiclip.evaluation.sets.oxford_pets import OxfordPetsSettings
from hiclip.evaluation.sets.stanford_cars import StanfordCarsSettings
from hiclip.evaluation.sets.sun397 import Sun397Settings
from hiclip.evaluation.sets.webdataset import WebdatasetSettings

SetSettings: TypeAlias = Annotated[
    ImagenetSettings
    | Cifar10Settings
    | Cifar100Settings
    | StanfordCarsSettings
    | Caltech101Settings
    | Flowers102Settings
    | Sun397Settings
    | DtdSettings
    | FgvcAircraftSettings
    | OxfordPetsSettings
    | Food101Settings
    | ImagenetV2Settings
    | ImagenetSketchSettings
    | ImagenetASettings
    | ImagenetRSettings
    | ObjectnetSettings
    | Coco5kSettings
    | Flickr30kSettings
    | WebdatasetSettings
    | DatasetSettings
    | OpenmojiSettings,
    Field(discriminator="name"),
]
"""Settings of any set, told apart by `name`; `load()` of each gives an `EvaluationSet`."""
